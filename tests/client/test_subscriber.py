"""Following a stream: which answers end it, how it resumes, and what proxies do to it."""

import asyncio
import json
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing

import httpx
import pytest
from harness.replicas import PUBLISH_KEY, Replica, token, token_for_topics
from harness.waiting import until

from allim.client import ClientError, Message, Publisher, Subscriber, subscriber
from tests.client.nginx import compressing_nginx
from tests.client.scripted import Answer, Asked, Connection, Server, answer, hang_up, page, problem, scripted, trickle

pytestmark = pytest.mark.anyio

Frame = tuple[str, object]
Token = str | Callable[[], Awaitable[str]]
EVENTS = {"content_type": "text/event-stream", "connection": "close"}


def frames(*all_: Frame) -> bytes:
    return "".join(f"event: {type_}\ndata: {json.dumps(data)}\n\n" for type_, data in all_).encode()


def stream(*all_: Frame, **headers: str) -> Answer:
    """An answer that writes these frames and ends."""
    return answer(200, frames(*all_), **{**EVENTS, **headers})


def opened() -> Frame:
    return "stream.open", {"heartbeat_s": 15}


def close(reason: str, *, reconnect: bool = False) -> Frame:
    return "stream.close", {"reason": reason, "reconnect": reconnect}


KICKED = stream(close("kicked"))


async def follow_until_kicked(
    server: Server, who: Token = "the-token", on_retry: Callable[[str], object] | None = None
) -> list[Message]:
    got: list[Message] = []

    async def follow() -> None:
        async with Subscriber(server.url, who, on_retry=on_retry) as subscriber:
            async for message in subscriber:
                got.append(message)

    with pytest.raises(ClientError, match="kicked"):
        await follow()
    return got


async def refused(server: Server, who: Token = "the-token") -> ClientError:
    """What a subscriber raises that gets no event."""
    async with Subscriber(server.url, who) as subscriber:
        with pytest.raises(ClientError) as caught:
            await anext(aiter(subscriber))
    return caught.value


# -- tokens and endings --------------------------------------------------------------------------------------------


async def test_an_expiring_token_is_told_like_any_event() -> None:
    with scripted(stream(("stream.expiring", {"expires_in_s": 60}), close("kicked"))) as server:
        got = await follow_until_kicked(server)

    assert got[0] == Message("stream.expiring", {"expires_in_s": 60}, "")


async def test_a_function_gives_the_token_of_each_connection() -> None:
    tokens = iter(["t1", "t2", "t3"])

    async def fresh() -> str:
        return next(tokens)

    with scripted(stream(close("rotate", reconnect=True)), page(502), KICKED) as server:
        await follow_until_kicked(server, fresh)

    assert [asked.token for asked in server.asked] == ["t1", "t2", "t3"]


async def test_with_a_function_an_expired_token_is_replaced() -> None:
    tokens = iter(["old", "new"])

    async def fresh() -> str:
        return next(tokens)

    with scripted(stream(close("token_expired")), KICKED) as server:
        await follow_until_kicked(server, fresh)

    assert [asked.token for asked in server.asked] == ["old", "new"]


async def test_a_function_that_finds_no_network_is_asked_again() -> None:
    answers: list[str | Exception] = [httpx.ConnectError("refused"), "the-token"]

    async def fresh() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with scripted(KICKED) as server:
        await follow_until_kicked(server, fresh)

    assert [asked.token for asked in server.asked] == ["the-token"]


async def test_what_a_function_for_the_token_raises_is_raised_to_the_reader() -> None:
    async def broken() -> str:
        raise LookupError("no token today")

    async with Subscriber("http://127.0.0.1:1", broken) as subscriber:
        with pytest.raises(LookupError, match="no token today"):
            await anext(aiter(subscriber))


async def test_a_token_that_no_header_holds_is_refused() -> None:
    async def with_a_line_end() -> str:
        return "token\n"

    with pytest.raises(ValueError, match=r"^token: "):
        Subscriber("http://127.0.0.1:1", "token\n")
    async with Subscriber("http://127.0.0.1:1", with_a_line_end) as subscriber:
        with pytest.raises(ValueError, match=r"^token: "):
            await anext(aiter(subscriber))


