"""The Python client: its parser byte by byte, its retries against a server that fails, its resume over a cut."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allim import client
from allim.client import (
    MAX_ATTEMPTS,
    AsyncPublisher,
    ClientError,
    Message,
    NotConfirmed,
    Parser,
    Published,
    Publisher,
    Subscriber,
)
from tests.replicas import PUBLISH_KEY, Replica, replica, token, token_for_topics
from tests.waiting import until

# -- the parser ----------------------------------------------------------------------------------------------------


def m(data: object, type_: str = "message", id_: str = "") -> Message:
    return Message(type_, data, id_)


@pytest.mark.parametrize(
    ("wire", "messages"),
    [
        (b"", []),
        (b"\n\n\n", []),
        (b"data: 1\n\n", [m(1)]),
        (b"data:1\n\n", [m(1)]),
        (b"data:  1\n\n", [m(1)]),
        (b"data: 1\n", []),
        (b"data: 1\r\n\r\n", [m(1)]),
        (b"data: 1\r\rdata: 2\n\n", [m(1), m(2)]),
        (b"data: 1\r\n\ndata: 2\n\r\n", [m(1), m(2)]),
        (b"\xef\xbb\xbfdata: 1\n\n", [m(1)]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: 1\n\n", []),
        (b"data: 1\n\n\xef\xbb\xbfdata: 2\n\n", [m(1)]),
        (b": a comment\ndata: 1\n:\n\n", [m(1)]),
        (b"event: t\ndata: 1\n\ndata: 2\n\n", [m(1, "t"), m(2)]),
        (b"event: t\n\ndata: 1\n\n", [m(1)]),
        (b"event: a\nevent: b\ndata: 1\n\n", [m(1, "b")]),
        (b"event:\ndata: 1\n\n", [m(1)]),
        (b"event\ndata: 1\n\n", [m(1)]),
        (b"event:  t\ndata: 1\n\n", [m(1, " t")]),
        (b"data: [1,\ndata: 2]\n\n", [m([1, 2])]),
        (b"data\ndata: 1\ndata:\n\n", [m(1)]),
        (b"id: 7\ndata: 1\n\ndata: 2\n\n", [m(1, id_="7"), m(2, id_="7")]),
        (b"id: 7\n\ndata: 1\n\n", [m(1, id_="7")]),
        (b"id: 7\ndata: 1\n\nid\ndata: 2\n\n", [m(1, id_="7"), m(2)]),
        (b"id: 7\ndata: 1\n\nid: 8\0\ndata: 2\n\n", [m(1, id_="7"), m(2, id_="7")]),
        (b"Data: 1\nDATA: 1\n data: 1\ndata : 1\nunknown: 1\n\n", []),
        ('data: "a\u2028b\u2029c\u0085d\x0be\x0c"\n\n'.encode().replace(b"\x0b", b"").replace(b"\x0c", b""),
         [m("a\u2028b\u2029c\u0085de")]),
        ('data: "é€😀"\n\n'.encode(), [m("é€😀")]),
        (b'data: "\xff"\n\n', [m("\ufffd")]),
        (b"data: {\"a\": \"x: y\"}\n\n", [m({"a": "x: y"})]),
    ],
)  # fmt: skip
def test_the_standards_cases(wire: bytes, messages: list[Message]) -> None:
    assert Parser().feed(wire) == messages


@pytest.mark.parametrize(
    ("line", "retry_ms"),
    [
        (b"retry: 1500", 1500),
        (b"retry:0", 0),
        (b"retry: 007", 7),
        (b"retry", None),
        (b"retry:", None),
        (b"retry: -1", None),
        (b"retry: 1.5", None),
        (b"retry: 1e3", None),
        (b"retry: +1", None),
        (b"retry:  1", None),
        (b"retry: 1 ", None),
        (b"retry: 1_000", None),
        ("retry: ١".encode(), None),
        ("retry: ²".encode(), None),
    ],
)
def test_retry_is_digits_and_nothing_else(line: bytes, retry_ms: int | None) -> None:
    parser = Parser()

    parser.feed(line + b"\n\n")

    assert parser.retry_ms == retry_ms


def test_an_id_counts_when_its_event_is_whole() -> None:
    parser = Parser("1-0")

    assert parser.feed(b"id: 2-0\nevent: t\ndata: 1\n") == []
    assert parser.last_event_id == "1-0"
    assert parser.feed(b"\n") == [m(1, "t", "2-0")]
    assert parser.last_event_id == "2-0"


def test_messages_before_the_first_id_have_the_one_resumed_from() -> None:
    assert Parser("1-0").feed(b"data: 1\n\n") == [m(1, id_="1-0")]


lines = st.sampled_from(
    [
        "data: 1",
        "data: [1,",
        "data: 2]",
        "event: t",
        "id: 7",
        "id",
        ": c",
        "retry: 5",
        "",
        "",
        "",
        'data: "é😀\u2028"',
    ]
)
ends = st.sampled_from(["\n", "\r", "\r\n"])


@given(st.lists(st.tuples(lines, ends)), st.lists(st.integers(0, 400)), st.booleans())
def test_any_cut_of_the_bytes_gives_the_same_messages(
    text: list[tuple[str, str]], cuts: list[int], bom: bool
) -> None:
    # Whole JSON values only: what the lines of one event make is not always JSON.
    whole = "".join(line + end for line, end in text)
    wire = (b"\xef\xbb\xbf" if bom else b"") + whole.encode() + b"\n"
    at_once, in_pieces = Parser(), Parser()
    try:
        expected = at_once.feed(wire)
    except json.JSONDecodeError:
        return
    places = sorted({cut % (len(wire) + 1) for cut in cuts})
    pieces = [wire[a:b] for a, b in zip([0, *places], [*places, len(wire)], strict=True)]

    assert [message for piece in pieces for message in in_pieces.feed(piece)] == expected
    assert in_pieces.retry_ms == at_once.retry_ms


def test_byte_by_byte_gives_the_same_messages() -> None:
    wire = '\ufeffid: 1\r\nevent: t\r\ndata: "é😀"\r\n\r\ndata: 2\r\rdata: 3\n\n'.encode()
    parser = Parser()

    messages = [message for index in range(len(wire)) for message in parser.feed(wire[index : index + 1])]

    assert messages == [m("é😀", "t", "1"), m(2, id_="1"), m(3, id_="1")]


# -- publishing ----------------------------------------------------------------------------------------------------

ACCEPTED = {"id": "5-0", "durability": "memory"}


class Service:
    """A server of our own: it answers in this order and remembers what it was asked."""

    def __init__(self, *answers: httpx.Response | httpx.TransportError) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

    @property
    def keys(self) -> set[str]:
        return {request.headers["idempotency-key"] for request in self.asked}


Publish = Callable[..., Awaitable[Published]]
MakePublish = Callable[[Service], Publish]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full jitter that always draws next to nothing."""
    monkeypatch.setattr(client, "BACKOFF_S", 0.001)


