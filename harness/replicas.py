"""Real replicas as processes, and raw readers of their streams."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from allim.access.tokens import Tokens
from allim.client import Message, Parser
from harness.leaks import PUBLISH_KEY as PUBLISH_KEY
from harness.leaks import SECRET as SECRET
from harness.leaks import inspect
from harness.servers import end, lasting_port
from harness.waiting import PATIENCE_S, START_S, until_sync

ROOT = Path(__file__).parents[1]


def token(subject: str = "42", lifetime_s: int = 3600, **claims: Any) -> str:
    """As `Tokens.issue` makes it, of a session of its own."""
    return Tokens([SECRET], lifetime_s).issue(subject, **claims)


def token_for_topics(subject: str, *topics: str) -> str:
    """A token as another service would issue it, with extra topics."""
    import time

    from joserfc import jwt
    from joserfc.jwk import OctKey

    claims = {"sub": subject, "exp": int(time.time()) + 3600, "topics": list(topics)}
    return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET))


@dataclass
class Replica:
    """A running replica. `log` holds everything it printed, `prefix` is where it is mounted, `launch` starts its
    process, also again after it ended."""

    port: int
    process: "subprocess.Popen[bytes]"
    log: Path
    prefix: str = ""
    launch: "Callable[[], subprocess.Popen[bytes]] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=PATIENCE_S).text
        samples = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(value) for label, value in samples if all(part in label for part in wanted))

    def rss_kib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert match
        return int(match[1])

    def fds(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def drain(self, timeout_s: float) -> int:
        """SIGTERM; the exit status.

        Raises: subprocess.TimeoutExpired when it does not end in time.
        """
        self.process.terminate()
        return self.process.wait(timeout_s)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End the process that runs now, and look through what all of them logged."""
        end(self.process, timeout_s=30)
        inspect(self.log)

    def start(self) -> None:
        """Start it again on its port, after it ended."""
        assert self.launch is not None
        self.process = self.launch()

    def until_ready(self, timeout_s: float = START_S) -> None:
        until_sync(lambda: _ready(self), timeout_s, what=f"replica ready: {self.log.read_text()[-2000:]}")

    def publish(self, *events: tuple[str, str, object], **headers: str) -> httpx.Response:
        """One event as an object, several as a batch."""
        bodies = [{"topic": topic, "type": type_, "data": data} for topic, type_, data in events]
        body = bodies[0] if len(bodies) == 1 else bodies
        return publish(self.url, body, **headers)


def bearer(who: str) -> dict[str, str]:
    return {"authorization": f"Bearer {who}"}


def ticket(url: str, who: str, *topics: str) -> str:
    """One for a stream of these topics beside the own ones."""
    answer = httpx.post(f"{url}/api/tickets", json={"topics": topics}, headers=bearer(who), timeout=PATIENCE_S)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["ticket"])


def publish(url: str, body: object, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    patience_s = 15  # more than a replica's own deadline
    return httpx.post(f"{url}/api/publish", json=body, headers={**bearer(PUBLISH_KEY), **named}, timeout=patience_s)


@contextmanager
def replica(
    *,
    portable: bool = False,
    mounted: bool = False,
    program: str = "allim serve",
    folder: Path | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    environ: Mapping[str, str] | None = None,
    **settings: object,
) -> Iterator[Replica]:
    """`allim serve`, ready to serve; with `portable` the same application under plain uvicorn, with `mounted` inside
    another one; `program` names a module that takes the place of `allim serve`; `environ` is added to its own;
    `host` must be one that 127.0.0.1 reaches."""
    with ExitStack() as stack:
        home = folder or Path(tempfile.mkdtemp(prefix="allim-replica-"))
        if folder is None:
            stack.callback(shutil.rmtree, home, ignore_errors=True)
        running = launch_replica(
            home,
            portable=portable,
            mounted=mounted,
            program=program,
            host=host,
            port=port,
            environ=environ,
            **settings,
        )
        stack.callback(running.end)
        running.until_ready()
        yield running


def launch_replica(
    home: Path,
    *,
    portable: bool = False,
    mounted: bool = False,
    program: str = "allim serve",
    host: str = "127.0.0.1",
    port: int | None = None,
    environ: Mapping[str, str] | None = None,
    **settings: object,
) -> Replica:
    """A replica that was just started. Who calls this ends its process."""
    port = port or lasting_port()
    log = home / f"replica-{port}.log"
    environ = {
        **os.environ,
        **(environ or {}),
        "ALLIM_DATA_DIR": str(home / "data"),
        "ALLIM_SECRET_KEY": SECRET,
        "ALLIM_PUBLISH_KEYS": f"tests:{PUBLISH_KEY}",
        "ALLIM_SERVER_ID": f"replica-{port}",
        **{f"ALLIM_{name.upper()}": str(value) for name, value in settings.items()},
    }
    where = ["--host", host, "--port", str(port)]
    factory = "tests.contracts.mounted:create" if mounted else "allim.app:create_app"
    # uvicorn's access log has the query string, and with it tickets.
    under_uvicorn = (portable or mounted) and program == "allim serve"
    module = ["uvicorn", "--no-access-log", "--factory", factory] if under_uvicorn else program.split()

    def launch() -> "subprocess.Popen[bytes]":
        with log.open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", *module, *where], env=environ, stdout=out, stderr=out, cwd=ROOT
            )

    return Replica(port, launch(), log, "/notify" if mounted else "", launch)


