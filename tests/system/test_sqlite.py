"""A SQLite file that takes no writes, under a replica: 503, red readiness, the reason in the log, and back again."""

import resource
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import httpx
import pytest
from harness.replicas import Replica, replica
from harness.waiting import until_sync

_accounts = count(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replica")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Replica]:
    with replica(folder=folder) as started:
        yield started


@pytest.fixture
def file(folder: Path, running: Replica) -> Path:
    """The database of the replica, which is ready."""
    until_sync(lambda: ready(running) == (200, "ok"))
    return folder / "data" / "allim.db"


def sign_up(to: Replica) -> httpx.Response:
    account = {"email": f"ada{next(_accounts)}@example.org", "name": "Ada", "password": "long enough"}
    return httpx.post(f"{to.url}/api/accounts", json=account, timeout=30)


def ready(running: Replica) -> tuple[int, str]:
    answer = httpx.get(f"{running.url}/readyz", timeout=30)
    return answer.status_code, answer.json()["checks"]["store"]


def is_refused_and_red(running: Replica, detail: str, reason: str) -> None:
    """The call is answered 503, readiness says why, and the log does."""
    written = len(running.log.read_text())
    refused = sign_up(running)
    assert (refused.status_code, refused.json()["code"], refused.json()["detail"]) == (503, "unavailable", detail)
    assert int(refused.headers["retry-after"]) > 0
    until_sync(lambda: ready(running) == (503, detail))
    told = [line for line in running.log.read_text()[written:].splitlines() if '"database unavailable"' in line]
    assert reason in told[0]


def is_well_again(running: Replica) -> None:
    until_sync(lambda: sign_up(running).status_code == 201)
    until_sync(lambda: ready(running) == (200, "ok"))


@contextmanager
def no_file_above(bytes_: int, running: Replica) -> Iterator[None]:
    """Refuse the replica's process what would make a file larger, as a disk or a quota does."""
    before = resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (bytes_, before[1]))
    try:
        yield
    finally:
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more(running: Replica, file: Path) -> None:
    size = file.with_name("allim.db-wal").stat().st_size

    with no_file_above(size, running):
        is_refused_and_red(running, "The disk of the database fails.", "disk I/O error")

    is_well_again(running)


def test_a_lock_that_another_process_holds(running: Replica, file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        until_sync(lambda: ready(running) == (503, "The database is locked."))
        assert time.monotonic() - began < 8  # a write waits for 10 s

    is_well_again(running)


def test_a_file_that_was_moved_away(running: Replica, file: Path) -> None:
    away = file.rename(file.with_name("away.db"))

    is_refused_and_red(running, "The database file was deleted or replaced.", "put the old file back, or restart")
    assert not file.exists()

    away.rename(file)
    is_well_again(running)
