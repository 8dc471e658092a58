"""Opens the database and hands out transactions.

Owns what differs between SQLite and PostgreSQL, so that rooms need not know which one they use.
Source: https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#sqlite-transactions
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import asyncpg
import structlog
from sqlalchemy import URL, Connection, MetaData, event, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from allim.errors import Unavailable

log = structlog.get_logger(__name__)

BUSY_TIMEOUT_S = 10.0
READY_TIMEOUT_S = 2.0

# Named constraints: a migration can only change what has a name.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

_SQLITE = {"sqlite", "sqlite+aiosqlite"}
_POSTGRES = {"postgres", "postgresql", "postgresql+asyncpg"}
# SQLSTATE classes: connection, transaction rollback (deadlock), out of resources, operator intervention.
_OUTAGES = {"08", "40", "53", "57"}
_READS_ONLY = "allim_reads_only"
# SQLite's wait for its one write lock is by chance, so some starve in a crowd: the writers of a process queue up
# first, and only one of each process is in the crowd.
_WRITE_LOCK = "allim_write_lock"


def open_engine(url: str) -> AsyncEngine:
    """An engine for `url`; nothing is connected yet, except that a SQLite file is created.

    Shape: `sqlite:///path`, `postgres://…` or `postgresql://…`, with or without the async driver's name.
    Raises: ValueError with one line, which never holds the password.
    """
    parsed = _parse(url)
    if parsed.drivername in _SQLITE:
        return _open_sqlite(parsed)
    if parsed.drivername in _POSTGRES:
        return _open_postgres(parsed)
    raise ValueError(f"the database must be sqlite or postgresql, not {parsed.drivername!r}")


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection for reading, with one consistent view on SQLite. Writing through it is a mistake.

    Raises: Unavailable when the database does not answer.
    """
    with _database_errors():
        async with engine.execution_options(**{_READS_ONLY: True}).connect() as connection:
            yield connection


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction: committed at the end, rolled back when the block raises.

    Raises: Unavailable when the database does not answer, or SQLite stays locked for `BUSY_TIMEOUT_S`.
    """
    turn: AbstractAsyncContextManager[object] = engine.get_execution_options().get(_WRITE_LOCK) or nullcontext()
    with _database_errors():
        async with turn, engine.begin() as connection:
            yield connection


async def reachable(engine: AsyncEngine) -> None:
    """Return when the database answers a query.

    Raises: Unavailable when it does not within `READY_TIMEOUT_S`.
    """
    try:
        async with asyncio.timeout(READY_TIMEOUT_S), reading(engine) as connection:
            await connection.execute(select(1))
    except TimeoutError as error:
        raise Unavailable("The database does not answer.") from error


@contextmanager
def _database_errors() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if not _is_outage(error):
            raise
        raise _unavailable(error) from error
    except (PoolTimeout, asyncpg.PostgresError, OSError) as error:  # from connecting, before any statement
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> Unavailable:
    log.warning("database unavailable", error=type(error).__name__, reason=str(error)[:200])
    return Unavailable("The database does not answer.")


def _is_outage(error: DBAPIError) -> bool:
    """Whether trying again may help. A missing table or a wrong statement is a defect, not an outage."""
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        return isinstance(cause, sqlite3.OperationalError) and cause.sqlite_errorcode != sqlite3.SQLITE_ERROR
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    return str(getattr(cause, "sqlstate", None) or "")[:2] in _OUTAGES


def _parse(url: str) -> URL:
    scheme = url.partition(":")[0] if "://" in url else ""
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        # The reason is withheld: it may quote the part of the URL that holds the password.
        raise ValueError(f"the database URL cannot be read (its scheme is {scheme!r})") from None


def _open_sqlite(url: URL) -> AsyncEngine:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ValueError("the sqlite database must be a file, such as sqlite:///data/allim.db")
    path = Path(url.database)
    path.parent.mkdir(parents=True, exist_ok=True)
    _use_wal(path)
    engine = create_async_engine(
        url.set(drivername="sqlite+aiosqlite"),
        hide_parameters=True,  # they hold emails and password hashes, and errors are logged
        connect_args={"timeout": BUSY_TIMEOUT_S},
        pool_size=5,
        max_overflow=5,
        pool_timeout=BUSY_TIMEOUT_S,
        execution_options={_WRITE_LOCK: asyncio.Lock()},
    )
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _use_wal(path: Path) -> None:
    """Switch the file to write-ahead logging, once; the file remembers it.

    SQLite does not honour its busy timeout for this switch, and several replicas may start at once on a
    new file, so the waiting is done here.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as connection:
                connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise ValueError(f"the sqlite file {path} cannot be opened: {error}") from None
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver must not begin transactions itself: it begins deferred ones, late (see `_begin_sqlite`).
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    # NORMAL would outlive kill -9 but not a power cut. An answered request is a promise, so each commit
    # waits for the disk; next to password hashing and at an embedded database's load this is cheap.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and then wants to write gets "database is locked" at once, whatever
    # the busy timeout, if another process wrote in between. Taking the write lock first waits instead.
    reads_only = connection.get_execution_options().get(_READS_ONLY, False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")


def _open_postgres(url: URL) -> AsyncEngine:
    query = dict(url.query)
    if "sslmode" in query:  # libpq's word; asyncpg calls it ssl
        query["ssl"] = query.pop("sslmode")
    return create_async_engine(
        url.set(drivername="postgresql+asyncpg", query=query),
        hide_parameters=True,  # as above
        pool_size=10,
        max_overflow=5,
        pool_timeout=5,
        pool_recycle=1800,
        pool_pre_ping=True,
        connect_args={"timeout": 5, "command_timeout": 15, "server_settings": {"application_name": "allim"}},
    )