# -- which answers are final ---------------------------------------------------------------------------------------


async def test_no_content_says_not_to_come_back() -> None:
    with scripted(answer(204)) as server:
        error = await refused(server)

    assert error.status == 204
    assert "not to come back" in str(error)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 422, 431])
async def test_a_refusal_of_allim_is_final(status: int) -> None:
    with scripted(problem(status)) as server:
        error = await refused(server)

    assert (error.status, str(error)) == (status, "no")
    assert len(server.asked) == 1


PASSING = {
    **{f"problem {status}": problem(status) for status in (408, 425, 429, 500, 503)},
    **{f"page {status}": page(status) for status in (404, 403, 408, 425, 429, 500, 502, 504, 520, 524, 530)},
    "a hang-up": hang_up,
    "an empty stream": stream(),
}


@pytest.mark.parametrize("failure", PASSING.values(), ids=PASSING)
async def test_an_answer_that_may_pass_is_tried_again_and_told(failure: Answer) -> None:
    told: list[str] = []
    with scripted(failure, failure, KICKED) as server:
        await follow_until_kicked(server, on_retry=told.append)

    assert len(server.asked) == 3
    assert len(told) == 2


async def test_a_page_that_lasts_ends_the_following(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber, "FIRST_FOREIGN_S", 0.5)
    with scripted(page(404)) as server:
        error = await refused(server)

    assert error.status == 404
    assert "not from allim; check that this is its URL" in str(error)
    assert len(server.asked) > 1


async def test_pages_that_do_not_follow_each_other_are_passing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber, "FIRST_FOREIGN_S", 0.5)
    with scripted(page(404), page(503, retry_after="1"), page(404), hang_up, page(404), KICKED) as server:
        await follow_until_kicked(server)

    assert len(server.asked) == 6


@pytest.mark.parametrize("kind", ["text/html", "application/json", "text/event-streams", ""])
async def test_an_answer_that_is_no_event_stream_is_an_error_at_once(kind: str) -> None:
    with scripted(answer(200, frames(opened()), content_type=kind)) as server:
        error = await refused(server)

    assert "no event stream" in str(error)
    assert (kind or "none") in str(error)
    assert len(server.asked) == 1


async def test_a_page_with_200_is_passing_once_a_stream_was_open() -> None:
    with scripted(stream(opened()), page(200), KICKED) as server:
        await follow_until_kicked(server)

    assert len(server.asked) == 3


async def test_the_type_of_a_stream_may_have_parameters_and_capitals() -> None:
    with scripted(stream(close("kicked"), content_type="Text/Event-Stream; charset=utf-8")) as server:
        await follow_until_kicked(server)


@pytest.mark.parametrize("status", [429, 503])
async def test_a_follower_comes_back_when_it_is_told_to(status: int) -> None:
    with scripted(page(status, retry_after="1"), KICKED) as server:
        began = time.monotonic()
        await follow_until_kicked(server)

    assert time.monotonic() - began >= 1


@pytest.mark.parametrize(("seconds", "waited_s"), [("60", 60), ("86400", 300), ("soon", 0)])
def test_a_follower_waits_longer_than_a_publish(seconds: str, waited_s: float) -> None:
    assert subscriber._NotNow(httpx.Response(429, headers={"retry-after": seconds})).retry_after_s == waited_s


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_on_the_same_origin_is_followed(status: int) -> None:
    with scripted(answer(status, location="/v2/events"), KICKED) as server:
        await follow_until_kicked(server)

    assert server.asked[1].line == "GET /v2/events HTTP/1.1"
    assert server.asked[1].token == "the-token"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_the_token_goes_to_no_other_origin(status: int) -> None:
    with scripted(KICKED) as other, scripted(answer(status, location=f"{other.url}/events")) as server:
        error = await refused(server)

    assert "another origin" in str(error)
    assert other.asked == []


# -- silence -------------------------------------------------------------------------------------------------------

