"""An application under uvicorn with our protocol, on a port of its own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import uvicorn
from harness.waiting import PATIENCE_S
from starlette.types import ASGIApp

from allim.server.connections import Connections
from allim.server.protocol import AnswerFast, HandoverProtocol
from allim.server.replica import listen

Connect = Callable[[], Coroutine[Any, Any, tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


def uncounted(refused: Callable[[str], None] = lambda _: None) -> Connections:
    """Return shared limits that count no address."""
    return Connections(1, lambda _: "", refused)


@asynccontextmanager
async def served(
    app: ASGIApp, answer_fast: AnswerFast | None = None, shared: Connections | None = None
) -> AsyncIterator[Connect]:
    listener = listen("127.0.0.1", 0)
    paths = {(b"POST", b"/api/publish")} if answer_fast else ()
    protocol: Any = partial(HandoverProtocol, shared=shared or uncounted(), answer_fast=answer_fast, paths=paths)
    config = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    async with asyncio.timeout(PATIENCE_S):
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
    """What came until the other side ended the connection."""
    async with asyncio.timeout(PATIENCE_S):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
