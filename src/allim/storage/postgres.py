"""Knows PostgreSQL: its addresses with several hosts, and the errors that are outages. It needs no driver."""

import math
import re
import sys
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError, InterfaceError

DRIVERS = {"postgres", "postgresql", "postgresql+asyncpg"}

FULL = "allim_full"

READ_ONLY = "25006"
DISK_FULL = "53100"
DISK_FULL_DETAIL = "The disk of the database is full."
# SQLSTATEs, and classes of them, that say nothing about the statement: a repetition may succeed.
_OUTAGES = {
    "08": "",  # connection; PgBouncer's own errors too
    "28": "The database refuses this user.",
    "3D": "The database does not exist.",
    "40": "The database ended this transaction in favour of another one.",  # deadlock, conflict with recovery
    "53": "The database is out of resources.",
    "57": "",  # shut down, starting up, cancelled
    "58": "The database cannot use its files.",
    READ_ONLY: "The database takes no writes: it is a standby, or read-only.",
    DISK_FULL: DISK_FULL_DETAIL,
    "53300": "The database takes no more connections.",
    "55P03": "The database is locked.",
}
# The group is atomic, so that a comma in a password never separates hosts.
_AUTHORITY = re.compile(
    r"(?P<before>[^:/]+://(?>(?:[^:/@]*(?::[^@]*)?@)?))(?P<hosts>[^@/?#]*,[^@/?#]*)(?P<after>.*)", re.DOTALL
)

# Raises the error that the server raises for a write, and needs no table.
PROBE = """DO $$ BEGIN
  IF current_setting('transaction_read_only')::boolean THEN
    RAISE read_only_sql_transaction USING MESSAGE = 'the server takes no writes: it is a standby, or read-only';
  END IF;
END $$"""


@dataclass
class Full:
    """The moment when a write last found the server's disk full. A probe cannot see it: small writes may go on.

    Units: `time.monotonic()`.
    """

    seen_at: float = -math.inf


def hosts_in_query(url: str) -> str:
    """Return the URL in SQLAlchemy's form: libpq's `//a:1,b/name` becomes `///name?host=a:1&host=b`."""
    found = _AUTHORITY.fullmatch(url)
    if found is None or url.partition(":")[0] not in DRIVERS:
        return url
    path, _, query = found["after"].partition("?")
    hosts = "&".join(f"host={host}" for host in found["hosts"].split(","))
    return f"{found['before']}{path or '/'}?{hosts}" + (f"&{query}" if query else "")


def outage(error: DBAPIError) -> str | None:
    """Return the detail of an outage, empty when there is none to give; None when the statement is at fault."""
    state = sqlstate(error.orig)
    for known in (state, state[:2]):
        if known in _OUTAGES:
            return _OUTAGES[known]
    return "" if error.connection_invalidated or isinstance(error, InterfaceError) else None


def sqlstate(error: BaseException | None) -> str:
    """Return the error's SQLSTATE, empty when it has none."""
    return str(getattr(error, "sqlstate", None) or "")


def driver_errors(*names: str) -> tuple[type[BaseException], ...]:
    """Return these classes of asyncpg; none if it is not loaded, because then it raises none."""
    asyncpg = sys.modules.get("asyncpg")
    return tuple(getattr(asyncpg, name) for name in names) if asyncpg else ()