@pytest.fixture(params=["sync", "async"])
async def make_publish(request: pytest.FixtureRequest) -> AsyncIterator[MakePublish]:
    """Both publishers, behind one way to call them."""
    opened: list[Publisher | AsyncPublisher] = []

    def make(service: Service) -> Publish:
        transport = httpx.MockTransport(service)
        if request.param == "sync":
            publisher = Publisher("http://allim/", "the-key")
            publisher._http.close()
            publisher._http = httpx.Client(transport=transport)
            opened.append(publisher)

            async def publish(*event: object, batch: bool = False, **named: str) -> Published:
                method = publisher.publish_batch if batch else publisher.publish
                return method(*event, **named)  # type: ignore[arg-type]

            return publish
        asynchronous = AsyncPublisher("http://allim", "the-key")
        asynchronous._http = httpx.AsyncClient(transport=transport)
        opened.append(asynchronous)

        async def publish_async(*event: object, batch: bool = False, **named: str) -> Published:
            method = asynchronous.publish_batch if batch else asynchronous.publish
            return await method(*event, **named)  # type: ignore[arg-type]

        return publish_async

    yield make
    for publisher in opened:
        if isinstance(publisher, Publisher):
            publisher.close()
        else:
            await publisher.close()


@pytest.mark.anyio
async def test_an_event_is_sent_as_json_with_the_key(make_publish: MakePublish) -> None:
    service = Service(httpx.Response(202, json=ACCEPTED))

    published = await make_publish(service)("user:1", "t", {"ü": 1})

    [request] = service.asked
    assert published == Published(("5-0",), "memory")
    assert str(request.url) == "http://allim/api/publish"
    assert request.headers["authorization"] == "Bearer the-key"
    assert json.loads(request.content) == {"topic": "user:1", "type": "t", "data": {"ü": 1}}
    assert len(request.headers["idempotency-key"]) >= 16


