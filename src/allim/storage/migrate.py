"""Brings the database's schema up to date, from whichever replica comes first.

Each domain has a chain of migrations of its own, in a folder inside its package, and a table of its own that says how
far it is applied: `allim_<domain>_version`. So the tables can live in an application's database beside its own, a
domain that is left out stops nothing, and packages need not agree on names of versions. Migrations never import
domains: a version must mean the same for ever.
"""

from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from allim.storage import former
from allim.storage.chain import Chain
from allim.storage.engine import looking, writing
from allim.storage.faults import explaining

_LOCK = 0x616C6C696D  # "allim": any number, as long as every replica takes the same


async def migrate(engine: AsyncEngine, folders: Mapping[str, Path]) -> None:
    """Return when the schema is the newest. Safe to call from many replicas at once, and quick when done.

    All missing versions are applied in one transaction: all of them, or none.
    Shape: the folders of migrations, by name of domain, in the order in which they are applied.
    Raises: Unusable when the database does not answer, does not let this be done, or has a newer schema.
    """
    chains = [Chain(name, folder) for name, folder in folders.items()]
    with explaining(engine.url):
        async with looking(engine) as connection:
            if await connection.run_sync(_is_newest, chains):
                return
        async with writing(engine) as connection:  # on SQLite this alone is the lock
            if connection.dialect.name == "postgresql":
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            await connection.run_sync(_upgrade, chains)


async def usable(engine: AsyncEngine, folders: Mapping[str, Path]) -> bool:
    """Return whether the schema is the newest already; a start makes it so.

    Raises: Unusable as `migrate`.
    """
    chains = [Chain(name, folder) for name, folder in folders.items()]
    with explaining(engine.url):
        async with looking(engine) as connection:
            return await connection.run_sync(_is_newest, chains)


def _is_newest(connection: Connection, chains: list[Chain]) -> bool:
    """Raises: Unusable when a newer version of allim, or of a domain, has migrated it."""
    newest = [chain.is_newest(connection) for chain in chains]
    return all(newest) and not former.is_there(connection)


def _upgrade(connection: Connection, chains: list[Chain]) -> None:
    if former.is_there(connection):
        former.move(connection)
    for chain in chains:
        chain.upgrade(connection)