def _ready(running: Replica) -> bool:
    assert running.process.poll() is None, running.log.read_text()[-3000:]
    try:
        return httpx.get(f"{running.url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@dataclass
class Reader:
    """One stream over a raw socket: every byte is seen as it comes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytearray = field(default_factory=bytearray)
    messages: list[Message] = field(default_factory=list)
    parser: Parser = field(default_factory=Parser)
    chunked: bool = False
    taken: int = 0

    @classmethod
    async def open(
        cls,
        url: str,
        who: str,
        *,
        query: str = "",
        last_event_id: str | None = None,
        receive_bytes: int | None = None,
        head_within_s: float = PATIENCE_S,
        **headers: str,
    ) -> Self:
        """Ask for the stream and read the response head; without a token when `who` is empty."""
        host, port = url.removeprefix("http://").split("/")[0].split(":")
        path = url.removeprefix(f"http://{host}:{port}")
        sock = socket.socket()
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        except BaseException:
            sock.close()
            raise
        # The reader takes no more ahead than its kernel does: one that is not asked to read has stopped reading.
        stream = cls(*await asyncio.open_connection(sock=sock, limit=receive_bytes or 65536))
        lines = [f"GET {path}/events{query} HTTP/1.1", f"host: {host}"]
        lines += [f"authorization: Bearer {who}"] if who else []
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        lines += [f"last-event-id: {last_event_id}"] if last_event_id is not None else []
        stream.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        try:
            async with asyncio.timeout(head_within_s):
                head = (await stream.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except BaseException:
            stream.abort()
            raise
        stream.status = int(head.split(" ", 2)[1])
        stream.headers = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if line)
        stream.chunked = stream.headers.get("transfer-encoding") == "chunked"
        return stream

    async def next(self, type_: str | None = None, timeout_s: float = PATIENCE_S) -> Message:
        """The next message, or the next of a type."""
        async with asyncio.timeout(timeout_s):
            while True:
                while self.taken < len(self.messages):
                    message = self.messages[self.taken]
                    self.taken += 1
                    if type_ is None or message.type == type_:
                        return message
                if not await self._read():
                    raise EOFError("the stream has ended")

    async def rest(self, timeout_s: float = PATIENCE_S) -> list[Message]:
        """What comes until the connection ends."""
        async with asyncio.timeout(timeout_s):
            while await self._read():
                pass
        return self.messages[self.taken :]

    async def sip(self, most: int) -> None:
        """Take at most so many bytes: a reader as slow as the caller."""
        await self._read(most)

    async def _read(self, most: int = 65536) -> bool:
        if self.chunked:
            size = int(await self.reader.readline() or b"0", 16)
            chunk = await self.reader.readexactly(size) if size else b""
            await self.reader.readline()
        else:
            if "content-length" in self.headers:  # otherwise it ends with the connection
                most = min(most, int(self.headers["content-length"]) - len(self.raw))
            chunk = await self.reader.read(most)
        self.raw += chunk
        self.messages += self.parser.feed(chunk)
        return bool(chunk)

    def abort(self) -> None:
        self.writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.abort()


async def moments_of_drain(server: Replica, count: int) -> list[float]:
    """Open streams and send SIGTERM. Returns the seconds after which each stream was told of the drain and ended."""
    streams = [await Reader.open(server.url, token(str(number))) for number in range(count)]
    for stream in streams:
        await stream.next("stream.open")
    began = time.monotonic()
    server.process.terminate()

    async def ended(stream: Reader) -> float:
        assert (await stream.rest())[-1].data == {"reason": "drain", "reconnect": True}
        stream.abort()
        return time.monotonic() - began

    return await asyncio.gather(*map(ended, streams))