@pytest.mark.anyio
async def test_a_batch_is_a_list_and_gives_an_id_each(make_publish: MakePublish) -> None:
    service = Service(httpx.Response(202, json={"ids": ["5-0", "5-1"], "durability": "disk"}))

    published = await make_publish(service)([("a", "t", 1), ("b", "t", 2)], batch=True)

    assert published == Published(("5-0", "5-1"), "disk")
    assert json.loads(service.asked[0].content) == [
        {"topic": "a", "type": "t", "data": 1},
        {"topic": "b", "type": "t", "data": 2},
    ]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "failure",
    [
        httpx.Response(503),
        httpx.Response(502),
        httpx.Response(504),
        httpx.Response(429),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout(""),
        httpx.RemoteProtocolError("cut"),
    ],
    ids=str,
)
async def test_a_failure_that_may_pass_is_tried_again_under_the_same_key(
    make_publish: MakePublish, failure: httpx.Response | httpx.TransportError
) -> None:
    service = Service(failure, failure, httpx.Response(202, json=ACCEPTED))

    assert (await make_publish(service)("a", "t", 1)).ids == ("5-0",)

    assert len(service.asked) == 3
    assert len(service.keys) == 1
    assert len({request.content for request in service.asked}) == 1


@pytest.mark.anyio
async def test_two_calls_have_two_keys_and_a_given_one_is_kept(make_publish: MakePublish) -> None:
    service = Service(httpx.Response(202, json=ACCEPTED))
    publish = make_publish(service)

    await publish("a", "t", 1)
    await publish("a", "t", 1)
    await publish("a", "t", 1, idempotency_key="mine")

    assert len(service.keys) == 3
    assert "mine" in service.keys


@pytest.mark.anyio
@pytest.mark.parametrize("failure", [httpx.Response(503), httpx.ReadTimeout("too slow")], ids=str)
async def test_after_the_last_attempt_it_is_not_confirmed_and_the_key_is_told(
    make_publish: MakePublish, failure: httpx.Response | httpx.TransportError
) -> None:
    service = Service(failure)

    with pytest.raises(NotConfirmed) as caught:
        await make_publish(service)("a", "t", 1)

    assert len(service.asked) == MAX_ATTEMPTS
    assert str(caught.value).endswith(f"key {service.keys.pop()}")


@pytest.mark.anyio
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 500, 200])
async def test_a_refusal_is_final(make_publish: MakePublish, status: int) -> None:
    problem = httpx.Response(
        status, json={"detail": "no", "code": "c"}, headers={"content-type": "application/problem+json"}
    )
    service = Service(problem)

    with pytest.raises(ClientError, match=r"^no$") as caught:
        await make_publish(service)("a", "t", 1)

    assert (caught.value.status, caught.value.problem["code"]) == (status, "c")
    assert len(service.asked) == 1


@pytest.mark.anyio
async def test_a_refusal_that_is_no_problem_still_has_its_status(make_publish: MakePublish) -> None:
    with pytest.raises(ClientError, match="HTTP status 404") as caught:
        await make_publish(Service(httpx.Response(404, text="<html>")))("a", "t", 1)

    assert caught.value.problem == {}


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [("3", 3.0), ("0", 0.0), ("600", 10.0), ("", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0), ("-1", 0.0)],
)
def test_retry_after_is_obeyed_within_reason(retry_after: str, seconds: float) -> None:
    assert client._retry_after_s(httpx.Response(503, headers={"retry-after": retry_after})) == seconds


@pytest.mark.parametrize("data", [float("nan"), object(), {1, 2}])
def test_what_is_no_json_is_never_sent(data: object) -> None:
    with Publisher("http://127.0.0.1:1", "k") as publisher, pytest.raises((ValueError, TypeError)):
        publisher.publish("a", "t", data)


# -- following -----------------------------------------------------------------------------------------------------


