"""The Redis of docker-compose.yml: its very command line, run with the server that is installed here."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis as redis_py
from harness import compose
from harness.servers import end, lasting_port
from harness.waiting import START_S, until_sync

PASSWORD = "a-password-of-the-tests"


@dataclass
class Guarded:
    """A Redis with the user of docker-compose.yml. `admin` may do everything, and no replica uses it."""

    url: str
    service: dict[str, Any]
    environ: dict[str, str]
    admin: redis_py.Redis
    process: "subprocess.Popen[bytes]"

    def denied(self) -> list[tuple[str, str]]:
        """Return the refused commands: the reason, and the command or key."""
        return [(str(entry["reason"]), str(entry["object"])) for entry in self.admin.acl_log()]

    def do(self, *command: str) -> str:
        return str(self.admin.execute_command(*command))  # type: ignore[no-untyped-call]

    def restart(self, by: signal.Signals) -> None:
        """End the process by a signal and start another on its data."""
        self.process.send_signal(by)
        self.process.wait(20)
        self.process = _spawn(self.service, self.environ)
        until_sync(lambda: _answers(self.process, self.admin), timeout_s=START_S, what="the restarted server")

    def end(self) -> None:
        self.admin.close()
        end(self.process)


@contextmanager
def guarded_redis(program: str = "redis-server", **environ: str) -> Iterator[Guarded]:
    """The very command line of Compose's Redis, on a port and in a folder of ours, and with an admin.

    Shape: `program` runs where Compose runs `redis-server`; `environ` holds Compose's variables.
    """
    parts = compose.services({"REDIS_PASSWORD": PASSWORD, **environ})
    service, port = parts["redis"], lasting_port()
    folder = Path(tempfile.mkdtemp(prefix="allim-redis-"))
    more = f"--port {port} --bind 127.0.0.1 --dir {folder} --user admin on nopass '~*' '&*' +@all"
    _instead(folder / "redis-server", f'{shutil.which(program)} "$@" {more}')
    _instead(folder / "redis-cli", f'{shutil.which("redis-cli")} -p {port} "$@"')
    path = f"{folder}:{os.environ['PATH']}"
    process_environ = {**os.environ, **service["environment"], "PATH": path}
    process = _spawn(service, process_environ)
    admin = redis_py.Redis(port=port, username="admin", password="any", decode_responses=True)
    url = parts["app"]["environment"]["ALLIM_REDIS_URL"].replace("@redis:6379", f"@127.0.0.1:{port}")
    guarded = Guarded(url, service, process_environ, admin, process)
    try:
        until_sync(lambda: _answers(process, admin), timeout_s=START_S, what="the server")
        yield guarded
    finally:
        guarded.end()
        shutil.rmtree(folder, ignore_errors=True)


def _spawn(service: dict[str, Any], environ: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(service["command"], env=environ, stdout=subprocess.DEVNULL)


def _instead(path: Path, command: str) -> None:
    """A program that runs this command."""
    path.write_text(f"#!/bin/sh\nexec {command}\n")
    path.chmod(0o700)


def _answers(process: "subprocess.Popen[bytes]", client: redis_py.Redis) -> bool:
    assert process.poll() is None, "the server ended"
    try:
        return bool(client.ping())
    except (redis_py.ConnectionError, redis_py.BusyLoadingError):
        return False
