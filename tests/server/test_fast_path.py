"""A publish that is answered past ASGI gets, byte for byte, the answer of the usual way, and does the same."""

import asyncio
import json
import logging
import re
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from harness.streams import hub_settings
from harness.waiting import until
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from allim.access.publishers import Publisher, Publishers, SettingsKeys
from allim.access.rates import Policy
from allim.brokers.memory import MemoryBroker, MemoryLedger
from allim.errors import Unavailable
from allim.http import publish
from allim.http.fast_path import Judged
from allim.http.origins import Origins, headers_without_origin
from allim.http.problems import UnexpectedErrors, handlers
from allim.http.requests import WRITE_AT_ONCE, Requests
from allim.http.routing import Paths, exact_paths
from allim.hub import ZERO, Hub, Outcome, Publication
from allim.server.fast_path import FastPath
from allim.server.replica import looking_through
from allim.telemetry import Metrics
from tests.access.gates import AMPLE, ROOMY, rates_of
from tests.server.served import Connect, ended, served

pytestmark = pytest.mark.anyio

LISTED = "https://app.example.org"
SHOP = Publisher("shop", ("user:*",), ("t",))
STORED = "s" + "e" * 43
EVENT = {"topic": "user:1", "type": "t", "data": {"ä": [1, None]}}
BATCH = [EVENT, {**EVENT, "topic": "user:2"}]


class Server:
    """The publishers' route as `allim serve` has it, over a broker in memory; `took` says what went past ASGI."""

    def __init__(
        self,
        broker: MemoryBroker | None = None,
        *,
        limit: Policy = AMPLE,
        ledger: MemoryLedger | None = None,
        listed: Sequence[str] = (),
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        ledger = ledger or MemoryLedger()
        self.broker = broker or MemoryBroker(ledger=ledger)
        self.metrics = Metrics("r1")
        self.took: list[bool] = []
        hub = Hub(self.broker, MemoryLedger(), self.metrics, hub_settings(max_event_bytes=1000))
        keys = SettingsKeys(["orders:key-1", "shop:key-3"], {"shop": SHOP})
        resources = publish.routes(hub, Publishers(keys), rates_of(ledger), limit, lambda: ROOMY)
        known = Starlette(routes=resources, exception_handlers=handlers)
        routed = Paths(known, exact_paths(resources))
        self.app = Requests(UnexpectedErrors(Origins(routed, listed=listed)), leaving=leaving)
        past = {("POST", resource.path): resource.fast_handlers["POST"] for resource in resources}
        headers = headers_without_origin(listed)
        self.fast_path = FastPath(past, headers, leaving, looking_through(["127.0.0.1"]))

    def answer_fast(self, *args: Any) -> bool:
        self.took.append(self.fast_path.answer(*args))
        return self.took[-1]

    @asynccontextmanager
    async def running(self, *, past: bool = True) -> AsyncIterator[Connect]:
        async with served(self.app, self.answer_fast if past else None) as connect:
            yield connect

    async def answer(self, *parts: bytes, past: bool = True) -> bytes:
        async with self.running(past=past) as connect:
            return await exchange(connect, *parts)

    async def stored(self) -> list[bytes]:
        page = await self.broker.read(["user:1", "user:2", "news"], ZERO, 100, 1 << 20)
        return [event.lines for event in page.events]


def post(
    body: object = EVENT, *fields: str, key: str | None = "key-1", first: str = "", version: str = "1.1"
) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [
        first or f"POST /api/publish HTTP/{version}",
        "Host: x",
        "X-Request-ID: r1",
        *([f"Authorization: Bearer {key}"] if key else []),
        *([] if any(field.startswith("Content-Type") for field in fields) else ["Content-Type: application/json"]),
        *([] if any(field.startswith("Transfer-") for field in fields) else [f"Content-Length: {len(content)}"]),
        *fields,
    ]
    return "\r\n".join([*head, "", ""]).encode() + content


LAST = post([], "Connection: close")  # refused, and ends the connection
TAKEN = {
    "one": post(),
    "a batch": post(BATCH),
    "a batch of one": post([EVENT]),
    "with a key": post(EVENT, "Idempotency-Key: k"),
    "a granted one": post(key="key-3"),
    "of a client": post(EVENT, "User-Agent: x/1", "Accept: */*", "Accept-Encoding: gzip", "traceparent: 00-1-2-01"),
    "through a proxy": post(EVENT, "X-Forwarded-For: 10.1.1.1", "X-Forwarded-Proto: https"),
    "a line end behind it": post(json.dumps(EVENT).encode() + b" \r\n"),
    "keeping its connection": post(EVENT, "Connection: keep-alive"),
}
NOT_TAKEN = {
    "with a question": post(first="POST /api/publish?x=1 HTTP/1.1"),
    "escaped": post(first="POST /api/publis%68 HTTP/1.1"),
    "the whole address": post(first="POST http://x/api/publish HTTP/1.1"),
    "the last": post(EVENT, "Connection: close"),
    "old": post(EVENT, version="1.0"),
    "old, keeping its connection": post(EVENT, "Connection: keep-alive", version="1.0"),
    "no key": post(key=None),
    "a wrong key": post(key="key-2"),
    "another scheme": post(EVENT, "Authorization: Basic a2V5LTE=", key=None),
    "two keys": post(EVENT, "Authorization: Bearer key-3"),
    "not granted": post({**EVENT, "topic": "news"}, key="key-3"),
    "one of a batch not granted": post([EVENT, {**EVENT, "type": "x"}], key="key-3"),
    "a wrong event": post({**EVENT, "topic": "A"}),
    "a wrong one in a batch": post([EVENT, {**EVENT, "extra": 1}]),
    "too large": post({**EVENT, "data": "x" * 1000}),
    "an empty batch": post([]),
    "empty": post(b""),
    "no JSON": post(b"{"),
    "another kind": post(EVENT, "Content-Type: text/plain"),
    "the same kind in other words": post(EVENT, "Content-Type: application/json; charset=utf-8"),
    "a malformed idempotency key": post(EVENT, "Idempotency-Key: a b"),
    "of our page": post(EVENT, "Sec-Fetch-Site: same-origin"),
    "of another page": post(EVENT, "Origin: https://elsewhere"),
    "of a listed page": post(EVENT, f"Origin: {LISTED}"),
    "with cookies": post(EVENT, "Cookie: a=1"),
    "in chunks": post(
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(json.dumps(EVENT)), json.dumps(EVENT).encode()), "Transfer-Encoding: chunked"
    ),
    "another method": post(first="PUT /api/publish HTTP/1.1"),
    "another path": post(first="POST /api/publish/ HTTP/1.1"),
}


