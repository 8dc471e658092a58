"""PgBouncer between allim and PostgreSQL, with fewer connections to the server than its clients have to it."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from harness.postgres import at_server, fresh_database, pgbouncer
from harness.schema import migrate
from sqlalchemy import JSON, Column, MetaData, String, Table, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from allim.storage import open_engine, reading, writable, writing

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", params=["transaction", "session"])
def pooler(request: pytest.FixtureRequest, postgres: str) -> Iterator[str]:
    """Its URL. A session keeps its connection to the server, so there must be one for each."""
    with pgbouncer(postgres, request.param, connections=2 if request.param == "transaction" else 30) as url:
        yield url


@pytest.fixture
async def engines(postgres: str, pooler: str) -> AsyncIterator[tuple[AsyncEngine, AsyncEngine]]:
    """Two replicas' engines on one database, with the schema."""
    name = (await fresh_database(postgres)).rpartition("/")[2]
    pair = (open_engine(at_server(pooler, name)), open_engine(at_server(pooler, name)))
    await asyncio.gather(*map(migrate, pair))
    yield pair
    for engine in pair:
        await engine.dispose()


async def test_replicas_share_connections_to_the_server(engines: tuple[AsyncEngine, AsyncEngine]) -> None:
    async with writing(engines[0]) as connection:
        await connection.execute(text("CREATE TABLE counter (n INTEGER NOT NULL)"))
        await connection.execute(text("INSERT INTO counter VALUES (0)"))

    async def add(engine: AsyncEngine, n: int) -> None:
        async with writing(engine) as connection:
            await connection.execute(text("SELECT n FROM counter FOR UPDATE"))
            await connection.execute(text("UPDATE counter SET n = n + :n"), {"n": n})

    async def read(engine: AsyncEngine) -> None:
        async with reading(engine) as connection:
            await connection.execute(text("SELECT n FROM counter WHERE n >= :n"), {"n": 0})
        await writable(engine)

    await asyncio.gather(*(step for engine in engines * 12 for step in (add(engine, 1), read(engine))))

    async with reading(engines[1]) as connection:
        assert await connection.scalar(text("SELECT n FROM counter")) == 24


async def test_values_are_read_as_they_were_written(engines: tuple[AsyncEngine, AsyncEngine]) -> None:
    table = Table("things", MetaData(), Column("id", String(8)), Column("value", JSON))
    async with writing(engines[0]) as connection:
        await connection.run_sync(table.create)
        await connection.execute(insert(table), [{"id": "a", "value": {"n": [1, None]}}, {"id": "b", "value": "é"}])

    async with reading(engines[1]) as connection:
        rows = (await connection.execute(select(table).order_by(table.c.id))).all()

    assert [tuple(row) for row in rows] == [("a", {"n": [1, None]}), ("b", "é")]


async def test_a_pooler_without_transactions_stops_the_start(postgres: str) -> None:
    with pgbouncer(postgres, "statement") as url:
        engine = open_engine(url)
        with pytest.raises(ValueError, match="pool_mode=statement allows no transactions"):
            await migrate(engine)
        await engine.dispose()
