"""A head has an end, in time and in size, also where no proxy stands in front."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from allim.serve import listen
from allim.transports.sse import HandoverProtocol, handover

pytestmark = pytest.mark.anyio

Connect = Callable[[], Coroutine[Any, Any, tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


@asynccontextmanager
async def served() -> AsyncIterator[Connect]:
    async def show(request: Request) -> Response:
        await request.body()
        return Response("here")

    app = Starlette(routes=[Route("/", show, methods=["GET", "POST"])])
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, http=HandoverProtocol, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve([listener]))
    async with asyncio.timeout(5):
        while not server.started:
            await asyncio.sleep(0.01)
    writers = []

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writers.append(writer)
        return reader, writer

    try:
        yield connect
    finally:
        for writer in writers:
            writer.close()
        server.should_exit = True
        await serving


async def ended(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(5):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


async def test_a_silent_and_a_trickling_connection_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "HEAD_TIMEOUT_S", 0.3)
    async with served() as connect:
        silent, _ = await connect()
        trickling, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nx-")

        assert await ended(silent) == b""
        assert await ended(trickling) == b""


async def test_a_second_head_has_its_own_time_and_a_body_has_none_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "HEAD_TIMEOUT_S", 0.3)
    async with served() as connect:
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n1")
        await asyncio.sleep(0.4)  # longer than a head may take
        writer.write(b"2")
        assert (await reader.readuntil(b"here")).startswith(b"HTTP/1.1 200 ")
        await asyncio.sleep(0.4)  # between two requests it is uvicorn that waits
        writer.write(b"GET / HTTP/1.1\r\n")

        assert await ended(reader) == b""


async def test_a_head_that_never_ends_is_refused() -> None:
    async with served() as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x-more: %b\r\n" % (b"x" * 1000) * 70)

        answer = await ended(reader)

        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b'"code": "head_too_large"' in answer


async def test_a_long_head_within_the_limit_is_read() -> None:
    async with served() as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n" + b"x-more: %b\r\n" % (b"x" * 1000) * 50)
        writer.write(b"\r\n")

        assert (await ended(reader)).startswith(b"HTTP/1.1 200 ")


async def test_an_idle_connection_ends_although_an_empty_line_came_after_the_last_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect_and_keep = HandoverProtocol.__init__

    def keep_shortly(self: HandoverProtocol, *args: Any, **kwargs: Any) -> None:
        connect_and_keep(self, *args, **kwargs)
        self.timeout_keep_alive = 1

    monkeypatch.setattr(HandoverProtocol, "__init__", keep_shortly)
    async with served() as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"here")
        writer.write(b"\r\n")

        assert await ended(reader) == b""
