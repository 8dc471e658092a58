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

from allim.errors import Unavailable
from allim.storage.engine import reading, writing

_FOLDER = Path(__file__).parent / "migrations"
_LOCK = 0x616C6C696D  # "allim": any number, as long as every replica takes the same


async def migrate(engine: AsyncEngine) -> None:
    """Return when the schema is the newest. Safe to call from many replicas at once, and quick when done.

    All missing versions are applied in one transaction: all of them, or none.
    Raises: Unavailable when the database does not answer; ValueError when it allows no transactions.
    """
    config = _config()
    try:
        async with reading(engine) as connection:
            if await connection.run_sync(_is_newest, config):
                return
    except Unavailable as error:
        if "statement pooling mode" in str(error.__cause__):
            raise ValueError("PgBouncer's pool_mode=statement allows no transactions: use transaction") from error
        raise
    async with writing(engine) as connection:  # on SQLite this alone is the lock
        if connection.dialect.name == "postgresql":
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        await connection.run_sync(_upgrade, config)


def _config() -> Config:
    config = Config()
    # Alembic reads `%` as interpolation.
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _is_newest(connection: Connection, config: Config) -> bool:
    applied = MigrationContext.configure(connection).get_current_heads()
    return set(applied) == set(ScriptDirectory.from_config(config).get_heads())


def _upgrade(connection: Connection, config: Config) -> None:
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
