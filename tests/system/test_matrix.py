"""Who may do what: every kind of credential at every door and for every kind of topic, in one table."""

import base64
import hmac
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness.deployment import deployment
from harness.replicas import PUBLISH_KEY, SECRET, Reader, bearer, publish, replica
from harness.servers import Redis
from joserfc import jwt
from joserfc.jwk import OctKey

from allim.access.tickets import Tickets
from allim.access.tokens import Tokens
from allim.identity import Identity
from tests.access.issuers import jwk, jwk_set, rsa_key, signed

ISSUER = "https://issuer.example.org"
OLD_SECRET = "the secret key before this one and still believed"
OTHER_SECRET = "a secret key that nobody here has ever believed"

MARGARET = "margaret"  # another user, with an account of nobody's
GRANTS = ("board", "news:*")
TOPICS = {
    "own": "user:{}",
    "system": "system",
    "another's": f"user:{MARGARET}",
    "exact": "board",
    "by-prefix": "news:a",
    "not-granted": "board2",
    "unknown": "nosuch:1",
}
CALLS = {
    "publish": ("POST", "/api/publish", {"topic": "board2", "type": "t", "data": None}),
    "ticket": ("POST", "/api/tickets", {"topics": ["system"]}),
    "me": ("GET", "/api/accounts/me", None),
    "kick": ("DELETE", "/api/users/somebody/streams", None),
    "keys": ("GET", "/api/keys", None),
    "list": ("GET", "/api/accounts/me/sessions", None),
}

# 200, 201, 202: served. 204: kicked, at a stream; done, at a kick. 401: nobody we know. 403: not theirs. 404: it is
# somebody, who has no account here.
TABLE = """
                             | own system another's exact by-prefix not-granted unknown | publish ticket me  kick keys list
nothing                      | 401 401    401       401   401       401         401     | 401     401    401 401  401 401
nonsense                     | 401 401    401       401   401       401         401     | 401     401    401 401  401 401
expired token                | 401 401    401       401   401       401         401     | 401     401    401 401  401 401
wrong signature              | 401 401    401       401   401       401         401     | 401     401    401 401  401 401
algorithm none               | 401 401    401       401   401       401         401     | 401     401    401 401  401 401
wrong audience               | 401 401    401       401   401       401         401     | 401     401    401 401  401 401
key unknown by kid           | 401 401    401       401   401       401         401     | 401     401    401 401  401 401
issuer's, key not in its set | 401 401    401       401   401       401         401     | 401     401    401 401  401 401
issuer's, wrong audience     | 401 401    401       401   401       401         401     | 401     401    401 401  401 401
its public key as a secret   | 401 401    401       401   401       401         401     | 401     401    401 401  401 401
another issuer's             | 401 401    401       401   401       401         401     | 401     401    401 401  401 401
signed-out session           | 401 401    401       401   401       401         401     | 401     401    401 401  401 401
kicked user                  | 204 204    204       204   204       204         204     | 401     401    401 401  401 401
session cookie               | 200 200    403       403   403       403         403     | 401     201    200 403  403 200
user token                   | 200 200    403       200   200       403         403     | 401     201    200 403  403 200
user token by an old key     | 200 200    403       200   200       403         403     | 401     201    200 403  403 200
issuer's user                | 200 200    403       200   200       403         403     | 401     201    200 403  403 200
operator token               | 200 200    403       200   200       403         403     | 401     201    200 204  200 200
issuer's operator            | 200 200    403       200   200       403         403     | 401     201    200 204  200 200
another user's token         | 403 200    200       200   200       403         403     | 401     201    404 403  403 200
publish key                  | 401 401    401       401   401       401         401     | 202     401    401 401  401 401
ticket, fresh                | 200 200    403       200   200       403         403     | 401     401    401 401  401 401
ticket, used                 | 401 401    403       401   401       403         403     | 401     401    401 401  401 401
ticket, expired              | 401 401    401       401   401       401         401     | 401     401    401 401  401 401
ticket by a foreign key      | 401 401    401       401   401       401         401     | 401     401    401 401  401 401
ticket, signed-out session   | 401 401    401       401   401       401         401     | 401     401    401 401  401 401
ticket, kicked user          | 204 204    204       204   204       204         204     | 401     401    401 401  401 401
"""  # noqa: E501 - a table


