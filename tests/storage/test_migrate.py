import asyncio
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from harness.waiting import until
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

import allim.domains.accounts
import allim.domains.keys
import allim.domains.snapshots  # noqa: F401 - the rooms put their tables on `metadata`
from allim.domains.snapshots import Generation
from allim.storage import metadata, migrate, open_engine, reading, writing
from allim.work import Work
from tests.domains.fakes import Clock, RecordingHub, profile
from tests.work.replicas import Bus

pytestmark = pytest.mark.anyio


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, metadata))


def columns(connection: Connection) -> dict[str, list[tuple[str, bool]]]:
    inspector = inspect(connection)
    return {
        name: [(column["name"], bool(column["nullable"])) for column in inspector.get_columns(name)]
        for name in inspector.get_table_names()
    }


def migrate_to(connection: Connection, version: str) -> None:
    config = Config()
    config.set_main_option("script_location", "allim:storage/migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, version)


async def test_the_migrated_schema_is_what_the_rooms_declare(database_url: str) -> None:
    engine = open_engine(database_url)

    await migrate(engine)

    async with reading(engine) as connection:
        assert await connection.run_sync(differences) == []
        migrated = await connection.run_sync(columns)
    declared = {
        table.name: [(column.name, bool(column.nullable)) for column in table.columns]
        for table in metadata.tables.values()
    }
    migrated.pop("alembic_version")
    assert migrated == declared
    await engine.dispose()


async def test_accounts_from_before_there_were_providers_stay(database_url: str) -> None:
    engine = open_engine(database_url)
    async with writing(engine) as connection:
        await connection.run_sync(migrate_to, "0001")
        await connection.execute(text("INSERT INTO accounts VALUES ('a', 'a@example.org', 'A', 'hash', 1.5)"))

    await migrate(engine)

    async with reading(engine) as connection:
        rows = (await connection.execute(text("SELECT * FROM accounts"))).all()
    assert [tuple(row) for row in rows] == [("a", "a@example.org", "A", "hash", 1.5)]
    with pytest.raises(IntegrityError):
        async with writing(engine) as connection:
            await connection.execute(text("INSERT INTO accounts VALUES ('b', 'a@example.org', 'B', NULL, 1.5)"))
    await engine.dispose()


async def test_snapshots_that_were_pending_before_there_were_jobs_are_jobs(database_url: str) -> None:
    engine = open_engine(database_url)
    names = "id, account_id, status, requested_at, announced_at, owner, lease_until, attempts, next_attempt_at"
    names += ", sweep_at, generated_at, snapshot_count, content"
    rows = [
        "('new', 'a', 'pending', 1.5, NULL, NULL, NULL, 0, 1.5, 3.5, NULL, NULL, NULL)",
        "('claimed', 'a', 'pending', 2.5, NULL, 'replica-1:x', 14.5, 3, 2.5, 14.5, NULL, NULL, NULL)",
        "('unannounced', 'b', 'generated', 3.5, NULL, NULL, NULL, 1, 3.5, 3.5, 4, 1, '{}')",
        "('announced', 'c', 'generated', 4.5, 5.5, NULL, NULL, 1, 4.5, 4.5, 5, 1, '{}')",
    ]
    async with writing(engine) as connection:
        await connection.run_sync(migrate_to, "0004")
        await connection.execute(text(f"INSERT INTO snapshots ({names}) VALUES {', '.join(rows)}"))

    await migrate(engine)

    hub, clock = RecordingHub(), Clock()
    work = Work(engine, Bus(), "replica-1", now=clock)
    Generation(engine, work, hub.publish, profile, "replica-1", now=clock)
    async with reading(engine) as connection:
        assert await connection.run_sync(differences) == []
        found = list(await connection.scalars(text("SELECT id FROM allim_work_jobs ORDER BY due_at")))
    assert found == ["new", "claimed", "unannounced"]
    async with work.running():
        await until(lambda: are_announced(engine))
    told = [draft.data["snapshotId"] for draft in hub.events if draft.type == "snapshots.generated"]  # type: ignore[index]
    assert sorted(told) == ["claimed", "new", "unannounced"]
    await engine.dispose()


async def are_announced(engine: AsyncEngine) -> bool:
    async with reading(engine) as connection:
        left = await connection.scalar(text("SELECT count(*) FROM snapshots WHERE announced_at IS NULL"))
        return left is not None and int(left) == 0


async def test_many_replicas_migrate_at_once(database_url: str) -> None:
    engines = [open_engine(database_url) for _ in range(4)]

    await asyncio.gather(*map(migrate, engines))

    async with reading(engines[0]) as connection:
        assert await connection.run_sync(differences) == []
    for engine in engines:
        await engine.dispose()


async def test_many_processes_start_on_a_new_file(tmp_path: Path) -> None:
    program = "import asyncio, sys; from allim.storage import *\nasyncio.run(migrate(open_engine(sys.argv[1])))"
    url = f"sqlite:///{tmp_path}/allim.db"

    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, url, env={"PYTHONPATH": "src"})
        for _ in range(4)
    ]

    assert [await process.wait() for process in processes] == [0, 0, 0, 0]


async def test_a_second_migration_takes_no_lock(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/allim.db")
    await migrate(engine)

    with closing(sqlite3.connect(tmp_path / "allim.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(5):
            await migrate(engine)
    await engine.dispose()
