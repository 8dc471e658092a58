"""Explains why a database cannot be used, with a remedy."""

import socket
import sqlite3
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from allim.errors import AllimError, Unusable, causes
from allim.storage.postgres import driver_errors

_URL = "ALLIM_DATABASE_URL"

_ERRORS = (
    AllimError,
    SQLAlchemyError,
    sqlite3.Error,
    OSError,
    TypeError,
)
"""The errors of drivers and SQLAlchemy about a wrong address, a refusing server, or a wrong parameter."""

_OF_ASYNCPG = ("PostgresError", "InterfaceError")


def _errors() -> tuple[type[BaseException], ...]:
    return (*_ERRORS, *driver_errors(*_OF_ASYNCPG))


@contextmanager
def explaining(url: URL) -> Iterator[None]:
    """Raises: Unusable for every error of the database in the block."""
    try:
        yield
    except Unusable:
        raise
    except _errors() as error:
        raise explain(url, error) from error


def explain(url: URL, error: BaseException) -> Unusable:
    """Return the fault, without a password."""
    sqlite = url.get_backend_name() == "sqlite"
    where = _file_of(url) if sqlite else _server_of(url)
    for cause in causes(error):
        found = _of_sqlite(where, cause) if sqlite else _of_postgres(url, where, cause) or _of_way(where, cause)
        if found is not None:
            return found
    root = list(causes(error))[-1]
    lines = str(root).splitlines() or [type(root).__name__]
    return Unusable(f"{where}: {lines[0]}", f"correct {_URL}")


def _file_of(url: URL) -> str:
    """The path, also of an engine's URL, which is SQLite's own form of it."""
    return unquote(str(url.database).removeprefix("file:"))


def _server_of(url: URL) -> str:
    if not url.host and (hosts := url.query.get("host")):
        return ", ".join([hosts] if isinstance(hosts, str) else hosts)
    return f"{url.host or 'localhost'}:{url.port or 5432}"


def _of_sqlite(where: str, cause: BaseException) -> Unusable | None:
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_NOTADB:
            return Unusable(f"{where} is no SQLite database", f"name another file in {_URL}")
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            detail = f"{where} cannot be opened for writing: {cause}"
            return Unusable(detail, "let this user write the file and its folder, or name another")
        if code == sqlite3.SQLITE_BUSY:
            return Unusable(f"{where} is locked by another process", "end that process, or name another file")
        return Unusable(f"{where}: {cause}", "see to the disk and the file")
    return None


def _of_postgres(url: URL, where: str, cause: BaseException) -> Unusable | None:
    user, database = url.username or "", url.database or ""
    state = str(getattr(cause, "sqlstate", None) or "")
    said = (str(cause).splitlines() or [""])[0]
    if isinstance(cause, DBAPIError):  # its own text holds the statement; its cause names the fault
        return None
    if state[:2] == "28":
        detail = f"{where} does not let user {user!r} in: {said}"
        return Unusable(detail, f"correct user and password in {_URL}, or the server's pg_hba.conf")
    if state == "3D000":
        return Unusable(f"{where} has no database {database!r}", f"createdb {database}, or correct {_URL}")
    if state == "42501":
        advice = f"GRANT ALL ON SCHEMA public TO {user}, in database {database}"
        return Unusable(f"user {user!r} may not make tables: {said}", advice)
    if state == "25006":
        advice = f"wait for the failover, or name the primary, or all hosts, in {_URL}"
        return Unusable(f"{where} takes no writes: it is a standby, or read-only", advice)
    if "statement pooling mode" in said:
        return Unusable("PgBouncer's pool_mode=statement allows no transactions", "use pool_mode = transaction")
    if state == "53300":
        return Unusable(f"{where} has no connection left: {said}", "raise max_connections, or run fewer replicas")
    if "unexpected keyword argument" in said:
        name = said.rpartition("argument ")[2]
        return Unusable(f"has a parameter not known here: {name}", f"take it out of {_URL}")
    if isinstance(cause, driver_errors(*_OF_ASYNCPG)):
        return Unusable(f"{where}: {said}", f"correct {_URL}, or see to the server")
    return None


def _of_way(where: str, cause: BaseException) -> Unusable | None:
    if isinstance(cause, socket.gaierror):
        return Unusable(f"{where}: there is no host of this name", f"correct the host in {_URL}")
    if isinstance(cause, ssl.SSLError):
        said = getattr(cause, "verify_message", "") or cause.reason or str(cause)
        return Unusable(f"{where} does not speak TLS as demanded: {said}", f"correct ?sslmode= in {_URL}")
    if "rejected SSL upgrade" in str(cause):
        return Unusable(
            f"{where} does not speak TLS as demanded", f"take ?sslmode= out of {_URL}, or let it speak TLS"
        )
    if isinstance(cause, ConnectionRefusedError):
        return Unusable(f"{where} refuses the connection", f"start PostgreSQL there, or correct {_URL}")
    if isinstance(cause, TimeoutError):
        return Unusable(f"{where} does not answer", "see that PostgreSQL runs there and no firewall is between")
    if isinstance(cause, OSError):
        return Unusable(f"{where}: {(cause.strerror or str(cause)).lower()}", f"correct {_URL}")
    return None
