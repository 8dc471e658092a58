"""Opens the database and hands out transactions.

`sqlite.py` and `postgres.py` hold the differences, so that domains need not know which one they use.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext

import structlog
from sqlalchemy import URL, MetaData, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from allim.errors import Unavailable
from allim.requirements import needing
from allim.storage import postgres, sqlite

log = structlog.get_logger(__name__)

READY_TIMEOUT_S = 2.0
FULL_S = 10.0  # PostgreSQL's disk counts as full for this long after a write that found it full

# Named constraints: a migration can only change a named one.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


def open_engine(url: str) -> AsyncEngine:
    """An engine for `url`; nothing is connected yet, except that a SQLite file is created.

    Shape: `sqlite:///path`, `postgres://…` or `postgresql://…`, with or without the async driver's name. PostgreSQL
    may have several hosts, as libpq writes them: `postgresql://user@one:5432,two:5432/name`.
    Raises: ValueError with one line, which never holds the password; as one, Unusable if asyncpg is not installed.
    """
    parsed = _parse(url)
    if parsed.drivername in sqlite.DRIVERS:
        return sqlite.open_sqlite(parsed)
    if parsed.drivername in postgres.DRIVERS:
        with needing("postgres", "PostgreSQL"):
            from allim.storage.postgres_engine import open_postgres
        return open_postgres(parsed)
    raise ValueError(f"must begin with sqlite:/// or postgresql://, without a driver, not with {parsed.drivername!r}")


@asynccontextmanager
async def reading(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection for reading, with one consistent view on SQLite. Writing through it is a mistake.

    Raises: Unavailable when the database does not answer.
    """
    with _database_errors(engine):
        async with looking(engine) as connection:
            yield connection


def looking(engine: AsyncEngine) -> AbstractAsyncContextManager[AsyncConnection]:
    """As `reading`, with the driver's own errors."""
    return engine.execution_options(**{sqlite.READS_ONLY: True}).connect()


@asynccontextmanager
async def writing(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A transaction: committed at the end, rolled back when the block raises.

    Raises: Unavailable when the database does not answer or takes no writes.
    """
    options = engine.get_execution_options()
    turn: AbstractAsyncContextManager[object] = options.get(sqlite.WRITE_LOCK) or nullcontext()
    with _database_errors(engine):
        async with turn, engine.begin() as connection:
            yield connection
        if sqlite.FILE in options:
            options[sqlite.FILE].check()  # if it was deleted meanwhile, the commit is lost


async def writable(engine: AsyncEngine) -> None:
    """Return when the database takes writes. On SQLite one page is written; on PostgreSQL nothing.

    Raises: Unavailable when it does not within `READY_TIMEOUT_S`.
    """
    full: postgres.Full | None = engine.get_execution_options().get(postgres.FULL)
    if full is not None and time.monotonic() < full.seen_at + FULL_S:
        raise Unavailable(postgres.DISK_FULL_DETAIL)
    probe = sqlite.PROBE if engine.dialect.name == "sqlite" else postgres.PROBE
    patient = engine.execution_options(**{sqlite.PATIENCE_S: READY_TIMEOUT_S / 2})
    try:
        async with asyncio.timeout(READY_TIMEOUT_S), writing(patient) as connection:
            await connection.exec_driver_sql(probe)
    except TimeoutError as error:
        raise _unavailable(f"The database took no write within {READY_TIMEOUT_S:g} s.", error) from error


@contextmanager
def _database_errors(engine: AsyncEngine) -> Iterator[None]:
    kind = sqlite if engine.dialect.name == "sqlite" else postgres
    try:
        yield
    except DBAPIError as error:
        detail = kind.outage(error)
        if detail is None:
            raise
        if postgres.sqlstate(error.orig) == postgres.DISK_FULL:
            engine.get_execution_options()[postgres.FULL].seen_at = time.monotonic()
        raise _unavailable(detail, error.orig or error) from error
    except PoolTimeout as error:
        raise _unavailable("All connections of this replica to the database are in use.", error) from error
    except sqlite.FileGone as error:
        raise _unavailable("The database file was deleted or replaced.", error) from error
    except _connecting_errors() as error:  # from connecting, before any statement
        raise _unavailable("", error) from error


def _connecting_errors() -> tuple[type[BaseException], ...]:
    return (*postgres.driver_errors("PostgresError"), OSError)


def _unavailable(detail: str, error: BaseException) -> Unavailable:
    cause = getattr(error, "orig", None) or error  # SQLAlchemy wraps asyncpg's errors twice
    log.warning("database unavailable", error=type(cause).__name__, reason=(str(error) or detail)[:200])
    return Unavailable(detail or "The database does not answer.")


def _parse(url: str) -> URL:
    scheme = url.partition(":")[0] if "://" in url else ""
    try:
        return make_url(postgres.hosts_in_query(url))
    except (ArgumentError, ValueError):
        # The reason is withheld: it may quote the part of the URL that holds the password.
        raise ValueError(
            f"cannot be read (its scheme is {scheme!r}): must be sqlite:///path or "
            "postgresql://user:password@host:port/name, with `@ : / ? #` in a password percent-encoded"
        ) from None
