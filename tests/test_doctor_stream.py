"""`allim doctor --url`: a stream that comes as it should, and every way in which it does not."""

import asyncio
import ssl
import subprocess
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path

import httpx
import pytest
from harness.clocks import wall_clock
from harness.replicas import SECRET, Replica, replica, token
from harness.servers import free_port
from harness.waiting import until_sync

from allim.doctor import Finding, examine
from tests.client.nginx import compressing_nginx
from tests.client.scripted import Asked, Connection, scripted

pytestmark = pytest.mark.anyio

HEARTBEAT_S = 2
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"

Pass = Callable[[bytes], Awaitable[bytes]]


@pytest.fixture(scope="module")
def server() -> Iterator[Replica]:
    with replica(heartbeat_s=HEARTBEAT_S, pulse_s=0.5) as running:
        yield running


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"ALLIM_DATA_DIR": str(tmp_path), "ALLIM_SECRET_KEY": SECRET, "ALLIM_HEARTBEAT_S": str(HEARTBEAT_S)}


async def stream(environ: dict[str, str], url: str, who: str | None = None) -> Finding:
    return await finding_of("stream", environ, url, who)


async def finding_of(what: str, environ: dict[str, str], url: str, who: str | None = None) -> Finding:
    [finding] = [finding for finding in await examine(environ, url, who) if finding.subject == what]
    return finding


