"""Real servers for tests: free ports, folders of their own, loopback only, ended by their process ID."""

import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis as redis_py

from tests.waiting import until_sync


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Redis:
    """A running redis-server."""

    port: int
    folder: Path
    process: "subprocess.Popen[bytes]"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis_py.Redis:
        return redis_py.Redis(port=self.port)


@contextmanager
def redis_server(*options: str, port: int | None = None) -> Iterator[Redis]:
    """A redis-server without persistence, unless the options say otherwise."""
    port = port or free_port()
    folder = Path(tempfile.mkdtemp(prefix="allim-redis-"))
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    try:
        server = Redis(port, folder, process)
        until_sync(lambda: _answers(server), what="redis-server")
        yield server
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


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
