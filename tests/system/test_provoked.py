"""One client that tries every way it has to make a replica look broken to nginx; the publishes of others go on."""

import itertools
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
from harness.deployment import deployment
from harness.providers import CLIENT_ID, CLIENT_SECRET, provider_double
from harness.replicas import PUBLISH_KEY, bearer
from harness.servers import Redis

from tests.hostile.wire import connected, request, say

START = b"POST /api/session HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
LARGE = bytes(100_000)
WAYS: dict[str, tuple[bytes, ...]] = {
    "a host of 7 KB": (request("GET", "/api/session/providers/google", {"Host": "a" * 7000}),),
    "a host of 15 KB": (request("GET", "/api/accounts/me", {"Host": "a" * 15_000}),),
    "a request ID of 15 KB": (request("GET", "/api/accounts/me", {"X-Request-ID": "a" * 15_000}),),
    "an origin of 15 KB": (request("GET", "/api/accounts/me", {"Origin": "https://" + "a" * 15_000}),),
    "a path of 15 KB": (request("GET", "/" + "a" * 15_000),),
    "a cookie of 15 KB": (request("GET", "/api/accounts/me", {"Cookie": "allim_session=" + "a" * 15_000}),),
    "a token of 15 KB": (request("POST", "/api/session/renew", bearer("a" * 15_000)),),
    "a key of 15 KB": (request("POST", "/api/publish", bearer("a" * 15_000), b"{}"),),
    "a head of 60 KB": (request("GET", "/nothing", {f"X-{n}": "a" * 15_000 for n in range(4)}),),
    "a body over the route's limit": (request("POST", "/api/session", body=LARGE),),
    "a body over the limit of publish": (request("POST", "/api/publish", bearer(PUBLISH_KEY), bytes(2_900_000)),),
    "a body without a key": (request("POST", "/api/publish", body=bytes(2_900_000)),),
    "a body for nobody": (request("POST", "/nothing", body=LARGE),),
    "a body of GET": (request("GET", "/api/accounts/me", body=LARGE),),
    "a body of DELETE": (request("DELETE", "/api/session", body=LARGE),),
    "a body of HEAD": (request("HEAD", "/api/accounts/me", body=LARGE),),
    "a body whose client leaves": (START + b"Content-Length: 1000\r\n\r\n{",),
    "chunks with trailers": (START + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Trailer: a\r\n\r\n",),
    "an expectation": (START + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n", b"{}"),
    "an upgrade": (START + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\n{}",),
    "an upgrade of a stream": (request("GET", "/api/docs", {"Connection": "Upgrade", "Upgrade": "h2c"}),),
    "HTTP/1.0": (b"GET /api/accounts/me HTTP/1.0\r\n\r\n",),
    "an odd method": (b"BREW /api/accounts/me HTTP/1.1\r\nHost: a\r\n\r\n",),
    "a path of other bytes": (request("GET", b"/api/\xc3\xa9"),),
    "a header of other bytes": (request("GET", "/api/accounts/me", {"A": b"a\x7fb"}),),
    "requests sent ahead": (request("GET", "/api/accounts/me", {"Connection": "keep-alive"}) * 50,),
    "JSON of many levels": (request("POST", "/api/session", {"Content-Type": "application/json"}, b"[" * 60_000),),
}


def test_nothing_that_one_client_does_takes_a_replica_from_the_others(redis: Redis) -> None:
    settings: dict[str, Any] = {
        "redis_prefix": "provoked",
        "google_client_id": CLIENT_ID,
        "google_client_secret": CLIENT_SECRET,
        "public_url": "https://app.example.org",
    }
    with (
        provider_double() as double,
        deployment(2, redis=redis, proxied=False, google_issuer=double.issuer, **settings) as system,
    ):
        assert system.nginx is not None
        port = system.nginx.port
        over = threading.Event()
        tried: list[str] = []
        attackers = [
            threading.Thread(target=provoke, args=(port, over, tried, offset)) for offset in range(0, len(WAYS), 9)
        ]
        for attacker in attackers:
            attacker.start()
        statuses = publish_while(system.url, lambda: len(set(tried)) < len(WAYS))
        over.set()
        for attacker in attackers:
            attacker.join()
        lines = [json.loads(line) for line in system.nginx.log.read_text().splitlines()]

    assert len(statuses) > 10
    assert set(statuses) == {202}
    failed = [line for line in lines if line["status"] in {"502", "504"} or "," in line["upstream_status"]]
    assert not failed


def provoke(port: int, over: threading.Event, tried: list[str], offset: int) -> None:
    """Try way after way, from this one on: once to the end, and once leaving before the answer."""
    for name, pieces in itertools.islice(itertools.cycle(WAYS.items()), offset, None):
        if over.is_set():
            return
        say(port, *pieces, quiet_s=0.02)
        with connected(port) as connection:
            connection.sendall(pieces[0])
        tried.append(name)


def publish_while(url: str, going_on: Callable[[], bool]) -> list[int]:
    event = {"topic": "user:1", "type": "t", "data": 1}
    with httpx.Client(base_url=url, headers=bearer(PUBLISH_KEY), timeout=15) as client:
        statuses = []
        while going_on():
            statuses.append(client.post("/api/publish", json=event).status_code)
        return statuses
