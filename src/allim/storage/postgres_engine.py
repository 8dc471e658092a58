"""Opens PostgreSQL: several hosts, failover and poolers.

It works through PgBouncer with pool_mode=transaction, where the next transaction may run on another connection of the
server. So nothing outlives a transaction: no prepared statement has a name or is kept, and no SET, LISTEN or advisory
lock is made for a session.
Sources: https://magicstack.github.io/asyncpg/current/faq.html, https://www.pgbouncer.org/features.html
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import asyncpg
from sqlalchemy import URL, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from allim.storage.postgres import FULL, READ_ONLY, Full, sqlstate

CONNECT_TIMEOUT_S = 5.0  # for all hosts together
PING_TIMEOUT_S = 1.0
CLOSE_TIMEOUT_S = 0.5
DEFAULT_PORT = 5432

_HOST = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]]+)(?::(?P<port>\d{1,5}))?")


def open_postgres(url: URL) -> AsyncEngine:
    """Return an engine for the URL. It keeps only connections to a server that takes writes.

    Raises: ValueError.
    """
    query = dict(url.query)
    if "sslmode" in query:  # libpq's word; asyncpg calls it ssl
        query["ssl"] = query.pop("sslmode")
    if query.pop("target_session_attrs", "read-write") not in {"read-write", "primary"}:
        raise ValueError("target_session_attrs must be read-write, which is the default: allim has to write")
    hosts = _Hosts([_place(host) for host in query.pop("host")] if isinstance(query.get("host"), tuple) else [])
    engine = create_async_engine(
        url.set(drivername="postgresql+asyncpg", query=query),
        hide_parameters=True,  # they hold emails and password hashes, and errors are logged
        execution_options={FULL: Full()},
        pool_size=10,
        max_overflow=5,
        pool_timeout=5,
        pool_recycle=1800,
        connect_args={
            "async_creator_fn": hosts.connect,
            "connection_class": _Connection,
            "timeout": CONNECT_TIMEOUT_S,
            "command_timeout": 15,
            "server_settings": {"application_name": "allim"},
            # Unnamed statements, prepared anew each time: see above.
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": str,
        },
    )
    event.listen(engine.sync_engine, "checkout", _ping)
    event.listen(engine.sync_engine, "handle_error", _drop_connections_to_a_reader)
    return engine


class _Hosts:
    """The hosts of a URL that names several; empty for a URL with one, or with none."""

    def __init__(self, places: Sequence[tuple[str, int]]) -> None:
        self._places = list(places)

    async def connect(self, *, timeout: float, **how: Any) -> asyncpg.Connection:
        """Connect to the first host that takes writes, beginning with the one that did last.

        Each host has its share of the time: asyncpg spends all of it on a first one that does not answer.
        Raises: asyncpg.ReadOnlySQLTransactionError when none takes writes; OSError; asyncpg.PostgresError.
        """
        if not self._places:
            return await _connect_writable(timeout=timeout, **how)
        failures: list[Exception] = []
        for place in tuple(self._places):
            host, port = place
            share_s = timeout / len(self._places)
            try:
                connection = await _connect_writable(**{**how, "host": host, "port": port, "timeout": share_s})
            except (OSError, asyncpg.PostgresError) as error:
                failures.append(error)
            else:
                self._places.remove(place)
                self._places.insert(0, place)
                return connection
        raise next((error for error in failures if sqlstate(error) == READ_ONLY), failures[-1])


async def _connect_writable(**how: Any) -> asyncpg.Connection:
    try:
        return await asyncpg.connect(target_session_attrs="read-write", **how)
    except asyncpg.TargetServerAttributeNotMatched:
        message = f"{how.get('host', 'the server')} takes no writes: it is a standby, or read-only"
        raise asyncpg.ReadOnlySQLTransactionError(message) from None


def _place(host: str) -> tuple[str, int]:
    found = _HOST.fullmatch(host)
    if found is None:
        raise ValueError("each of several hosts must be a name or an address, with a port behind a colon or without")
    return found["host"].strip("[]"), int(found["port"] or DEFAULT_PORT)


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that closes within `CLOSE_TIMEOUT_S`, also when its server has vanished."""

    async def close(self, *, timeout: float | None = None) -> None:
        with suppress(TimeoutError):  # it is aborted then
            await super().close(timeout=min(timeout or CLOSE_TIMEOUT_S, CLOSE_TIMEOUT_S))


def _ping(connection: Any, record: Any, _proxy: object) -> None:
    """Drop all pooled connections if this one, which comes from the pool, does not answer.

    `pool_pre_ping` takes three round trips, and waits for a server that has vanished as long as a query may take.
    """
    if not record.info.setdefault("pooled", False):
        record.info["pooled"] = True  # it has just been made
        return
    try:
        connection.run_async(lambda driver: driver.execute("SELECT 1", timeout=PING_TIMEOUT_S))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise InvalidatePoolError(str(error)) from error


def _drop_connections_to_a_reader(context: ExceptionContext) -> None:
    """Drop all pooled connections when a server takes no writes, so that the next ones find the new primary."""
    if sqlstate(context.original_exception) == READ_ONLY:
        context.is_disconnect = True
