"""A real PostgreSQL for tests: its own folder, a free port on loopback, gone at the end."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import asyncpg

_databases = count(1)
# Safe to lose, so as fast as it gets.
_OPTIONS = (
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "max_connections=60",
    "shared_buffers=16MB",
)


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of a fresh server."""
    user = _unprivileged_user()
    folder = Path(tempfile.mkdtemp(prefix="allim-pg-"))
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    _run("initdb", "--no-sync", "--auth=trust", "--username=allim", "--encoding=UTF8", "-D", str(data), user=user)
    port = _free_port()
    options = [
        part for option in (*_OPTIONS, f"port={port}", "listen_addresses=127.0.0.1") for part in ("-c", option)
    ]
    with (folder / "log").open("wb") as log:
        command = [_binary("postgres"), "-D", str(data), "-k", str(folder), *options]
        server = subprocess.Popen(command, user=user, cwd=folder, stdout=log, stderr=log)
    try:
        _wait_for(folder, port, server)
        yield f"postgresql://allim@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGQUIT)  # at once: nothing here is worth writing down
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


async def fresh_database(server_url: str) -> str:
    """The URL of a new, empty database on the server."""
    name = f"test_{next(_databases)}"
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    return server_url.removesuffix("/postgres") + f"/{name}"


def _binary(name: str) -> str:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = str(installed[-1]) if installed else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is missing: install PostgreSQL, on Debian `apt-get install postgresql`")
    return found


def _run(name: str, *arguments: str, user: str | None) -> None:
    subprocess.run([_binary(name), *arguments], user=user, cwd="/", check=True, capture_output=True)


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    known = {line.partition(":")[0] for line in Path("/etc/passwd").read_text().splitlines()}
    return "postgres" if "postgres" in known else "nobody"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(folder: Path, port: int, server: "subprocess.Popen[bytes]") -> None:
    ready = folder / f".s.PGSQL.{port}"
    deadline = time.monotonic() + 20
    pid_file = folder / "data" / "postmaster.pid"
    while not (ready.exists() and "ready" in pid_file.read_text().rpartition("\n")[0].split("\n")[-1]):
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("PostgreSQL did not start:\n" + (folder / "log").read_text())
        time.sleep(0.02)
