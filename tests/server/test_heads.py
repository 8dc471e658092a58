"""A head has an end, in time and in size, also where no proxy stands in front; and so has an idle connection."""

import asyncio
import time
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from allim.server import limits
from allim.server.protocol import HandoverProtocol
from tests.server.served import ended, served

pytestmark = pytest.mark.anyio


async def show(request: Request) -> Response:
    await request.body()
    return Response("here")


APP = Starlette(routes=[Route("/", show, methods=["GET", "POST"])])


async def test_a_silent_and_a_trickling_connection_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_TIMEOUT_S", 0.3)
    async with served(APP) as connect:
        silent, _ = await connect()
        trickling, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nx-")

        assert await ended(silent) == b""
        assert await ended(trickling) == b""


async def test_a_second_head_has_its_own_time_and_a_body_has_none_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEAD_TIMEOUT_S", 0.3)
    async with served(APP) as connect:
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n1")
        await asyncio.sleep(0.4)  # longer than a head may take
        writer.write(b"2")
        assert (await reader.readuntil(b"here")).startswith(b"HTTP/1.1 200 ")
        await asyncio.sleep(0.4)  # between two requests it is uvicorn that waits
        writer.write(b"GET / HTTP/1.1\r\n")

        assert await ended(reader) == b""


async def test_a_head_that_never_ends_is_refused() -> None:
    async with served(APP) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x-more: %b\r\n" % (b"x" * 1000) * 70)

        answer = await ended(reader)

        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b'"code": "head_too_large"' in answer


async def test_a_long_head_within_the_limit_is_read() -> None:
    async with served(APP) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n" + b"x-more: %b\r\n" % (b"x" * 1000) * 50)
        writer.write(b"\r\n")

        assert (await ended(reader)).startswith(b"HTTP/1.1 200 ")


# How long an idle connection stays ------------------------------------------------------------------------------

KEEP_S = 0.4


@pytest.fixture
def kept_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    init = HandoverProtocol.__init__

    def keep_shortly(self: HandoverProtocol, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.timeout_keep_alive = KEEP_S  # type: ignore[assignment]  # uvicorn hands it to `call_later`

    monkeypatch.setattr(HandoverProtocol, "__init__", keep_shortly)


async def stays_as_long_as_said(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ends without another byte, and when it should."""
    start = time.monotonic()
    assert await ended(reader) == b""
    return KEEP_S - 0.05 <= time.monotonic() - start < 2  # uvicorn's own would be 5 s


@pytest.mark.usefixtures("kept_shortly")
@pytest.mark.parametrize("rest", [b"", b"\r\n"], ids=["nothing", "an empty line"])
async def test_an_idle_connection_ends_whatever_came_after_the_last_answer(rest: bytes) -> None:
    async with served(APP) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"here")
        writer.write(rest)

        assert await stays_as_long_as_said(reader)


@pytest.mark.usefixtures("kept_shortly")
async def test_an_idle_connection_ends_also_after_what_might_have_been_taken() -> None:
    async with served(APP, lambda *_: False) as connect:
        reader, writer = await connect()
        writer.write(b"POST /api/publish HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n12")
        await reader.readuntil(b"\r\n\r\nNot Found")

        assert await stays_as_long_as_said(reader)


@pytest.mark.usefixtures("kept_shortly")
async def test_a_connection_is_idle_from_its_last_answer_on() -> None:
    async with served(APP) as connect:
        reader, writer = await connect()
        for _ in range(6):  # over more than that time in all
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"here")
            await asyncio.sleep(KEEP_S * 0.25)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"here")

        assert await stays_as_long_as_said(reader)


@pytest.mark.usefixtures("kept_shortly")
@pytest.mark.parametrize("pause_in", ["head", "body"])
async def test_a_request_that_is_under_way_is_not_cut(pause_in: str) -> None:
    head, rest = b"POST / HTTP/1.1\r\nHost: x\r\n", b"Content-Length: 2\r\n\r\n1"
    async with served(APP) as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"here")
        await asyncio.sleep(KEEP_S * 0.25)
        writer.write(head if pause_in == "head" else head + rest)
        await asyncio.sleep(KEEP_S)  # over the moment in which the connection would have been idle for long enough
        writer.write((rest if pause_in == "head" else b"") + b"2")

        await reader.readuntil(b"here")
        assert await stays_as_long_as_said(reader)


@pytest.mark.parametrize("target", [b"http://x", b"http://x?a", b"x"])
@pytest.mark.parametrize("rest", [b"", b"12"])
async def test_a_target_without_a_path_is_refused(target: bytes, rest: bytes) -> None:
    async with served(APP) as connect:
        reader, writer = await connect()
        writer.write(b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n%b" % (target, rest))

        assert (await ended(reader)).startswith(b"HTTP/1.1 400 ")
