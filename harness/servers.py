"""Real servers for tests: free ports, folders of their own, loopback only, ended by their process ID."""

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis as redis_py

from harness.waiting import START_S, until_sync


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lasting_port() -> int:
    """A free port below those that Linux gives to outgoing connections, so it stays free while its server is down."""
    while True:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class Redis:
    """A redis-server, which may be paused, killed and started again on its port and folder."""

    port: int
    folder: Path
    options: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes]" = field(init=False)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis_py.Redis:
        return redis_py.Redis(port=self.port)

    def start(self, *, emptied: bool = False) -> None:
        """Start it and wait until it has loaded its data; `emptied` removes them first."""
        if emptied:
            shutil.rmtree(self.folder)
            self.folder.mkdir()
        self.spawn()
        self.until_answers()

    def spawn(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self.folder), "--save", ""]
        environ = {**os.environ, **self.environ}
        self.process = subprocess.Popen([*command, *self.options], env=environ, stdout=subprocess.DEVNULL)

    def until_answers(self) -> None:
        until_sync(lambda: _answers(self), START_S, what="redis-server")

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def redis_server(*options: str, port: int | None = None, environ: Mapping[str, str] | None = None) -> Iterator[Redis]:
    """A redis-server without persistence, unless the options say otherwise; `environ` is added to its environment."""
    folder = Path(tempfile.mkdtemp(prefix="allim-redis-"))
    server = Redis(port or lasting_port(), folder, options, environ or {})
    server.spawn()
    try:
        server.until_answers()
        yield server
    finally:
        end(server.process)
        shutil.rmtree(server.folder, ignore_errors=True)


def _answers(server: Redis) -> bool:
    assert server.process.poll() is None, "redis-server ended"
    try:
        with server.client() as client:
            return bool(client.ping())
    except redis_py.ConnectionError:
        return False


def end(process: "subprocess.Popen[bytes]", timeout_s: float = 10.0) -> None:
    """SIGTERM, and SIGKILL for one that is stopped or stuck."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGCONT)
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
