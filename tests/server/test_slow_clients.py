"""A client that is slow, or opens many connections, gets no more than its share, also without a proxy in front."""

import asyncio
from collections import Counter
from functools import partial

import pytest
from harness.waiting import until
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from allim.access.addresses import network_of_peer
from allim.server import connections, limits
from allim.server.connections import Connections
from tests.server.served import ended, served, uncounted

pytestmark = pytest.mark.anyio

LARGE = bytes(4_000_000)
HEAD = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"


async def show(request: Request) -> Response:
    return PlainTextResponse(f"{len(await request.body())} bytes")


async def show_much(_: Request) -> Response:
    return Response(LARGE)


async def think(request: Request) -> Response:
    await asyncio.sleep(1)
    return PlainTextResponse(f"{len(await request.body())} bytes")


APP = Starlette(
    routes=[
        Route("/", show, methods=["GET", "POST"]),
        Route("/large", show_much),
        Route("/think", think, methods=["POST"]),
    ]
)


@pytest.fixture
def refused() -> Counter[str]:
    return Counter()


@pytest.fixture
def shared(refused: Counter[str], monkeypatch: pytest.MonkeyPatch) -> Connections:
    monkeypatch.setattr(connections, "SWEEP_S", 0.05)
    return uncounted(lambda name: refused.update([name]))


# Bodies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"/", b"/nothing"], ids=["read", "answered before it came"])
async def test_a_body_of_which_a_byte_comes_now_and_then_ends(
    shared: Connections, refused: Counter[str], monkeypatch: pytest.MonkeyPatch, path: bytes
) -> None:
    monkeypatch.setattr(limits, "BODY_GRACE_S", 0.3)
    async with served(APP, shared=shared) as connect:
        reader, writer = await connect()
        writer.write(HEAD % (path, 1000))
        trickling = asyncio.create_task(trickle(writer))
        answer = await ended(reader)
        trickling.cancel()

    assert answer.startswith(b"HTTP/1.1 408 " if path == b"/" else b"HTTP/1.1 404 ")
    assert refused == {"slow_body": 1}


async def trickle(writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(b"a")
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("end", [b"1\r\na\r\n", b"0\r\nx-trailer: "], ids=["chunks", "trailers"])
async def test_a_chunked_body_that_does_not_end_ends(
    shared: Connections, monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    monkeypatch.setattr(limits, "BODY_GRACE_S", 0.3)
    async with served(APP, shared=shared) as connect:
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + end)

        assert (await ended(reader)).startswith(b"HTTP/1.1 408 ")


async def test_a_body_has_more_time_the_more_of_it_comes(
    shared: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BODY_GRACE_S", 0.2)
    monkeypatch.setattr(limits, "BODY_BYTES_PER_S", 100)
    async with served(APP, shared=shared) as connect:
        reader, writer = await connect()
        writer.write(HEAD % (b"/", 1000))
        for _ in range(10):
            writer.write(bytes(100))
            await asyncio.sleep(0.1)

        assert (await reader.readuntil(b"bytes")).endswith(b"1000 bytes")


async def test_no_body_takes_longer_than_the_longest(shared: Connections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.LimitedProtocol, "body_timeout_s", 0.3)
    async with served(APP, shared=shared) as connect:
        reader, writer = await connect()
        writer.write(HEAD % (b"/", 100_000) + bytes(50_000))

        assert (await ended(reader)).startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_the_application_does_not_read_is_not_late(
    shared: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BODY_GRACE_S", 0.2)
    monkeypatch.setattr(limits, "BODY_BYTES_PER_S", 10_000_000)
    async with served(APP, shared=shared) as connect:
        reader, writer = await connect()
        writer.write(HEAD % (b"/think", 1_000_000) + bytes(1_000_000))

        assert (await reader.readuntil(b"bytes")).endswith(b"1000000 bytes")


async def test_a_body_in_time_leaves_the_connection_as_it_was(
    shared: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BODY_GRACE_S", 1.0)
    async with served(APP, shared=shared) as connect:
        reader, writer = await connect()
        for _ in range(3):
            writer.write(HEAD % (b"/", 2) + b"1")
            await asyncio.sleep(0.4)
            writer.write(b"2")
            await reader.readuntil(b"2 bytes")


@pytest.mark.parametrize("path", [b"/nothing", b"/"])
async def test_a_body_without_an_end_is_cut_at_the_limit_of_all(
    shared: Connections, refused: Counter[str], path: bytes
) -> None:
    async with served(APP, shared=shared) as connect:
        reader, writer = await connect()
        writer.write(b"POST %b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % path)
        chunk = b"10000\r\n%b\r\n" % bytes(65536)
        writer.write(chunk * (limits.MAX_BODY_BYTES // 65536 + 1))
        answer = await ended(reader)

    assert answer.startswith(b"HTTP/1.1 404 " if path == b"/nothing" else b"HTTP/1.1 413 ") or not answer
    assert refused == {"body_too_large": 1}


# Answers ----------------------------------------------------------------------------------------------------


async def test_a_client_that_does_not_read_its_answer_is_ended(
    shared: Connections, refused: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SEND_TIMEOUT_S", 0.3)
    async with served(APP, shared=shared) as connect:
        reader, writer = await connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n" * 10)

        await until(lambda: refused == {"slow_reader": 1})
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await ended(reader)) < 10 * len(LARGE)


async def test_a_client_that_reads_slowly_gets_all_of_its_answer(
    shared: Connections, refused: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SEND_TIMEOUT_S", 1.5)
    async with served(APP, shared=shared) as connect:
        reader, writer = await connect()
        writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        read = 0
        while read < len(LARGE):
            read += len(await reader.read(500_000))
            await asyncio.sleep(0.1)

    assert read == len(LARGE)
    assert not refused


# Connections ------------------------------------------------------------------------------------------------


async def test_an_address_has_so_many_connections_and_no_more(refused: Counter[str]) -> None:
    counting = Connections(3, lambda host: host, lambda name: refused.update([name]))
    async with served(APP, shared=counting) as connect:
        first = [await connect() for _ in range(3)]
        for reader, writer in first:
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await reader.readuntil(b"0 bytes")
        over, _ = await connect()
        answer = await ended(over)
        first[0][1].close()

        async def one_more() -> bool:
            reader, writer = await connect()
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            return (await ended(reader)).startswith(b"HTTP/1.1 200 ")

        await until(one_more)

    assert answer.startswith(b"HTTP/1.1 429 ")
    assert b"\r\nretry-after: 5\r\n" in answer
    assert refused["connections_per_address"] >= 1
    assert not counting.open.taken


PROXIES = ("127.0.0.1", "10.0.0.0/8", "2001:db8:1::/64")


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("127.0.0.1", ""),
        ("127.0.0.2", ""),
        ("::1", ""),
        ("10.1.2.3", ""),
        ("::ffff:10.1.2.3", ""),
        ("2001:db8:1::5", ""),
        ("2001:db8:2::5", "2001:db8:2::/64"),
        ("/run/socket", "unknown"),
    ],
)
def test_proxies_and_this_machine_are_not_counted(host: str, network: str) -> None:
    assert partial(network_of_peer, proxies=PROXIES)(host) == network
