"""Peers as processes: a free loopback port, a log, as many open files as the system gives, ended by their ID."""

import os
import resource
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.servers import end
from harness.waiting import accepts, until_sync

ROOT = Path(__file__).parents[2]
START_S = 30.0

Process = subprocess.Popen[bytes]


@contextmanager
def process(
    command: Sequence[str],
    folder: Path,
    port: int,
    *,
    environ: Mapping[str, str] | None = None,
    ready: Callable[[], bool] | None = None,
) -> Iterator[Process]:
    """Run it in `folder` until the context ends, from when it listens on `port` and is `ready`.

    Raises: AssertionError with its log when it ends early or is not ready in time.
    """
    log = folder / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **(environ or {})}, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (hard, hard))
        until_sync(lambda: _serves(server, log, port, ready), START_S, what=" ".join(command))
        yield server
    finally:
        end(server)


def children(pid: int) -> list[int]:
    """The processes that this one's main thread started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def output(*command: str) -> str:
    """What a command prints, on whichever of its two ways out."""
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
    return printed.decode().strip()


def _serves(server: Process, log: Path, port: int, ready: Callable[[], bool] | None) -> bool:
    assert server.poll() is None, f"ended at its start:\n{log.read_text()}"
    return accepts(port) and (ready is None or ready())