async def exchange(connect: Connect, *parts: bytes) -> bytes:
    """What is answered to these bytes, sent one after the other, until the connection ends."""
    reader, writer = await connect()
    for part in parts:
        writer.write(part)
        await asyncio.sleep(0.02)
    return await ended(reader)


def published(server: Server) -> float:
    found = re.search(rb"^allim_events_published_total ([0-9.]+)", server.metrics.text(), re.MULTILINE)
    assert found
    return float(found[1])


def comparable(answer: bytes) -> list[list[bytes]]:
    """Without what differs from run to run: dates, positions, what is left of a rate. The order of fields is free."""
    for pattern, instead in ((rb"\r\ndate: [^\r]+", b""), (rb"\d{13}-\d+", b"position"), (rb"r=\d+;t=\d+", b"rate")):
        answer = re.sub(pattern, instead, answer)
    return [sorted(part.split(b"\r\n")) for part in answer.split(b"\r\n\r\n")]


@pytest.mark.parametrize("listed", [(), (LISTED,)], ids=["no page listed", "a page listed"])
async def test_it_is_the_same_answer_and_the_same_is_stored(listed: Sequence[str]) -> None:
    past, usual = Server(listed=listed), Server(listed=listed)
    answers: dict[str, list[Any]] = {}
    taken = set()
    async with past.running() as connect, usual.running(past=False) as connect_usual:
        for name, request in {**TAKEN, **NOT_TAKEN}.items():
            past.took.clear()
            # What comes behind an answer that ends its connection resets it, and may take the answer along.
            ends = b"Connection: close" in request or b"HTTP/1.0" in request
            parts = (request,) if ends else (request, LAST)
            answers[name] = [
                comparable(await exchange(connect, *parts)),
                comparable(await exchange(connect_usual, *parts)),
                await past.stored() == await usual.stored(),
            ]
            if any(past.took):
                taken.add(name)

    assert {name: one for name, (one, _, _) in answers.items()} == {
        name: other for name, (_, other, _) in answers.items()
    }
    assert all(same for _, _, same in answers.values())
    assert taken == set(TAKEN)
    assert {name for name in answers if b"HTTP/1.1 202 Accepted" in answers[name][0][0]} >= taken
    assert published(past) == published(usual) > len(TAKEN)


async def test_a_body_that_comes_later_goes_the_usual_way() -> None:
    server, request = Server(), post()

    assert b" 202 " in await server.answer(request[:-5], request[-5:], LAST)
    assert server.took == []


