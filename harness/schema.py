"""The newest schema of all built-in domains."""

from sqlalchemy.ext.asyncio import AsyncEngine

from allim import storage
from allim.domains.builtin import BUILT_IN
from allim.domains.choice import chosen
from allim.selection import Selection

MIGRATIONS = Selection(chosen(tuple(BUILT_IN)), {}).migrations()


async def migrate(engine: AsyncEngine) -> None:
    await storage.migrate(engine, MIGRATIONS)
