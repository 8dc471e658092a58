import asyncio
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from allim.errors import Unavailable
from allim.storage import engine as engine_module
from allim.storage import open_engine, reading, writable, writing
from allim.storage import sqlite as sqlite_module

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engines(database_url: str) -> AsyncIterator[tuple[AsyncEngine, AsyncEngine]]:
    """Two replicas' engines on one database, which has a counter in it."""
    pair = (open_engine(database_url), open_engine(database_url))
    async with writing(pair[0]) as connection:
        await connection.execute(text("CREATE TABLE counter (n INTEGER NOT NULL)"))
        await connection.execute(text("INSERT INTO counter VALUES (0)"))
    yield pair
    for engine in pair:
        await engine.dispose()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_postgres_in_any_spelling_gets_the_async_driver(scheme: str) -> None:
    engine = open_engine(f"{scheme}://user:secret@db.example/allim?sslmode=require")

    assert engine.url.drivername == "postgresql+asyncpg"
    assert engine.url.query == {"ssl": "require"}


@pytest.mark.parametrize("password", ["a,b", "a,b/c", "a,b:1,c"])
def test_a_comma_in_a_password_is_none_between_hosts(password: str) -> None:
    engine = open_engine(f"postgresql://user:{password}@db.example:5433/allim")

    assert (engine.url.password, engine.url.host, engine.url.port) == (password, "db.example", 5433)


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+aiosqlite"])
async def test_sqlite_creates_its_folder(scheme: str, tmp_path: Path) -> None:
    engine = open_engine(f"{scheme}:///{tmp_path}/new/deep/allim.db")

    await writable(engine)
    assert (tmp_path / "new" / "deep" / "allim.db").exists()
    await engine.dispose()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://root:hunter2@db/allim", "mysql"),
        ("postgresql+psycopg2://root:hunter2@db/allim", "postgresql+psycopg2"),
        ("postgresql://root:hunter2@db:notaport/allim", "postgresql"),
        ("postgresql://root:hunter2@db:1,db:notaport/allim", "each of several hosts"),
        ("postgresql://root:hunter2@db/allim?target_session_attrs=any", "target_session_attrs"),
        ("sqlite://", "file"),
        ("sqlite:///:memory:", "file"),
        ("hunter2", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_other_urls_are_refused_in_one_line_without_the_password(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("+", r"\+")) as refusal:
        open_engine(url)

    assert "hunter2" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()

    with pytest.raises(ValueError, match="cannot be opened"):
        open_engine(f"sqlite:///{tmp_path}/folder.db")


async def test_sqlite_survives_power_cuts_and_checks_keys(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/allim.db")

    async with reading(engine) as connection:
        pragmas = {
            name: await connection.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }

    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}
    await engine.dispose()


async def test_transactions_that_read_and_then_write_neither_fail_nor_lose(
    engines: tuple[AsyncEngine, AsyncEngine],
) -> None:
    async def add_one(engine: AsyncEngine) -> None:
        async with writing(engine) as connection:
            lock = " FOR UPDATE" if connection.dialect.name == "postgresql" else ""
            n = await connection.scalar(text("SELECT n FROM counter" + lock))
            await asyncio.sleep(0)
            await connection.execute(text("UPDATE counter SET n = :n"), {"n": (n or 0) + 1})

    await asyncio.gather(*(add_one(engine) for engine in engines * 15))

    async with reading(engines[0]) as connection:
        assert await connection.scalar(text("SELECT n FROM counter")) == 30


async def test_a_block_that_raises_leaves_nothing(engines: tuple[AsyncEngine, AsyncEngine]) -> None:
    async def fail() -> None:
        async with writing(engines[0]) as connection:
            await connection.execute(text("UPDATE counter SET n = 7"))
            raise LookupError

    with pytest.raises(LookupError):
        await fail()

    async with reading(engines[1]) as connection:
        assert await connection.scalar(text("SELECT n FROM counter")) == 0


async def test_a_cancelled_writer_frees_its_lock(engines: tuple[AsyncEngine, AsyncEngine]) -> None:
    wrote = asyncio.Event()

    async def hang() -> None:
        async with writing(engines[0]) as connection:
            await connection.execute(text("UPDATE counter SET n = 7"))
            wrote.set()
            await asyncio.Event().wait()

    hanging = asyncio.create_task(hang())
    await wrote.wait()
    hanging.cancel()
    async with writing(engines[1]) as connection:
        await connection.execute(text("UPDATE counter SET n = n + 1"))

    async with reading(engines[1]) as connection:
        assert await connection.scalar(text("SELECT n FROM counter")) == 1


async def test_readers_do_not_wait_for_a_writer(engines: tuple[AsyncEngine, AsyncEngine]) -> None:
    async with writing(engines[0]) as writer:
        await writer.execute(text("UPDATE counter SET n = 7"))
        async with reading(engines[1]) as reader:
            assert await reader.scalar(text("SELECT n FROM counter")) == 0


async def test_a_missing_table_is_a_defect_and_no_outage(engines: tuple[AsyncEngine, AsyncEngine]) -> None:
    with pytest.raises(DBAPIError):
        async with reading(engines[0]) as connection:
            await connection.execute(text("SELECT * FROM nowhere"))


async def test_a_lock_held_for_too_long_is_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "BUSY_TIMEOUT_S", 0.05)
    engine = open_engine(f"sqlite:///{tmp_path}/allim.db")

    with closing(sqlite3.connect(tmp_path / "allim.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable):
            async with writing(engine):
                pass
    await engine.dispose()


async def test_a_server_that_is_away_is_an_outage() -> None:
    engine = open_engine("postgresql://user:hunter2@127.0.0.1:1/allim")

    with pytest.raises(Unavailable) as outage:
        await writable(engine)

    assert "hunter2" not in outage.value.detail


async def test_a_server_that_does_not_answer_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "READY_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and then nothing
        engine = open_engine(f"postgresql://user@127.0.0.1:{silent.getsockname()[1]}/allim")
        with pytest.raises(Unavailable):
            await writable(engine)
    await engine.dispose()


async def test_an_error_does_not_repeat_what_was_to_be_stored(engines: tuple[AsyncEngine, AsyncEngine]) -> None:
    with pytest.raises(DBAPIError) as caught:
        async with writing(engines[0]) as connection:
            await connection.execute(text("INSERT INTO nowhere VALUES (:email)"), {"email": "min@example.org"})

    assert "min@example.org" not in str(caught.value)