async def test_a_body_that_is_asked_for_is_asked_for() -> None:
    server, request = Server(), post(EVENT, "Expect: 100-continue")
    head, _, body = request.partition(b"\r\n\r\n")

    answer = await server.answer(head + b"\r\n\r\n", body, LAST)

    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 ")


async def test_pipelined_ones_are_answered_in_their_order() -> None:
    server = Server()

    answer = await server.answer(post() + post(BATCH) + post({}) + post() + post([EVENT], "Connection: close"))

    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"202", b"202", b"422", b"202", b"202"]
    assert re.findall(rb'"ids?":(.)', answer) == [b'"', b"[", b'"', b"["]
    assert len(await server.stored()) == 5
    assert server.took == [True]  # the others came behind it


async def test_a_client_keeps_its_connection() -> None:
    server = Server()

    answer = await server.answer(post(), post(), post([EVENT]), LAST)

    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"202", b"202", b"202", b"422"]
    assert server.took == [True, True, True]


class Slow(MemoryBroker):
    """Stores when it is told, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.asked = 0
        self.error = error

    async def publish(self, publication: Publication) -> Outcome:
        self.asked += 1
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return await super().publish(publication)


async def under_way(connect: Connect, broker: Slow) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The connection of a publish that waits for the store."""
    reader, writer = await connect()
    writer.write(post())
    await until(lambda: broker.asked == 1, what="the store is asked")
    return reader, writer


@pytest.mark.parametrize("error", [None, Unavailable("Redis did not answer")])
@pytest.mark.parametrize("together", [True, False])
async def test_what_comes_behind_one_that_waits_is_answered_behind_it(
    error: Exception | None, together: bool
) -> None:
    broker = Slow(error)
    server, last = Server(broker), post([EVENT], "Connection: close")
    async with server.running() as connect:
        reader, writer = await connect()
        writer.write(post() + (post(BATCH) + last if together else b""))
        await until(lambda: broker.asked == 1, what="the store is asked")
        if not together:
            writer.write(post(BATCH))
            await asyncio.sleep(0.05)
            writer.write(last)
            await asyncio.sleep(0.05)
        assert broker.asked == 1
        broker.go.set()
        answer = await ended(reader)

    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"503" if error else b"202"] * 3
    assert re.findall(rb'"ids?":(.)', answer) == ([] if error else [b'"', b"[", b"["])
    assert broker.asked == 3
    assert server.took == [True]


@pytest.mark.parametrize("garbage", [b"\0garbage\r\n\r\n", b"GET x HTTP/1.1\r\n\r\n"])
async def test_what_stands_before_garbage_is_not_begun(garbage: bytes) -> None:
    server = Server()

    answer = await server.answer(post() + garbage)

    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"400"]
    assert server.took == []
    assert await server.stored() == []


async def test_trailers_are_no_fields_of_the_request() -> None:
    content = json.dumps(EVENT).encode()
    body = b"%x\r\n%b\r\n0\r\nExpect: 100-continue\r\nX-Name: x\r\n\r\n" % (len(content), content)

    answer = await Server().answer(post(body, "Transfer-Encoding: chunked"), LAST)

    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"202", b"422"]


async def test_what_is_told_in_the_usual_way_has_the_scope_of_the_usual_way() -> None:
    scopes: list[Scope] = []
    bodies: list[bytes] = []

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        bodies.append(await Request(scope, receive).body())
        await Response("here")(scope, receive, send)

    def take(_scope: Scope, _body: bytes, _write: object, usual: Callable[[], None], _under_way: object) -> bool:
        asyncio.get_running_loop().call_soon(usual)
        return True

    for asked in (take, None):
        async with served(look, asked) as connect:
            reader, writer = await connect()
            writer.write(post(BATCH, "X-Name: x"))
            async with asyncio.timeout(5):
                await reader.readuntil(b"here")

    late, usual = scopes
    assert bodies[0] == bodies[1] == json.dumps(BATCH).encode()
    offers = [scope.pop("extensions").keys() for scope in scopes]
    assert offers == [{"allim.handover", WRITE_AT_ONCE}] * 2
    assert late.keys() == usual.keys()
    ports = ("client", "server")
    assert {name: value for name, value in late.items() if name not in ports} == {
        name: value for name, value in usual.items() if name not in ports
    }
    assert [late[name][0] for name in ports] == [usual[name][0] for name in ports]


