"""Opens SQLite: its one write lock, its file, and the list of errors that are outages.

Source: https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#sqlite-transactions
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from allim.errors import Unusable
from allim.storage.faults import explaining

DRIVERS = {"sqlite", "sqlite+aiosqlite"}
BUSY_TIMEOUT_S = 10.0

READS_ONLY = "allim_reads_only"
# SQLite's wait for its one write lock is by chance, so some starve in a crowd: the writers of a process queue up
# first, and only one of each process is in the crowd.
WRITE_LOCK = "allim_write_lock"
FILE = "allim_file"
PATIENCE_S = "allim_patience_s"  # how long to wait for the write lock, where it is not `BUSY_TIMEOUT_S`

# Writes a page, so it fails on a full disk too. allim does not use this number of the file's header.
PROBE = "PRAGMA user_version = 0"

_OUTAGES = {
    sqlite3.SQLITE_BUSY: "The database is locked.",
    sqlite3.SQLITE_LOCKED: "The database is locked.",
    sqlite3.SQLITE_READONLY: "The database is read-only.",
    sqlite3.SQLITE_FULL: "The disk of the database is full.",
    sqlite3.SQLITE_IOERR: "The disk of the database fails.",
    sqlite3.SQLITE_CANTOPEN: "The database file cannot be opened.",
    sqlite3.SQLITE_CORRUPT: "The database file is damaged.",
    sqlite3.SQLITE_NOTADB: "The database file is damaged.",
}


class FileGone(OSError):
    """The path no longer leads to the open file, so further rows in that file are lost."""


class File:
    """The database's file as it was at the start.

    SQLite goes on writing to a file that was deleted, and reports no error.
    """

    def __init__(self, path: Path, *, has_log: bool) -> None:
        self._path = path
        self._log = path.with_name(f"{path.name}-wal") if has_log else None
        self._identity = _identity(path)

    def check(self) -> None:
        """Raises: FileGone."""
        if _identity(self._path) != self._identity:
            raise FileGone(f"{self._path} was deleted or replaced: put the old file back, or restart every replica")

    def check_log(self) -> None:
        """Raises: FileGone. Call it while a transaction is open: only then a write-ahead log must exist."""
        if self._log is not None and not self._log.exists():
            raise FileGone(f"{self._log} was deleted: restart every replica")


def open_sqlite(url: URL) -> AsyncEngine:
    """Return an engine for the file, which is made if it is not there.

    Raises: ValueError.
    """
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ValueError("the sqlite database must be a file, such as sqlite:///data/allim.db")
    path = Path(url.database).absolute()
    _make_private(path)
    with explaining(url):
        has_log = _use_wal(path)
    engine = create_async_engine(
        # A connection opens the file and does not make one, which would hide that it was deleted.
        URL.create("sqlite+aiosqlite", database=f"file:{quote(str(path))}", query={"mode": "rw", "uri": "true"}),
        hide_parameters=True,  # they hold emails and password hashes, and errors are logged
        connect_args={"timeout": BUSY_TIMEOUT_S},
        pool_size=5,
        max_overflow=5,
        pool_timeout=BUSY_TIMEOUT_S,
        execution_options={WRITE_LOCK: asyncio.Lock(), FILE: File(path, has_log=has_log)},
    )
    event.listen(engine.sync_engine, "connect", _prepare)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def outage(error: DBAPIError) -> str | None:
    """Return the detail of an outage, empty when there is none to give; None when the statement is at fault."""
    code = getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in _OUTAGES:
        return _OUTAGES[code]
    return "" if isinstance(error.orig, sqlite3.OperationalError) and code != sqlite3.SQLITE_ERROR else None


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _make_private(path: Path) -> None:
    """Make the file and its folder, readable by this user alone: it holds accounts. Existing ones stay as they
    is; SQLite gives its further files the mode of the first.

    Raises: Unusable.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        detail = f"the sqlite file {path} cannot be opened: {(error.strerror or str(error)).lower()}"
        raise Unusable(detail, "let this user write its folder, or name another file") from None


def _use_wal(path: Path) -> bool:
    """Switch the file to write-ahead logging, once; the file remembers it. Returns False where it cannot be switched.

    SQLite does not honour its busy timeout for this switch, and several replicas may start at once on a
    new file, so the waiting is done here.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as connection:
                (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return bool(mode == "wal")


def _prepare(connection: Any, _record: object) -> None:
    # The driver must not begin transactions itself: it begins deferred ones, late (see `_begin`).
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    # NORMAL would outlive kill -9 but not a power cut. An answered request is a promise, so each commit
    # waits for the disk; next to password hashing and at an embedded database's load this is cheap.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    options[FILE].check()
    # A transaction that reads first and then wants to write gets "database is locked" at once, whatever
    # the busy timeout, if another process wrote in between. Taking the write lock first waits instead.
    if options.get(READS_ONLY, False):
        connection.exec_driver_sql("BEGIN")
        return
    with _patience(connection, options.get(PATIENCE_S, BUSY_TIMEOUT_S)):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    options[FILE].check_log()


@contextmanager
def _patience(connection: Connection, patience_s: float) -> Iterator[None]:
    """Set how long SQLite waits for the write lock. Cancelling the caller does not end a wait inside SQLite."""
    if patience_s == BUSY_TIMEOUT_S:
        yield
        return
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(patience_s * 1000)}")
    try:
        yield
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(BUSY_TIMEOUT_S * 1000)}")
