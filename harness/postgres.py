"""Real PostgreSQL servers for tests, with a streaming standby and PgBouncer where a test wants them.

Each has its own folder and a free port on loopback, and is gone at the end.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import asyncpg
import pytest

from harness.servers import end, lasting_port
from harness.waiting import START_S, accepts, until_sync

_databases = count(1)
# Safe to lose, so as fast as it gets.
_OPTIONS = (
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "max_connections=60",
    "shared_buffers=16MB",
)


@dataclass
class Postgres:
    """A server, or a standby of one. It may be stopped, killed and started again on its port and folder."""

    port: int
    folder: Path
    options: Sequence[str] = ()
    process: "subprocess.Popen[bytes]" = field(init=False)

    @property
    def url(self) -> str:
        return f"postgresql://allim@127.0.0.1:{self.port}/postgres"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Start it and wait until it lets clients in."""
        named = (*_OPTIONS, *self.options, f"port={self.port}", "listen_addresses=127.0.0.1")
        options = [part for option in named for part in ("-c", option)]
        command = [_binary("postgres"), "-D", str(self.data), "-k", str(self.folder), *options]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, user=_unprivileged_user(), cwd=self.folder, stdout=log, stderr=log
            )
        until_sync(self._lets_in, START_S, what=f"PostgreSQL: {(self.folder / 'log').read_text()[-2000:]}")

    def stop(self) -> None:
        """End it at once, as a crash does: nothing here is worth writing down."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(20)

    def promote(self) -> None:
        """Make a primary of this standby, and wait until it takes writes."""
        _run("pg_ctl", "promote", "--wait", "-D", str(self.data))

    def _lets_in(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
        answer = subprocess.run(
            [_binary("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port), "-U", "allim"], check=False
        )
        return answer.returncode == 0


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of a fresh server."""
    with primary() as server:
        yield server.url


@contextmanager
def primary(*options: str) -> Iterator[Postgres]:
    """A fresh server."""
    with _folder() as folder:
        server = Postgres(lasting_port(), folder, options)
        _run("initdb", "--no-sync", "--auth=trust", "--username=allim", "--encoding=UTF8", "-D", str(server.data))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def standby_of(server: Postgres) -> Iterator[Postgres]:
    """A standby that streams from this server: it answers queries and takes no writes."""
    with _folder() as folder:
        standby = Postgres(lasting_port(), folder)
        source = f"host=127.0.0.1 port={server.port} user=allim"
        copy = ("--write-recovery-conf", "--checkpoint=fast", "--no-sync")
        _run("pg_basebackup", "-d", source, "-D", str(standby.data), *copy)
        standby.start()
        try:
            yield standby
        finally:
            standby.stop()


@contextmanager
def pgbouncer(server_url: str, pool_mode: str, *, connections: int = 2) -> Iterator[str]:
    """The URL of a PgBouncer in front of the server, with so many connections to it for each database.

    It skips the test, saying how to get PgBouncer, where that is not installed.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("PGBOUNCER IS NOT INSTALLED, so this is not tested: on Debian `apt-get install pgbouncer`")
    target, own = server_url.rpartition("@")[2].partition("/")[0], lasting_port()
    host, _, target_port = target.partition(":")
    with _folder() as folder:
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n* = host={host} port={target_port} user=allim\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {own}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = {pool_mode}\ndefault_pool_size = {connections}\nserver_login_retry = 1\n"
        )
        settings.chmod(0o644)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [program, str(settings)], user=_unprivileged_user(), cwd=folder, stdout=log, stderr=log
            )
        try:
            until_sync(lambda: accepts(own), START_S, what=f"PgBouncer: {(folder / 'log').read_text()[-2000:]}")
            yield f"postgresql://allim@127.0.0.1:{own}/postgres"
        finally:
            end(process)


async def fresh_database(server_url: str) -> str:
    """The URL of a new, empty database on the server."""
    name = f"test_{next(_databases)}"
    connection = await asyncpg.connect(server_url)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    return at_server(server_url, name)


def at_server(server_url: str, name: str) -> str:
    """The URL of that database on the server."""
    return server_url.removesuffix("/postgres") + f"/{name}"


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="allim-pg-"))
    if (user := _unprivileged_user()) is not None:
        shutil.chown(folder, user)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binary(name: str) -> str:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = str(installed[-1]) if installed else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is missing: install PostgreSQL, on Debian `apt-get install postgresql`")
    return found


def _run(name: str, *arguments: str) -> None:
    subprocess.run([_binary(name), *arguments], user=_unprivileged_user(), cwd="/", check=True, capture_output=True)


def _unprivileged_user() -> str | None:
    """PostgreSQL and PgBouncer refuse to run as root."""
    if os.geteuid() != 0:
        return None
    known = {line.partition(":")[0] for line in Path("/etc/passwd").read_text().splitlines()}
    return "postgres" if "postgres" in known else "nobody"
