from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from harness.postgres import fresh_database, postgres_server
from harness.schema import migrate
from sqlalchemy.ext.asyncio import AsyncEngine

from allim.storage import open_engine
from tests.domains.fakes import Clock, RecordingHub


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'data' / 'allim.db'}"
    return await fresh_database(request.getfixturevalue("postgres"))


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(database_url)
    await migrate(engine)
    yield engine
    await engine.dispose()


@pytest.fixture
def hub() -> RecordingHub:
    return RecordingHub()


@pytest.fixture
def clock() -> Clock:
    return Clock()
