"""Real nginx, from the configuration users run, in front of stub replicas."""

import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import anyio
import httpx
import pytest
from harness.leaks import inspect
from harness.waiting import PATIENCE_S

from allim.up import find_program, nginx_command, private_folder, write_nginx


@dataclass(frozen=True, slots=True)
class Front:
    """A running nginx."""

    url: str
    folder: Path

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=60, trust_env=False)

    def log(self) -> str:
        """All that nginx has written so far, to its log and to stderr."""
        return (self.folder / "output").read_text()


Start = Callable[..., AbstractAsyncContextManager[Front]]

OUTER = """
daemon off;
pid nginx.pid;
error_log stderr crit;
events { }
http {
    client_body_temp_path temp; proxy_temp_path temp;
    fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
    access_log off;
    gzip on; gzip_types *; gzip_proxied any; gzip_min_length 0;
    server {
        listen 127.0.0.1:%d;
        location / { proxy_pass %s; }
    }
}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with private_folder() as folder:
        yield folder


@pytest.fixture
def start(folder: Path) -> Start:
    """Start nginx in front of these addresses; `changed` are texts of its configuration, with others for them."""

    @asynccontextmanager
    async def start(
        *servers: str,
        origins: Sequence[str] = (),
        trusted: Sequence[str] = (),
        changed: Mapping[str, str] = MappingProxyType({}),
    ) -> AsyncIterator[Front]:
        port = free_port()
        listen = f"127.0.0.1:{port}"
        write_nginx(folder / "nginx", listen=listen, servers=servers, origins=origins, trusted=trusted)
        _change(folder / "nginx" / "nginx.conf", changed)
        async with _running(folder / "nginx", folder / "output", port):
            yield Front(f"http://127.0.0.1:{port}", folder)

    return start


@pytest.fixture
def start_outer(folder: Path) -> Start:
    """Start another nginx in front of an address. It compresses all that it may, and buffers as by default."""

    @asynccontextmanager
    async def start(url: str) -> AsyncIterator[Front]:
        outer, port = folder / "outer", free_port()
        outer.mkdir()
        (outer / "nginx.conf").write_text(OUTER % (port, url))
        async with _running(outer, outer / "output", port):
            yield Front(f"http://127.0.0.1:{port}", outer)

    return start


@asynccontextmanager
async def _running(folder: Path, log: Path, port: int) -> AsyncIterator[None]:
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        process = _spawn(folder, output)
        stack.callback(inspect, log)
        stack.callback(_end, process)
        with anyio.fail_after(PATIENCE_S):
            while not _accepts(port):
                assert process.poll() is None, log.read_text()
                await anyio.sleep(0.01)
        yield


@pytest.fixture
def nginx() -> str:
    return find_program("nginx", os.environ)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _change(conf: Path, changed: Mapping[str, str]) -> None:
    text = conf.read_text()
    for old, new in changed.items():
        assert old in text, old
        text = text.replace(old, new)
    conf.write_text(text)


def _spawn(folder: Path, output: BinaryIO) -> subprocess.Popen[bytes]:
    command = nginx_command(find_program("nginx", os.environ), folder)
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # nginx's fast way: streams are cut
    process.wait(timeout=60)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