@pytest.mark.parametrize("error", [Unavailable("Redis did not answer"), RuntimeError("a defect")])
async def test_what_the_store_says_is_told_in_the_usual_way(error: Exception) -> None:
    answers = []
    for past in (True, False):
        broker = Slow(error)
        broker.go.set()
        server = Server(broker)
        answers.append(await server.answer(post(), LAST, past=past))
        assert broker.asked == 1
        assert server.took == [True] * past

    assert comparable(answers[0]) == comparable(answers[1])
    assert (b" 503 " if isinstance(error, Unavailable) else b" 500 ") in answers[0]
    assert b"ratelimit: " not in answers[0].partition(b"HTTP/1.1 422")[0], "it is not known what was charged"


async def test_what_is_known_under_its_key_with_other_content_is_a_conflict() -> None:
    requests = post(EVENT, "Idempotency-Key: k"), post(BATCH, "Idempotency-Key: k"), LAST
    past, usual = Server(), Server()

    answers = [await past.answer(*requests), await usual.answer(*requests, past=False)]

    assert comparable(answers[0]) == comparable(answers[1])
    assert re.findall(rb"HTTP/1.1 (\d+)", answers[0]) == [b"202", b"409", b"422"]
    assert past.took == [True, True]


async def test_a_rate_is_refused_alike() -> None:
    past, usual = [Server(limit=Policy("publish", 1, 60)) for _ in range(2)]

    answers = [await past.answer(post(), post(), LAST), await usual.answer(post(), post(), LAST, past=False)]

    assert comparable(answers[0]) == comparable(answers[1])
    assert re.findall(rb"HTTP/1.1 (\d+)", answers[0]) == [b"202", b"429", b"429"]
    assert answers[0].count(b"ratelimit: ") == 3
    assert past.took == [True, True]


async def test_what_a_client_that_leaves_has_published_stays_published(caplog: pytest.LogCaptureFixture) -> None:
    broker = Slow()
    server = Server(broker)
    async with server.running() as connect:
        _, writer = await under_way(connect, broker)
        writer.close()
        await asyncio.sleep(0.05)
        broker.go.set()
        await until(lambda: published(server) == 1, what="it is stored")
        await asyncio.sleep(0.05)

    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_replica_that_leaves_takes_none_and_ends_the_connection() -> None:
    server = Server(leaving=lambda: True)

    answer = await server.answer(post())

    assert b"\r\nconnection: close\r\n" in answer
    assert server.took == [False]


async def test_one_that_begins_to_leave_meanwhile_ends_the_connection() -> None:
    broker = Slow()
    left: list[bool] = []
    server = Server(broker, leaving=lambda: bool(left))
    async with server.running() as connect:
        reader, _ = await under_way(connect, broker)
        left.append(True)
        broker.go.set()
        answer = await ended(reader)

    assert server.took == [True]
    assert b" 202 " in answer
    assert b"\r\nconnection: close\r\n" in answer


async def test_a_stop_waits_for_what_is_under_way() -> None:
    broker = Slow()
    server = Server(broker)
    async with server.running() as connect:
        await under_way(connect, broker)
        asyncio.get_running_loop().call_later(0.3, broker.go.set)

    assert len(await server.stored()) == 1


async def test_a_defect_is_answered_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    entries = publish._entries

    def fail_for_a_batch(*args: Any) -> Any:
        asked.append(args[-1])
        if args[-1] == BATCH:
            raise RuntimeError("a defect")
        return entries(*args)

    monkeypatch.setattr(publish, "_entries", fail_for_a_batch)
    server = Server()

    answer = await server.answer(post(), post(BATCH), post([EVENT]), LAST)

    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"202", b"500", b"202", b"422"]
    assert server.took == [True, False, True]
    assert asked.count(BATCH) == 2  # once past ASGI, once in the usual way, which tells it


async def test_a_line_says_how_long_it_took_from_the_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    broker = Slow(Unavailable("Redis did not answer"))
    asyncio.get_running_loop().call_later(0.3, broker.go.set)

    assert b" 503 " in await Server(broker).answer(post(), LAST)
    told = re.search(r"duration_ms=([0-9.]+)", capsys.readouterr().out)
    assert told
    assert 200 < float(told[1]) < 2000


def test_an_error_of_many_requests_keeps_its_traceback_short() -> None:
    error = Unavailable("Redis did not answer")
    lengths = []
    for _ in range(3):
        with pytest.raises(Unavailable):
            Judged(error, {}).response()
        lengths.append(len(traceback.extract_tb(error.__traceback__)))

    assert lengths[0] == lengths[1] == lengths[2]
