from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.domains.conftest import clock, database_url, engine, postgres
from tests.domains.fakes import Clock
from tests.work.replicas import Replicas

__all__ = ["clock", "database_url", "engine", "postgres"]


@pytest.fixture
async def replicas(database_url: str, engine: AsyncEngine, clock: Clock) -> AsyncIterator[Replicas]:
    made = Replicas(database_url, engine, clock)
    await made.start()
    yield made
    await made.close()