SLOW = {
    "a head byte by byte": trickle(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1000),
    "a refusal byte by byte": trickle(b"HTTP/1.1 404 Gone\r\ncontent-length: 10000\r\n\r\n" + b"x" * 1000),
    "bytes and no event": trickle(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + b": comment\n\n" * 500
    ),
}


@pytest.mark.parametrize("slow", SLOW.values(), ids=SLOW)
async def test_bytes_without_an_event_are_silence(slow: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber, "_SILENCE_S", 0.5)
    with scripted(slow, KICKED) as server:
        await follow_until_kicked(server)

    assert len(server.asked) == 2


# -- proxies that compress -----------------------------------------------------------------------------------------


def compressed(wbits: int, *all_: Frame, read: "threading.Semaphore | None" = None) -> Answer:
    """Compress each frame by itself and flush; with `read` the next one is written when it is released."""

    def write(asked: Asked, connection: Connection) -> None:
        encoding = "gzip" if wbits > zlib.MAX_WBITS else "deflate"
        packer = zlib.compressobj(wbits=wbits)
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: {encoding}\r\n\r\n"
        connection.write(head.encode())
        for frame in all_:
            connection.write(packer.compress(frames(frame)) + packer.flush(zlib.Z_SYNC_FLUSH))
            if read is not None:
                assert read.acquire(timeout=30)

    return write


WBITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS, "raw deflate": -zlib.MAX_WBITS}


@pytest.mark.parametrize("wbits", WBITS.values(), ids=WBITS)
async def test_a_stream_that_is_compressed_unasked_is_heard_event_by_event(wbits: int) -> None:
    read = threading.Semaphore(0)  # a reader that waits for more than one event would wait for ever
    sent = [opened(), ("t", {"n": "ü" * 1000}), ("t", 2), close("kicked")]
    got: list[Frame] = []

    async def follow() -> None:
        async with Subscriber(server.url, "the-token") as subscriber:
            async for message in subscriber:
                got.append((message.type, message.data))
                read.release()

    with scripted(compressed(wbits, *sent, read=read)) as server, pytest.raises(ClientError, match="kicked"):
        await asyncio.wait_for(follow(), 30)

    assert got == sent
    assert server.asked[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "x-own"])
async def test_an_encoding_that_is_not_decoded_is_an_error_that_names_it(encoding: str) -> None:
    with scripted(answer(200, b"\x1b\x00", **EVENTS, content_encoding=encoding)) as server:
        error = await refused(server)

    assert f"compresses the stream as {encoding}, unasked" in str(error)


async def test_bytes_that_are_not_what_their_encoding_says_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriber, "FIRST_FOREIGN_S", 0)
    with scripted(answer(200, frames(opened()), **EVENTS, content_encoding="gzip")) as server:
        error = await refused(server)

    assert "Content-Encoding: gzip" in str(error)


@pytest.fixture(scope="module")
def nginx(server: Replica) -> Iterator[tuple[str, str]]:
    with compressing_nginx(server.url) as urls:
        yield urls


@pytest.mark.parametrize("insisting", [False, True], ids=["for those who ask", "always"])
async def test_events_come_at_once_through_an_nginx_that_compresses(
    server: Replica, nginx: tuple[str, str], insisting: bool
) -> None:
    url = nginx[insisting]
    who = token(f"gzip-{insisting}")
    topic = f"user:gzip-{insisting}"
    with httpx.stream("GET", f"{url}/events", headers={"authorization": f"Bearer {who}"}) as offered:
        assert offered.headers["content-encoding"] == "gzip"  # so it does compress

    got: list[object] = []
    async with Subscriber(url, who) as subscriber, asyncio.timeout(30):
        with Publisher(url, PUBLISH_KEY) as publisher:
            async for message in subscriber:
                if message.type == "t":
                    got.append(message.data)
                if len(got) == 3:
                    break
                if message.type in ("stream.open", "t"):  # the next comes when this one has been heard
                    publisher.publish(topic, "t", len(got))

    assert got == [0, 1, 2]


# -- against a real replica ----------------------------------------------------------------------------------------


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
