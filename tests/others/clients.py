"""Clients of others: each runs its snippet of docs/clients.md, and every line that it prints is kept."""

import asyncio
import os
import signal
import sys
import threading
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from harness.replicas import ROOT
from playwright.async_api import Browser, ConsoleMessage, Request, async_playwright

from tests.others.pages import Block

NODE_MODULES = Path(__file__).parent / "node_modules"
ROLLDOWN = ROOT / "web" / "node_modules" / ".bin" / "rolldown"  # what Vite bundles with
FOR_BROWSERS = {"@microsoft/fetch-event-source", "event-source-polyfill", "reconnecting-eventsource"}
PROGRAMS = {"js": ["node"], "python": [sys.executable], "bash": ["bash"]}
SUFFIXES = {"js": "mjs", "python": "py", "bash": "sh"}
LINE_BYTES = 1 << 20
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


@dataclass
class Client:
    """A snippet that runs at `url`.

    Shape: each of `lines` is an event: its ID and its data. `returned` is the exit status of a program that ended.
    """

    name: str
    block: Block
    url: str
    subject: str
    token: str
    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    requests: int = 0
    returned: int | None = None

    @property
    def in_a_browser(self) -> bool:
        return self.block.language == "js" and (self.name in FOR_BROWSERS or "import " not in self.block.text)

    @property
    def ids(self) -> list[str]:
        return [line.partition(" ")[0] for line in self.lines]

    @property
    def datas(self) -> list[str]:
        return [line.partition(" ")[2] for line in self.lines]

    def code(self, text: str) -> str:
        """The snippet, or what a bundler made of it, with this service's address and this user's token."""
        return text.replace("https://allim.example.org", self.url).replace("TOKEN", self.token)

    def said(self) -> str:
        lines = [line[:200] for line in (*self.lines[-3:], *self.errors[-15:])]
        return "\n".join([f"{self.name} at {self.url}, exit status {self.returned}", *lines])


@asynccontextmanager
async def running(clients: Sequence[Client], folder: Path, *, origin: str, chromium: str) -> AsyncIterator[None]:
    """All of these, started at the same time; `origin` serves an empty page for those that run in a browser."""
    (folder / "node_modules").symlink_to(NODE_MODULES)
    pages = [client for client in clients if client.in_a_browser]
    async with AsyncExitStack() as stack:
        for number, client in enumerate(clients):
            if not client.in_a_browser:
                await stack.enter_async_context(_program(client, folder / f"client-{number}"))
        if pages:
            blocks = list(dict.fromkeys(client.block for client in pages))
            bundling = (_bundled(block, folder / f"bundle-{number}") for number, block in enumerate(blocks))
            bundles = dict(zip(blocks, await asyncio.gather(*bundling), strict=True))
            playwright = await stack.enter_async_context(async_playwright())
            browser = await playwright.chromium.launch(executable_path=chromium, args=_ARGUMENTS)
            stack.push_async_callback(browser.close)
            for client in pages:
                await _open(browser, client, bundles[client.block], origin)
        yield


@asynccontextmanager
async def _program(client: Client, path: Path) -> AsyncIterator[None]:
    path = path.with_suffix(f".{SUFFIXES[client.block.language]}")
    path.write_text(client.code(client.block.text))
    command = [*PROGRAMS[client.block.language], str(path)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, limit=LINE_BYTES, start_new_session=True
    )
    watching = asyncio.create_task(_watch(client, process))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started as well
        await watching


async def _watch(client: Client, process: asyncio.subprocess.Process) -> None:
    async def note(stream: asyncio.StreamReader | None, lines: list[str]) -> None:
        assert stream is not None
        async for line in stream:
            lines.append(line.decode(errors="replace").rstrip("\n"))

    await asyncio.gather(note(process.stdout, client.lines), note(process.stderr, client.errors))
    client.returned = await process.wait()


async def _bundled(block: Block, folder: Path) -> str:
    """The snippet with what it imports, as a bundler makes one script of it."""
    path = folder / "page.mjs"
    folder.mkdir()
    path.write_text(block.text)
    command = [str(ROLLDOWN), str(path), "--file", str(folder / "bundle.js"), "--format", "esm"]
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    said = await process.communicate()
    assert process.returncode == 0, said
    return (folder / "bundle.js").read_text()


async def _open(browser: Browser, client: Client, bundle: str, origin: str) -> None:
    """A page in a profile of its own, with the session's cookie, as a sign-in would leave it."""
    context = await browser.new_context()
    await context.add_cookies([{"name": "allim_session", "value": client.token, "url": client.url, "httpOnly": True}])
    page = await context.new_page()

    def note(message: ConsoleMessage) -> None:
        (client.lines if message.type == "log" else client.errors).append(message.text)

    def count(request: Request) -> None:
        client.requests += "/events" in request.url

    page.on("console", note)
    page.on("pageerror", lambda error: client.errors.append(str(error)))
    page.on("request", count)
    await page.goto(origin)
    await page.add_script_tag(content=client.code(bundle), type="module")


@contextmanager
def empty_page() -> Iterator[str]:
    """An origin of its own."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _EmptyPage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _EmptyPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Write nothing."""