@asynccontextmanager
async def answering(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """The address of a server that answers each connection so."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with listening:
        scheme, port = "https" if tls else "http", listening.sockets[0].getsockname()[1]
        yield f"{scheme}://127.0.0.1:{port}"


@asynccontextmanager
async def proxy(server: Replica, passes: Pass) -> AsyncIterator[str]:
    """The address of a proxy before the replica that passes on what `passes` makes of each piece of the answer."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_server = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            to_server.write(await reader.readuntil(b"\r\n\r\n"))
            writer.write(await behind.readuntil(b"\r\n\r\n"))
            while piece := await behind.read(65536):
                writer.write(await passes(piece))
        finally:
            to_server.close()

    async with answering(forward) as url:
        yield url


def saying(answer: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    return say


async def plain_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Whatever comes is no request."""
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await writer.drain()


async def test_a_stream_that_comes_frame_by_frame(environ: dict[str, str], server: Replica) -> None:
    finding = await stream(environ, server.url)

    assert finding.ok, finding
    assert finding.detail.startswith("stream.open after ")
    assert f" ms from replica-{server.port}, then 2 heartbeats, " in finding.detail


async def test_a_first_frame_that_is_held_back(environ: dict[str, str], server: Replica) -> None:
    held = False

    async def hold(piece: bytes) -> bytes:
        nonlocal held
        if not held:
            held = True
            await asyncio.sleep(3)
        return piece

    async with proxy(server, hold) as url:
        finding = await stream(environ, url)

    assert not finding.ok
    assert finding.detail.startswith("the first frame came after 3.")
    assert "proxy_buffering off" in finding.advice


async def test_frames_that_come_in_pairs(environ: dict[str, str], server: Replica) -> None:
    kept = bytearray()

    async def pair(piece: bytes) -> bytes:
        kept.extend(piece)
        if b"stream.open" in kept or kept.count(b"event: heartbeat") == 2:
            both = bytes(kept)
            kept.clear()
            return both
        return b""

    async with proxy(server, pair) as url:
        finding = await stream(environ, url)

    assert not finding.ok
    assert finding.detail.startswith(("two heartbeats came together (", "no heartbeat for "))
    assert "proxy_buffering off" in finding.advice


async def test_frames_after_the_first_that_do_not_come(environ: dict[str, str], server: Replica) -> None:
    async def first_alone(piece: bytes) -> bytes:
        return piece if b"stream.open" in piece else b""

    async with proxy(server, first_alone) as url:
        finding = await stream(environ, url)

    assert (finding.ok, finding.detail) == (False, "no heartbeat for 5 s; one is due every 2 s")


async def test_no_frame_at_all(environ: dict[str, str], server: Replica) -> None:
    async def nothing(_: bytes) -> bytes:
        return b""

    async with proxy(server, nothing) as url:
        finding = await stream({**environ, "ALLIM_HEARTBEAT_S": "1"}, url)

    assert (finding.ok, finding.detail) == (False, "no frame within 4 s")


@pytest.mark.parametrize(
    ("answer", "detail", "advice"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n", "HTTP 502 Bad Gateway", "see that replicas run"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "HTTP 404 Not Found", "there is no /events"),
        (
            b"HTTP/1.1 301 Moved\r\nlocation: https://app.example/events\r\ncontent-length: 0\r\n\r\n",
            "HTTP 301 Moved Permanently",
            "give the address that it leads to: https://app.example/events",
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nhi",
            "the answer is no event stream but text/html",
            "give the address of nginx",
        ),
        (STREAM + b"content-encoding: gzip\r\n\r\n", "was not asked for: gzip", "switch compression off"),
        (STREAM + b"\r\nretry: 2000\n\n", "the proxy answers in place of a replica", "see that replicas run"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "does not answer as HTTP does", "https:// in --url"),
        (b"", "does not answer as HTTP does", "https:// in --url"),
    ],
    ids=["502", "404", "301", "page", "compressed", "nginx", "ssh", "closed"],
)
async def test_an_answer_that_is_no_stream(environ: dict[str, str], answer: bytes, detail: str, advice: str) -> None:
    async with answering(saying(answer)) as url:
        finding = await stream(environ, url)

    assert not finding.ok
    assert detail in finding.detail
    assert finding.advice.startswith(advice)


@pytest.mark.parametrize(
    ("url", "detail"),
    [
        ("http://127.0.0.1:{port}", "refuses the connection"),
        ("http://no-such-host.invalid", "there is no host of this name"),
        ("app.example.org", "is no http:// or https:// address"),
        ("ftp://app.example.org", "is no http:// or https:// address"),
    ],
)
async def test_a_server_that_is_not_reached(environ: dict[str, str], url: str, detail: str) -> None:
    finding = await stream(environ, url.format(port=free_port()))

    assert not finding.ok
    assert detail in finding.detail


async def test_tls_that_is_not_trusted_and_tls_that_is_not_there(environ: dict[str, str], tmp_path: Path) -> None:
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 2 -subj /CN=127.0.0.1"
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run(["openssl", *made.split(), *files], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")

    async with answering(saying(b""), tls) as url:
        untrusted = await stream(environ, url)
    async with answering(plain_http) as url:
        plain = await stream(environ, url.replace("http:", "https:"))

    assert "its certificate is not trusted: " in untrusted.detail
    assert "no TLS there" in plain.detail
    assert (untrusted.ok, plain.ok) == (False, False)


async def test_a_secret_key_of_another_shell(environ: dict[str, str], server: Replica) -> None:
    finding = await stream({**environ, "ALLIM_SECRET_KEY": SECRET[::-1]}, server.url)

    assert not finding.ok
    assert finding.detail.endswith("(the secret key is another)")
    assert "ALLIM_SECRET_KEY" in finding.advice


def dated(running: Replica, ahead_s: float) -> bool:
    """Whether the replica's answers are dated so far ahead."""
    date = httpx.get(f"{running.url}/healthz").headers["date"]
    return abs(parsedate_to_datetime(date).timestamp() - time.time() - ahead_s) < 60


async def test_a_clock_that_differs_is_not_taken_for_another_secret_key(environ: dict[str, str]) -> None:
    findings = []
    with wall_clock() as clock, replica(heartbeat_s=HEARTBEAT_S, environ=clock.environ) as running:
        for ahead_s in (1800, -1800):
            clock.shift(ahead_s)
            until_sync(partial(dated, running, ahead_s), what="answers with the new date")
            findings.append(await stream(environ, running.url))

    for finding in findings:
        assert not finding.ok
        assert "(the secret key is right, and the clocks differ by 1" in finding.detail
        assert "NTP" in finding.advice


async def test_a_given_token_opens_the_stream(environ: dict[str, str], server: Replica) -> None:
    good = await stream({**environ, "ALLIM_SECRET_KEY": SECRET[::-1]}, server.url, token())
    bad = await stream(environ, server.url, "garbage")

    assert good.ok, good
    assert (bad.ok, bad.detail) == (False, "HTTP 401 Unauthorized: The token is not valid; sign in again.")


async def test_a_proxy_that_compresses_is_told(environ: dict[str, str], server: Replica) -> None:
    with compressing_nginx(server.url) as (compressing, insisting):
        plain = await finding_of("compression", environ, server.url)
        flushed = await finding_of("compression", environ, compressing)
        unasked = await finding_of("stream", environ, insisting)

    assert plain == Finding("compression", True, "streams are not compressed")
    assert (flushed.ok, flushed.detail) == (True, "a proxy compresses streams: gzip")
    assert "text/event-stream" in flushed.advice
    assert (unasked.ok, unasked.detail) == (False, "the stream is compressed, which was not asked for: gzip")


async def test_a_proxy_that_keeps_back_what_it_compresses(environ: dict[str, str]) -> None:
    def plain(asked: Asked, connection: Connection) -> None:
        assert asked.headers["accept-encoding"] == "identity"
        connection.write(STREAM + b'\r\nevent: stream.open\ndata: {"replica":"r1","heartbeat_s":0.5}\n\n')
        while not connection.ended.wait(0.5):
            connection.write(b"event: heartbeat\ndata: {}\n\n")

    def packed(asked: Asked, connection: Connection) -> None:
        packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
        connection.write(STREAM + b"content-encoding: gzip\r\n\r\n" + packer.compress(b"data: 1\n\n"))
        connection.ended.wait()

    with scripted(plain, packed) as proxy:
        finding = await finding_of("compression", environ, proxy.url)

    assert not finding.ok
    assert "Content-Encoding: gzip" in finding.detail
