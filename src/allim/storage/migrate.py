"""Brings the database's schema up to date, from whichever replica comes first.

The versions live inside the package, so an installed wheel has them and users need no `alembic.ini`.
Migrations never import domains: a version must mean the same for ever.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from allim import __version__
from allim.errors import Unusable
from allim.storage.engine import looking, writing
from allim.storage.faults import explaining

_FOLDER = Path(__file__).parent / "migrations"
_LOCK = 0x616C6C696D  # "allim": any number, as long as every replica takes the same


async def migrate(engine: AsyncEngine) -> None:
    """Return when the schema is the newest. Safe to call from many replicas at once, and quick when done.

    All missing versions are applied in one transaction: all of them, or none.
    Raises: Unusable when the database does not answer, does not let this be done, or has a newer schema.
    """
    config = _config()
    with explaining(engine.url):
        async with looking(engine) as connection:
            if await connection.run_sync(_is_newest, config):
                return
        async with writing(engine) as connection:  # on SQLite this alone is the lock
            if connection.dialect.name == "postgresql":
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            await connection.run_sync(_upgrade, config)


async def usable(engine: AsyncEngine) -> bool:
    """Return whether the schema is the newest already; a start makes it so.

    Raises: Unusable as `migrate`.
    """
    with explaining(engine.url):
        async with looking(engine) as connection:
            return await connection.run_sync(_is_newest, _config())


def _config() -> Config:
    config = Config()
    # Alembic reads `%` as interpolation.
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _is_newest(connection: Connection, config: Config) -> bool:
    """Raises: Unusable when a newer version of allim has migrated it."""
    applied = set(MigrationContext.configure(connection).get_current_heads())
    scripts = ScriptDirectory.from_config(config)
    if newer := sorted(applied - {script.revision for script in scripts.walk_revisions()}):
        raise Unusable(
            f"its schema {', '.join(newer)} is not known to allim {__version__}: a newer allim has migrated it",
            "run that version or a later one, or give this one a database of its own",
        )
    return applied == set(scripts.get_heads())


def _upgrade(connection: Connection, config: Config) -> None:
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