class Door:
    """A server that gives these answers to those who follow, each once, and remembers what it was asked."""

    def __init__(self, *answers: httpx.Response) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        return self.answers.pop(0)

    @property
    def tokens(self) -> list[str]:
        return [request.headers["authorization"].removeprefix("Bearer ") for request in self.asked]


def stream(*frames: tuple[str, object]) -> httpx.Response:
    """An answer that writes these frames and ends."""

    async def chunks() -> AsyncIterator[bytes]:
        for type_, data in frames:
            yield f"event: {type_}\ndata: {json.dumps(data)}\n\n".encode()

    return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=chunks())


def close(reason: str, *, reconnect: bool = False) -> tuple[str, object]:
    return "stream.close", {"reason": reason, "reconnect": reconnect}


@asynccontextmanager
async def subscribed(
    door: Door, who: str | Callable[[], Awaitable[str]] = "the-token"
) -> AsyncIterator[AsyncIterator[Message]]:
    async with Subscriber("http://allim", who) as subscriber:
        await subscriber._http.aclose()
        subscriber._http = httpx.AsyncClient(transport=httpx.MockTransport(door))
        yield aiter(subscriber)


async def follow_until_kicked(door: Door, who: str | Callable[[], Awaitable[str]] = "the-token") -> list[Message]:
    got: list[Message] = []

    async def follow() -> None:
        async with subscribed(door, who) as messages:
            async for message in messages:
                got.append(message)

    with pytest.raises(ClientError, match="kicked"):
        await follow()
    return got


@pytest.mark.anyio
async def test_an_expiring_token_is_told_like_any_event() -> None:
    got = await follow_until_kicked(Door(stream(("stream.expiring", {"expires_in_s": 60}), close("kicked"))))

    assert got[0] == m({"expires_in_s": 60}, "stream.expiring")


@pytest.mark.anyio
async def test_a_function_gives_the_token_of_each_connection() -> None:
    tokens = iter(["t1", "t2", "t3"])

    async def fresh() -> str:
        return next(tokens)

    door = Door(stream(close("rotate", reconnect=True)), httpx.Response(502), stream(close("kicked")))
    await follow_until_kicked(door, fresh)

    assert door.tokens == ["t1", "t2", "t3"]


@pytest.mark.anyio
async def test_with_a_function_an_expired_token_is_replaced() -> None:
    tokens = iter(["old", "new"])

    async def fresh() -> str:
        return next(tokens)

    door = Door(stream(close("token_expired")), stream(close("kicked")))
    await follow_until_kicked(door, fresh)

    assert door.tokens == ["old", "new"]


@pytest.mark.anyio
async def test_a_function_that_finds_no_network_is_asked_again() -> None:
    answers: list[str | Exception] = [httpx.ConnectError("refused"), "the-token"]

    async def fresh() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    door = Door(stream(close("kicked")))
    await follow_until_kicked(door, fresh)

    assert door.tokens == ["the-token"]


@pytest.mark.anyio
async def test_what_a_function_for_the_token_raises_is_raised_to_the_reader() -> None:
    async def broken() -> str:
        raise LookupError("no token today")

    async with subscribed(Door(), broken) as messages:
        with pytest.raises(LookupError, match="no token today"):
            await anext(messages)


@pytest.mark.anyio
async def test_no_content_says_not_to_come_back() -> None:
    door = Door(httpx.Response(204))
    async with subscribed(door) as messages:
        with pytest.raises(ClientError, match="not to come back") as caught:
            await anext(messages)

    assert caught.value.status == 204
    assert len(door.asked) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("status", [429, 503])
async def test_a_follower_comes_back_when_it_is_told_to(status: int) -> None:
    door = Door(httpx.Response(status, headers={"retry-after": "1"}), stream(close("kicked")))

    began = time.monotonic()
    await follow_until_kicked(door)

    assert time.monotonic() - began >= 1


def test_a_follower_waits_longer_than_a_publish() -> None:
    def patience(seconds: int) -> float:
        return client._NotNow(httpx.Response(429, headers={"retry-after": str(seconds)})).retry_after_s

    assert [patience(60), patience(86400)] == [60, 300]


# -- against a real replica ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Replica]:
    with replica(heartbeat_s=1, pulse_s=0.2, retry_ms=10, stream_lifetime_s=3600) as running:
        yield running