@dataclass
class Site:
    """A running system. `me` is a user with an account, whose session is in `cookie`."""

    url: str
    logs: Path
    me: str = ""
    cookie: str = ""
    secrets: set[str] = field(default_factory=set)

    def register(self) -> None:
        account = {"email": "me@example.org", "name": "Me", "password": "correct horse battery"}
        answer = httpx.post(f"{self.url}/api/accounts", json=account)
        assert answer.status_code == 201, answer.text
        self.me, self.cookie = answer.json()["account"]["id"], answer.json()["token"]

    def holder(self, session: str = "s1", subject: str = "") -> Identity:
        now = time.time()
        return Identity(subject or self.me, session, now + 60, GRANTS, issued_at=now)


Make = Callable[[Site, str], str]
"""Makes what somebody comes in with, for a topic; only a ticket names it."""


@dataclass(frozen=True)
class Credential:
    """`make` gives what is shown, in `way`; the topic of `user` is what the table calls their own."""

    make: Make
    way: str = "bearer"
    user: str = ""

    def call(self, site: Site, http: httpx.Client, method: str, path: str, body: object) -> int:
        headers = self._headers(self._made(site, "system"))
        return http.request(method, path, headers=headers, json=body).status_code

    def stream(self, site: Site, http: httpx.Client, topic: str) -> int:
        topic = topic.format(self.user or site.me)
        secret = self._made(site, topic)
        by_ticket = self.way == "ticket"
        query = {"ticket": secret} if by_ticket else {"topics": topic}
        with http.stream(
            "GET", "/events", params=query, headers={} if by_ticket else self._headers(secret)
        ) as answer:
            if answer.status_code == 200:
                assert b"event: stream.open" in next(answer.iter_raw())
            return answer.status_code

    def _made(self, site: Site, topic: str) -> str:
        secret = self.make(site, topic)
        site.secrets.add(secret)
        return secret

    def _headers(self, secret: str) -> dict[str, str]:
        if self.way == "cookie":
            return {"cookie": f"allim_session={secret}"}
        return bearer(secret) if secret else {}


def by_us(secret: str = SECRET, **changed: Any) -> Make:
    """A token as a service makes it that holds the key."""

    def make(site: Site, _: str) -> str:
        key = OctKey.import_key(secret)
        header = {"alg": "HS256", **changed.get("header", {})}
        return jwt.encode(header, claims(site, **changed.get("claims", {})), key)

    return make


def by_issuer(key: str = "published", name: str = ISSUER, **changed: Any) -> Make:
    def make(site: Site, _: str) -> str:
        return signed("RS256", rsa_key(key), claims(site, **{"iss": name, "aud": "allim", **changed}), kid="k1")

    return make


def claims(site: Site, **changed: Any) -> dict[str, Any]:
    now = time.time()
    return {"sub": site.me, "sid": "s1", "iat": now, "exp": now + 60, "topics": list(GRANTS), **changed}


def unsigned(site: Site, _: str) -> str:
    return f"{encoded({'alg': 'none'})}.{encoded(claims(site))}."


def tampered(site: Site, _: str) -> str:
    head, _, signature = by_us(claims={"sub": MARGARET})(site, "").split(".")
    return f"{head}.{by_us()(site, '').split('.')[1]}.{signature}"


def public_key_as_secret(site: Site, _: str) -> str:
    part = f"{encoded({'alg': 'HS256', 'kid': 'k1'})}.{encoded(claims(site, iss=ISSUER, aud='allim'))}"
    key = rsa_key("published").as_pem(private=False)
    return f"{part}.{in_base64(hmac.digest(key, part.encode(), 'sha256'))}"


def encoded(part: object) -> str:
    return in_base64(json.dumps(part).encode())


