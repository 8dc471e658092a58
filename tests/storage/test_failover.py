"""A primary and its streaming standby: allim keeps to the one that takes writes."""

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest
from harness.postgres import Postgres, primary, standby_of
from harness.waiting import until
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from allim.errors import Unavailable
from allim.storage import open_engine, reading, writable, writing

pytestmark = pytest.mark.anyio


@pytest.fixture
def pair() -> Iterator[tuple[Postgres, Postgres]]:
    """The primary and its standby."""
    with primary() as first, standby_of(first) as second:
        yield first, second


async def test_of_several_hosts_the_one_that_takes_writes_is_used(pair: tuple[Postgres, Postgres]) -> None:
    first, second = pair
    engine = open_engine(f"postgresql://allim@127.0.0.1:{second.port},127.0.0.1:{first.port}/postgres")
    async with writing(engine) as connection:
        await connection.execute(text("CREATE TABLE counter (n INTEGER NOT NULL)"))
    await asyncio.gather(*(write(engine) for _ in range(4)))
    await until(lambda: has_rows(second, 4))

    first.stop()
    with pytest.raises(Unavailable) as outage:
        await writable(engine)
    assert outage.value.detail == "The database takes no writes: it is a standby, or read-only."

    second.promote()
    await until(lambda: accepts(engine))
    async with reading(engine) as connection:
        assert await connection.scalar(text("SELECT count(*) FROM counter")) >= 5
    await engine.dispose()


async def write(engine: AsyncEngine) -> None:
    async with writing(engine) as connection:
        await connection.execute(text("INSERT INTO counter VALUES (1)"))


async def accepts(engine: AsyncEngine) -> bool:
    try:
        await write(engine)
    except Unavailable:
        return False
    return True


async def has_rows(server: Postgres, n: int) -> bool:
    connection = await asyncpg.connect(server.url)
    try:
        return bool(await connection.fetchval("SELECT to_regclass('counter') IS NOT NULL")) and (
            await connection.fetchval("SELECT count(*) FROM counter") == n
        )
    finally:
        await connection.close()