def test_the_real_server_accepts_and_knows_the_key_again(server: Replica) -> None:
    with Publisher(server.url, PUBLISH_KEY) as publisher:
        first = publisher.publish("user:1", "t", 1, idempotency_key="k1")
        again = publisher.publish("user:1", "t", 1, idempotency_key="k1")
        batch = publisher.publish_batch([("user:1", "t", 2), ("user:1", "t", 3)])
        with pytest.raises(ClientError) as caught:
            publisher.publish("user:1", "t", 2, idempotency_key="k1")

    assert first == again
    assert len(batch.ids) == 2
    assert caught.value.status == 409


def test_a_wrong_key_is_refused(server: Replica) -> None:
    with Publisher(server.url, "wrong") as publisher, pytest.raises(ClientError) as caught:
        publisher.publish("user:1", "t", 1)

    assert caught.value.status == 401


class Cut:
    """A way to the replica that can be cut: every connection through it is aborted at once."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.writers: list[asyncio.StreamWriter] = []
        self.pipes: set[asyncio.Task[None]] = set()
        self.asked: list[bytes] = []

    async def start(self) -> str:
        self.listener = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.listener.sockets[0].getsockname()[1]}"

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers += [writer, far_writer]
        far_writer.write(head)
        try:
            while chunk := await far_reader.read(65536):
                writer.write(chunk)
        except ConnectionError:
            pass
        finally:
            writer.close()
            far_writer.close()

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    async def stop(self) -> None:
        self.cut()
        self.listener.close()
        await self.listener.wait_closed()


@pytest.mark.anyio
async def test_a_subscriber_resumes_over_cuts_and_misses_nothing(server: Replica) -> None:
    way = Cut(server.port)
    url = await way.start()
    got: list[object] = []
    opens: list[str] = []

    async def follow() -> None:
        async with Subscriber(url, token("cut")) as subscriber, aclosing(aiter(subscriber)) as messages:  # type: ignore[type-var]
            async for message in messages:
                if message.type == "stream.open":
                    opens.append(message.data["resume"])
                elif message.type == "t":
                    got.append(message.data)
                if len(got) == 30:
                    return

    following = asyncio.create_task(follow())
    for turn in range(3):
        await until(lambda turn=turn: len(opens) == turn + 1)  # type: ignore[misc]
        for number in range(5):
            server.publish(("user:cut", "t", 10 * turn + number))
        await until(lambda turn=turn: 10 * turn + 4 in got)  # type: ignore[misc,arg-type]
        way.cut()
        for number in range(5, 10):
            server.publish(("user:cut", "t", 10 * turn + number))
    await following
    await way.stop()

    assert got == list(range(30))
    assert opens == ["new", "complete", "complete", "complete"]
    assert [b"last-event-id: " in head.lower() for head in way.asked] == [False, True, True, True]


@pytest.mark.anyio
async def test_a_subscriber_asks_for_its_topics(server: Replica) -> None:
    who = token_for_topics("7", "news:*")
    async with Subscriber(server.url, who, topics=["news:a"]) as subscriber:
        async for message in subscriber:
            if message.type == "stream.open":
                server.publish(("news:b", "t", "no"), ("news:a", "t", "yes"))
            if message.type == "t":
                break

    assert message.data == "yes"
    assert subscriber.last_event_id == message.id


@pytest.mark.anyio
@pytest.mark.parametrize(("who", "topics", "status"), [("garbage", [], 401), (token(), ["secret"], 403)])
async def test_a_subscriber_that_is_refused_does_not_try_again(
    server: Replica, who: str, topics: list[str], status: int
) -> None:
    async with Subscriber(server.url, who, topics=topics) as subscriber:
        with pytest.raises(ClientError) as caught:
            await anext(aiter(subscriber))

    assert caught.value.status == status


@pytest.mark.anyio
async def test_a_stream_that_ends_for_good_is_an_error_after_its_last_message(server: Replica) -> None:
    got: list[str] = []

    async def follow() -> None:
        async with Subscriber(server.url, token("8", lifetime_s=2)) as subscriber:
            async for message in subscriber:
                got.append(message.type)

    with pytest.raises(ClientError, match="token_expired"):
        await follow()

    assert got[-1] == "stream.close"
