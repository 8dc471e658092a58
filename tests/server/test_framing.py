"""A request ends where it says, and one connection may send only a little ahead of its answers."""

import asyncio
from collections import Counter

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from allim.server import limits
from tests.server.served import ended, served, uncounted

pytestmark = pytest.mark.anyio

WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
H2C = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
HIDDEN = b"DELETE /asked HTTP/1.1\r\nHost: a\r\n\r\n"
ASK = b"GET /asked HTTP/1.1\r\nHost: a\r\n\r\n"


class Server:
    """An application that answers with the request's method and length, and remembers it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.refused: Counter[str] = Counter()
        self.shared = uncounted(lambda name: self.refused.update([name]))
        self.app = Starlette(
            routes=[Route("/asked", self.show, methods=["GET", "POST", "DELETE"]), Route("/late", self.show_late)]
        )

    async def show(self, request: Request) -> Response:
        body = await request.body()
        self.asked.append((request.method, body))
        return PlainTextResponse(f"{request.method} {len(body)} {request.query_params.get('n', '')}!")

    async def show_late(self, request: Request) -> Response:
        await asyncio.sleep(0.5)
        return await self.show(request)

    async def answers(self, *pieces: bytes) -> bytes:
        """Everything that comes back over one connection until it ends."""
        async with served(self.app, shared=self.shared) as connect:
            reader, writer = await connect()
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.05)
            return await ended(reader)


@pytest.fixture
def server() -> Server:
    return Server()


# Upgrade ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [WEBSOCKET, H2C])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("together", [True, False], ids=["in one piece", "a moment later"])
async def test_the_body_of_a_request_with_upgrade_is_its_body_and_the_connection_ends(
    server: Server, fields: bytes, version: bytes, together: bool
) -> None:
    head = b"POST /asked HTTP/%b\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n" % (version, fields, len(HIDDEN))
    pieces = [head + HIDDEN + HIDDEN] if together else [head, HIDDEN, HIDDEN]

    answers = await server.answers(*pieces)

    assert server.asked == [("POST", HIDDEN)]
    assert answers.count(b"HTTP/1.1 ") == answers.count(b"HTTP/1.1 200 ") == 1
    assert b"\r\nconnection: close\r\n" in answers


@pytest.mark.parametrize("fields", [WEBSOCKET, H2C])
async def test_a_chunked_body_behind_an_upgrade_is_its_body(server: Server, fields: bytes) -> None:
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)
    head = b"POST /asked HTTP/1.1\r\nHost: a\r\n%bTransfer-Encoding: chunked\r\n\r\n" % fields

    answers = await server.answers(head, chunk, HIDDEN)

    assert server.asked == [("POST", HIDDEN)]
    assert answers.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("fields", [WEBSOCKET, H2C])
async def test_a_request_with_upgrade_and_no_body_is_answered_and_nothing_behind_it(
    server: Server, fields: bytes
) -> None:
    answers = await server.answers(ASK + b"GET /asked?n=2 HTTP/1.1\r\nHost: a\r\n%b\r\n" % fields + HIDDEN)

    assert server.asked == [("GET", b""), ("GET", b"")]
    assert answers.index(b"GET 0 !") < answers.index(b"GET 0 2!")
    assert answers.count(b"connection: close") == 1


async def test_a_tunnel_is_refused_and_nothing_behind_it_is_read(server: Server) -> None:
    answers = await server.answers(b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n" + HIDDEN)

    assert answers.startswith(b"HTTP/1.1 400 ")
    assert not server.asked


async def test_a_request_that_was_answered_before_its_expected_body_ends_its_connection(server: Server) -> None:
    head = b"POST /nothing HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN)

    answers = await server.answers(head)

    assert answers.startswith(b"HTTP/1.1 404 ")
    assert b"\r\nconnection: close\r\n" in answers


async def test_an_expected_body_that_comes_keeps_the_connection(server: Server) -> None:
    async with served(server.app) as connect:
        reader, writer = await connect()
        writer.write(b"POST /asked HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"12")
        assert b"connection: close" not in await reader.readuntil(b"POST 2 !")
        writer.write(ASK)
        await reader.readuntil(b"GET 0 !")


# Host and bodies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b"Host: a\r\nHost: a\r\n",
        b"Host: " + b"a" * 7000 + b"\r\n",
        b"Host: a/b\r\n",
        b"Host: a b\r\n",
        b"Host: user@a\r\n",
        b"Host: a,b\r\n",
        b"Host: a:1:2\r\n",
        b"Host: a:123456\r\n",
        b"Host: \r\n",
    ],
)
async def test_what_is_no_host_is_refused(server: Server, fields: bytes) -> None:
    answers = await server.answers(b"GET /asked HTTP/1.1\r\n%b\r\n" % fields)

    assert answers.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in answers
    assert not server.asked
    assert server.refused == {"bad_host": 1}


@pytest.mark.parametrize(
    "host", [b"a", b"app.example.org:8443", b"127.0.0.1:80", b"[::1]", b"[fe80::1%eth0]:8000", b"my_app", b"a:"]
)
async def test_a_host_is_taken(server: Server, host: bytes) -> None:
    answers = await server.answers(b"GET /asked HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % host)

    assert answers.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"DELETE", b"OPTIONS"])
@pytest.mark.parametrize(
    "body",
    [
        [b"Content-Length: 2\r\n\r\n12"],
        [b"Content-Length: 2\r\n\r\n"],
        [b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n1\r\n"],
    ],
)
async def test_a_method_without_a_body_is_refused_with_one(server: Server, method: bytes, body: list[bytes]) -> None:
    answers = await server.answers(ASK + b"%b /asked HTTP/1.1\r\nHost: a\r\n" % method + body[0], *body[1:])

    assert server.asked == [("GET", b"")]
    assert answers.index(b"HTTP/1.1 200 ") < answers.index(b"HTTP/1.1 400 ")
    assert server.refused == {"body_not_allowed": 1}


@pytest.mark.parametrize("body", [b"Content-Length: 0\r\n\r\n", b"\r\n"])
async def test_an_empty_body_is_none(server: Server, body: bytes) -> None:
    answers = await server.answers(b"DELETE /asked HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + body)

    assert answers.startswith(b"HTTP/1.1 200 ")


# Pipelining ---------------------------------------------------------------------------------------------------------


async def test_a_thousand_requests_sent_ahead_are_answered_in_order(server: Server) -> None:
    """A megabyte, which is read in several pieces."""
    request = "POST /asked?n={} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + "x" * 1000
    async with served(server.app) as connect:
        reader, writer = await connect()
        writer.write("".join(map(request.format, range(1000))).encode())

        for number in range(1000):
            assert (await reader.readuntil(b"!")).endswith(b"\r\n\r\nPOST 1000 %d!" % number)


async def test_a_body_that_comes_behind_a_pipeline_belongs_to_its_request(server: Server) -> None:
    async with served(server.app) as connect:
        reader, writer = await connect()
        writer.write(ASK * 100 + b"POST /asked HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n")
        for _ in range(100):
            await reader.readuntil(b"GET 0 !")
        writer.write(bytes(300_000) + ASK)

        await reader.readuntil(b"POST 300000 !")
        await reader.readuntil(b"GET 0 !")


async def test_a_head_that_waits_behind_a_pipeline_is_not_late(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEAD_TIMEOUT_S", 0.3)
    async with served(server.app) as connect:
        reader, writer = await connect()
        writer.write(ASK.replace(b"asked", b"late") + ASK + ASK[:20])
        await asyncio.sleep(0.1)
        writer.write(ASK[20:])

        for _ in range(3):
            await reader.readuntil(b"GET 0 !")
