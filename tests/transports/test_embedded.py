"""Another application under `allim.server.run`, with allim mounted inside: its streams and its own routes."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from harness.replicas import Reader, Replica, moments_of_drain, replica, token
from harness.waiting import PATIENCE_S, START_S, until
from starlette.types import Receive, Scope, Send
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Message, Request, TextMessage

from allim.server.embedded import HandoverAtStart
from allim.transports.sse.handover import AT_START, EXTENSION

pytestmark = pytest.mark.anyio

STREAMS = 400
DRAIN_S = 3
MOST_KIB = 12


@pytest.fixture(scope="module")
def embedded() -> Iterator[Replica]:
    with replica(mounted=True, program="tests.contracts.embedded") as running:
        yield running


def parent_of(running: Replica) -> str:
    return running.url.removesuffix(running.prefix)


async def test_a_stream_has_the_headers_that_the_middleware_of_the_parent_adds(embedded: Replica) -> None:
    stream = await Reader.open(embedded.url, token("headers"))

    await stream.next("stream.open")
    assert stream.headers["x-parent"] == "here"
    assert stream.headers["x-content-type-options"] == "nosniff"
    assert stream.headers["transfer-encoding"] == "chunked"
    stream.abort()


async def test_what_the_middleware_of_the_parent_refuses_opens_no_stream(embedded: Replica) -> None:
    answer = httpx.get(f"{embedded.url}/events?refused", headers={"authorization": f"Bearer {token('refused')}"})

    assert (answer.status_code, answer.text) == (403, "refused by the parent")
    await until(lambda: embedded.metric("allim_streams_open") == 0, PATIENCE_S, "no stream left")


async def test_the_parent_publishes_to_a_stream_and_once_under_one_key(embedded: Replica) -> None:
    stream = await Reader.open(embedded.url, token("42"))
    await stream.next("stream.open")

    first, again = (httpx.post(f"{parent_of(embedded)}/publish").text for _ in range(2))

    assert first == again
    event = await stream.next("orders.shipped")
    assert (event.id, event.data) == (first, {"orderId": 7})
    stream.abort()


async def test_a_stream_that_was_given_up_leaves_the_connection_to_the_parent() -> None:
    sent: list[Any] = []
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}

    async def give_up(scope: Scope, _: Receive, send: Send) -> None:
        scope["extensions"][AT_START](object()).cancel()
        await send(start)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "http_version": "1.1", "extensions": {EXTENSION: pytest.fail}}
    await HandoverAtStart(give_up)(scope, None, send)  # type: ignore[arg-type]

    assert sent == [start]


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_bodies_for_the_parent_have_no_limit_of_allims(embedded: Replica, method: str) -> None:
    size = 5 * 1024 * 1024

    answer = httpx.request(method, f"{parent_of(embedded)}/count", content=bytes(size), timeout=PATIENCE_S)

    assert answer.text == str(size)


async def test_a_websocket_of_the_parent_opens(embedded: Replica) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", embedded.port)
    client = WSConnection(ConnectionType.CLIENT)
    writer.write(client.send(Request(host="127.0.0.1", target="/echo")))
    said = ""
    async with asyncio.timeout(PATIENCE_S):
        while not said:
            client.receive_data(await reader.read(65536))
            for event in client.events():
                if isinstance(event, AcceptConnection):
                    writer.write(client.send(Message(data="hello")))
                elif isinstance(event, TextMessage):
                    said = event.data
    writer.close()

    assert said == "hello"


async def test_sigterm_drains_the_streams_as_under_allim_serve() -> None:
    with replica(mounted=True, program="tests.contracts.embedded", drain_s=DRAIN_S) as server:
        moments = await moments_of_drain(server, 10)

        await until(lambda: server.process.poll() is not None, START_S, "exit")
        assert max(moments) - min(moments) > 0.2, "all at once"
        assert server.process.returncode == 0


async def opened(running: Replica, name: str, count: int) -> list[Reader]:
    streams = [await Reader.open(running.url, token(f"{name}-{number}")) for number in range(count)]
    for stream in streams:
        await stream.next("stream.open")
    return streams


async def test_an_open_stream_has_no_task_and_no_more_memory_than_under_allim_serve() -> None:
    """A stream that keeps its task, as the portable way does, holds some 40 KiB."""
    with replica(mounted=True, program="tests.contracts.embedded", connections_per_address=5000) as server:
        streams = await opened(server, "warm", 50)
        tasks, memory = server.metric("allim_tasks"), server.rss_kib()
        streams += await opened(server, "user", STREAMS)

        assert server.metric("allim_tasks") == tasks
        assert (server.rss_kib() - memory) / STREAMS < MOST_KIB
        for stream in streams:
            stream.abort()