def in_base64(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


def signed_out(site: Site, _: str) -> str:
    made = by_us(claims={"sid": "s9"})(site, "")
    assert httpx.delete(f"{site.url}/api/session", headers=bearer(made)).status_code == 204
    return made


def kicked(site: Site, _: str) -> str:
    made = by_us(claims={"sub": "kicked"})(site, "")
    kick(site)
    return made


def kick(site: Site) -> None:
    operator = bearer(by_us(claims={"role": "operator"})(site, ""))
    assert httpx.delete(f"{site.url}/api/users/kicked/streams", headers=operator).status_code == 204


def ticket(secret: str = SECRET, lifetime_s: int = 30, **holder: str) -> Make:
    """A ticket for the topic, whether it may be read or not: that is judged again where it is shown."""

    def make(site: Site, topic: str) -> str:
        return Tickets([secret], lifetime_s).issue(site.holder(**holder), [topic])

    return make


def used_ticket(site: Site, topic: str) -> str:
    made = ticket()(site, topic)
    with httpx.stream("GET", f"{site.url}/events", params={"ticket": made}):
        return made


def ticket_of_signed_out(site: Site, topic: str) -> str:
    signed_out(site, "")
    return ticket(session="s9")(site, topic)


def ticket_of_kicked(site: Site, topic: str) -> str:
    made = ticket(subject="kicked")(site, topic)
    kick(site)
    return made


CREDENTIALS = {
    "nothing": Credential(lambda *_: ""),
    "nonsense": Credential(lambda *_: "nonsense"),
    "expired token": Credential(by_us(claims={"exp": 1})),
    "wrong signature": Credential(tampered),
    "algorithm none": Credential(unsigned),
    "wrong audience": Credential(by_us(claims={"aud": "somebody else"})),
    "key unknown by kid": Credential(by_us(header={"kid": "unknown"})),
    "issuer's, key not in its set": Credential(by_issuer("another")),
    "issuer's, wrong audience": Credential(by_issuer(aud="somebody else")),
    "its public key as a secret": Credential(public_key_as_secret),
    "another issuer's": Credential(by_issuer(name="https://elsewhere.example.org")),
    "signed-out session": Credential(signed_out),
    "kicked user": Credential(kicked, user="kicked"),
    "session cookie": Credential(lambda site, _: site.cookie, way="cookie"),
    "user token": Credential(by_us()),
    "user token by an old key": Credential(lambda site, _: Tokens([OLD_SECRET], 60).issue(site.me, topics=GRANTS)),
    "issuer's user": Credential(by_issuer()),
    "operator token": Credential(by_us(claims={"role": "operator"})),
    "issuer's operator": Credential(by_issuer(role="operator")),
    "another user's token": Credential(by_us(claims={"sub": MARGARET})),
    "publish key": Credential(lambda *_: PUBLISH_KEY),
    "ticket, fresh": Credential(ticket(), way="ticket"),
    "ticket, used": Credential(used_ticket, way="ticket"),
    "ticket, expired": Credential(ticket(lifetime_s=-1), way="ticket"),
    "ticket by a foreign key": Credential(ticket(OTHER_SECRET), way="ticket"),
    "ticket, signed-out session": Credential(ticket_of_signed_out, way="ticket"),
    "ticket, kicked user": Credential(ticket_of_kicked, way="ticket", user="kicked"),
}

# Two systems ----------------------------------------------------------------------------------------------------


class Keys(BaseHTTPRequestHandler):
    """What the outside issuer publishes."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(jwk_set(jwk(rsa_key("published"), "k1")))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Not a word of it."""


@contextmanager
def key_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Keys) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/keys"
        server.shutdown()


@pytest.fixture(scope="module", params=["memory", "cluster"])
def site(request: pytest.FixtureRequest, redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One process by itself, and two replicas over Redis behind nginx."""
    folder = tmp_path_factory.mktemp("matrix")
    with ExitStack() as stack:
        settings: dict[str, Any] = {"jwt_issuer": ISSUER, "jwt_jwks_url": stack.enter_context(key_server())}
        settings |= {"old_secret_keys": OLD_SECRET, "drain_s": 0}
        if request.param == "memory":
            site = Site(stack.enter_context(replica(folder=folder, **settings)).url, folder)
        else:
            options: dict[str, Any] = {"redis_prefix": "matrix", "proxied": False, "folder": folder, **settings}
            site = Site(stack.enter_context(deployment(2, redis=redis, **options)).url, folder)
        site.register()
        publish(site.url, {"topic": "board2", "type": "t", "data": "it exists"})
        yield site


@pytest.fixture
def http(site: Site) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site.url) as client:
        yield client


# The table ------------------------------------------------------------------------------------------------------


def rows() -> dict[str, dict[str, int]]:
    """What is expected, by credential and column."""
    lines = [line.partition("|") for line in TABLE.strip("\n").splitlines()]
    columns = lines[0][2].replace("|", " ").split()
    return {
        name.strip(): dict(zip(columns, map(int, cells.replace("|", " ").split()), strict=True))
        for name, _, cells in lines[1:]
    }


def test_the_table_has_every_credential_topic_and_call() -> None:
    assert rows().keys() == CREDENTIALS.keys()
    for cells in rows().values():
        assert list(cells) == [*TOPICS, *CALLS]


@pytest.mark.parametrize("name", CREDENTIALS)
def test_each_door_opens_to_whom_it_should(site: Site, http: httpx.Client, name: str) -> None:
    credential = CREDENTIALS[name]

    found = {column: credential.stream(site, http, topic) for column, topic in TOPICS.items()}
    found |= {column: credential.call(site, http, *call) for column, call in CALLS.items()}

    assert found == rows()[name]


# What a refusal tells --------------------------------------------------------------------------------------------

HIDDEN = ("user:margaret", "board2", "nosuch:1", "nosuch", "user:nobody", "chat:1")
_CHANGING = {"date", "ratelimit"}


def refused(http: httpx.Client, who: str, topic: str) -> httpx.Response:
    return http.get("/events", params={"topics": topic}, headers={**bearer(who), "x-request-id": "the-same"})


def test_what_is_forbidden_and_what_is_unknown_are_answered_with_the_same_bytes(
    site: Site, http: httpx.Client
) -> None:
    who = by_us()(site, "")

    answers = [refused(http, who, topic) for topic in HIDDEN]
    issued = [
        http.post("/api/tickets", json={"topics": [topic]}, headers={**bearer(who), "x-request-id": "the-same"})
        for topic in HIDDEN
    ]

    for same in (answers, issued):
        told = {
            (a.status_code, a.content, *sorted((k, v) for k, v in a.headers.items() if k not in _CHANGING))
            for a in same
        }
        assert len(told) == 1
        assert same[0].status_code == 403


def test_how_long_a_refusal_takes_does_not_tell_either(site: Site, http: httpx.Client) -> None:
    who = by_us()(site, "")
    took: dict[str, list[float]] = {"board2": [], "nosuch:1": []}

    for _ in range(60):
        for topic, seconds in took.items():
            began = time.perf_counter()
            refused(http, who, topic)
            seconds.append(time.perf_counter() - began)

    forbidden, unknown = (statistics.median(seconds) for seconds in took.values())
    assert abs(forbidden - unknown) < 0.25 * max(forbidden, unknown) + 0.001


@pytest.mark.anyio
async def test_no_log_holds_anything_one_could_come_in_with(site: Site) -> None:
    """Last of all, when everything above has been shown."""
    fresh = ticket()(site, "board")
    async with await Reader.open(site.url, "", query=f"?ticket={fresh}") as stream:
        last = (await stream.next("stream.open")).id
    async with await Reader.open(site.url, "", query=f"?ticket={fresh}", last_event_id=last) as stream:
        assert stream.status == 200

    logs = "".join(path.read_text(errors="replace") for path in site.logs.glob("*.log"))

    secrets = {secret for secret in (*site.secrets, fresh, last.partition("~")[2], SECRET) if len(secret) > 20}
    assert '"path":"/events"' in logs.replace(" ", "")
    assert [secret for secret in secrets if secret in logs] == []
