import asyncio
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from harness.schema import MIGRATIONS, migrate
from harness.waiting import until
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

import allim.work.store  # noqa: F401 - puts its table on `metadata`, as the domains of MIGRATIONS do
from allim import storage
from allim.domains.snapshots import Generation
from allim.errors import Unusable
from allim.storage import former, metadata, open_engine, reading, writing
from allim.storage.chain import Chain
from allim.work import Work
from tests.domains.fakes import Clock, RecordingHub, profile
from tests.work.replicas import Bus

pytestmark = pytest.mark.anyio

OF_0_1 = (
    "INSERT INTO accounts VALUES ('a', 'a@example.org', 'A', 'hash', 1.5)",
    "INSERT INTO accounts VALUES ('b', NULL, 'B', NULL, 2.5)",
    "INSERT INTO identities VALUES ('https://provider.example.org', 'b-1', 'b', 2.5)",
    "INSERT INTO sessions VALUES ('s', 'a', 3.5, 4.5, 5.5, NULL, '192.0.2.1', 'Firefox on Linux')",
    "INSERT INTO publish_keys VALUES ('k', 'shop', 'digest', '[\"*\"]', '[\"*\"]', 6.5, 'a', NULL)",
    "INSERT INTO snapshot_counts VALUES ('a', 2)",
    "INSERT INTO snapshots (id, account_id, status, requested_at, snapshot_count, announced_at, owner, lease_until,"
    " attempts, next_attempt_at, sweep_at) VALUES"
    " ('done', 'a', 'generated', 1.5, 1, 2.5, NULL, NULL, 1, 1.5, 1.5),"
    " ('unannounced', 'a', 'generated', 2.5, 2, NULL, NULL, NULL, 1, 2.5, 2.5),"
    " ('claimed', 'a', 'pending', 3.5, NULL, NULL, 'replica-1:x', 14.5, 3, 3.5, 3.5),"
    " ('new', 'a', 'pending', 4.5, NULL, NULL, NULL, NULL, 0, 4.5, 4.5)",
)
MOVED = {
    "allim_accounts": [("a", "a@example.org", "A", "hash", 1.5), ("b", None, "B", None, 2.5)],
    "allim_accounts_identities": [("https://provider.example.org", "b-1", "b", 2.5)],
    "allim_accounts_sessions": [("s", "a", 3.5, 4.5, 5.5, None, "192.0.2.1", "Firefox on Linux")],
    "allim_keys": [("k", "shop", "digest", '["*"]', '["*"]', 6.5, "a", None)],
    "allim_snapshots_counts": [("a", 2)],
}


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return [
        difference
        for difference in compare_metadata(context, metadata)
        if not (difference[0] == "remove_table" and difference[1].name.endswith("version"))
    ]


def columns(connection: Connection) -> dict[str, list[tuple[str, bool]]]:
    inspector = inspect(connection)
    return {
        name: [(column["name"], bool(column["nullable"])) for column in inspector.get_columns(name)]
        for name in inspector.get_table_names()
    }


def named_things(connection: Connection) -> set[tuple[str, Any]]:
    """The names of all constraints and indexes."""
    inspector = inspect(connection)
    tables = [table for table in inspector.get_table_names() if table != "alembic_version"]
    keys = {(table, inspector.get_pk_constraint(table)["name"]) for table in tables}
    unique = {(table, each["name"]) for table in tables for each in inspector.get_unique_constraints(table)}
    return keys | unique | {(table, each["name"]) for table in tables for each in inspector.get_indexes(table)}


async def rows(engine: AsyncEngine, query: str) -> list[tuple[Any, ...]]:
    async with reading(engine) as connection:
        return [tuple(row) for row in await connection.execute(text(query))]


async def make_former(engine: AsyncEngine, version: str, *statements: str) -> None:
    """Make a database as allim 0.1 left it."""
    async with writing(engine) as connection:
        await connection.run_sync(former._FORMER.upgrade, version)
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def test_the_migrated_schema_is_what_the_domains_declare(database_url: str) -> None:
    engine = open_engine(database_url)

    await migrate(engine)

    async with reading(engine) as connection:
        assert await connection.run_sync(differences) == []
        migrated = await connection.run_sync(columns)
    declared = {
        table.name: [(column.name, bool(column.nullable)) for column in table.columns]
        for table in metadata.tables.values()
    }
    for name in MIGRATIONS:
        migrated.pop(f"allim_{name}_version")
    assert migrated == declared
    assert await storage.usable(engine, MIGRATIONS)
    await engine.dispose()


async def test_every_table_says_whose_it_is(database_url: str) -> None:
    engine = open_engine(database_url)

    await migrate(engine)

    async with reading(engine) as connection:
        tables = list(await connection.run_sync(columns))
    assert [table for table in tables if table.split("_")[:2] not in [["allim", name] for name in MIGRATIONS]] == []
    await engine.dispose()


# -- A database of allim 0.1 ---------------------------------------------------------------------------------------


async def test_a_database_of_0_1_keeps_all_its_rows_under_new_names(database_url: str) -> None:
    engine = open_engine(database_url)
    await make_former(engine, "0004", *OF_0_1)
    assert not await storage.usable(engine, MIGRATIONS)

    await migrate(engine)

    assert {table: await rows(engine, f"SELECT * FROM {table} ORDER BY 1") for table in MOVED} == MOVED
    kept = await rows(engine, "SELECT id, status, announced_at FROM allim_snapshots ORDER BY requested_at")
    assert kept == [
        *[("done", "generated", 2.5), ("unannounced", "generated", None)],
        *[("claimed", "pending", None), ("new", "pending", None)],
    ]
    jobs = await rows(engine, "SELECT id, name, arguments FROM allim_work_jobs ORDER BY due_at")
    assert jobs == [(name, "snapshots.generate", f'["{name}"]') for name in ("unannounced", "claimed", "new")]
    assert await storage.usable(engine, MIGRATIONS)
    await engine.dispose()


async def test_a_moved_database_has_the_same_names_as_a_new_one(database_url: str) -> None:
    engine = open_engine(database_url)
    await make_former(engine, "0001")
    await migrate(engine)
    async with reading(engine) as connection:
        assert await connection.run_sync(differences) == []
        moved = await connection.run_sync(named_things)
    async with writing(engine) as connection:
        await connection.run_sync(metadata.drop_all)
        for name in MIGRATIONS:
            await connection.execute(text(f"DROP TABLE allim_{name}_version"))

    await migrate(engine)

    async with reading(engine) as connection:
        assert moved == await connection.run_sync(named_things)
    await engine.dispose()


async def test_accounts_from_before_there_were_providers_stay(database_url: str) -> None:
    engine = open_engine(database_url)
    await make_former(engine, "0001", "INSERT INTO accounts VALUES ('a', 'a@example.org', 'A', 'hash', 1.5)")

    await migrate(engine)

    assert await rows(engine, "SELECT * FROM allim_accounts") == [("a", "a@example.org", "A", "hash", 1.5)]
    with pytest.raises(IntegrityError):
        async with writing(engine) as connection:
            await connection.execute(text("INSERT INTO allim_accounts VALUES ('b', 'a@example.org', 'B', NULL, 1.5)"))
    await engine.dispose()


async def test_an_old_replica_that_is_started_again_refuses_the_moved_database(database_url: str) -> None:
    """It knows the versions 0001 to 0004, and looks into `alembic_version` alone."""
    engine = open_engine(database_url)
    await make_former(engine, "0004")
    await migrate(engine)

    async with reading(engine) as connection:
        with pytest.raises(Unusable, match="is not known"):
            await connection.run_sync(former._FORMER.is_newest)
    await engine.dispose()


async def test_a_domain_that_is_left_out_finds_its_rows_when_it_is_chosen_later(database_url: str) -> None:
    engine = open_engine(database_url)
    await make_former(engine, "0004", *OF_0_1)

    await storage.migrate(engine, {name: MIGRATIONS[name] for name in ("work", "accounts")})
    await migrate(engine)

    assert await rows(engine, "SELECT * FROM allim_keys") == MOVED["allim_keys"]
    assert len(await rows(engine, "SELECT * FROM allim_snapshots")) == 4
    await engine.dispose()


async def test_tables_of_an_application_are_left_alone(database_url: str) -> None:
    engine = open_engine(database_url)
    async with writing(engine) as connection:
        await connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        await connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('0004')")
        await connection.exec_driver_sql("CREATE TABLE accounts (id VARCHAR(8))")
        await connection.exec_driver_sql("INSERT INTO accounts VALUES ('theirs')")

    await migrate(engine)

    assert await rows(engine, "SELECT * FROM accounts") == [("theirs",)]
    assert await rows(engine, "SELECT * FROM alembic_version") == [("0004",)]
    assert await rows(engine, "SELECT * FROM allim_accounts") == []
    await engine.dispose()


# -- Chains --------------------------------------------------------------------------------------------------------


async def test_a_newer_version_of_a_domain_is_refused_and_named(database_url: str) -> None:
    engine = open_engine(database_url)
    await migrate(engine)
    async with writing(engine) as connection:
        await connection.execute(text("UPDATE allim_keys_version SET version_num = '0099'"))

    with pytest.raises(Unusable, match=r"keys 0099 is not known"):
        await migrate(engine)
    await storage.migrate(engine, {name: MIGRATIONS[name] for name in ("work", "accounts")})  # without that domain
    await engine.dispose()


async def test_what_fails_half_way_leaves_nothing(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "0001_broken.py").write_text(
        "from alembic import op\nrevision, down_revision, branch_labels, depends_on = '0001', None, None, None\n\n\n"
        "def upgrade() -> None:\n    op.execute('CREATE TABLE allim_broken (id INTEGER)')\n"
        "    raise RuntimeError('no')\n"
    )
    engine = open_engine(database_url)

    with pytest.raises(RuntimeError):
        await storage.migrate(engine, {**MIGRATIONS, "broken": tmp_path})

    async with reading(engine) as connection:
        assert await connection.run_sync(columns) == {}
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
    await make_former(engine, "0004", f"INSERT INTO snapshots ({names}) VALUES {', '.join(rows)}")

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
        left = await connection.scalar(text("SELECT count(*) FROM allim_snapshots WHERE announced_at IS NULL"))
        return left is not None and int(left) == 0


async def test_many_replicas_migrate_at_once(database_url: str) -> None:
    engines = [open_engine(database_url) for _ in range(4)]
    await make_former(engines[0], "0002", "INSERT INTO accounts VALUES ('a', 'a@example.org', 'A', 'hash', 1.5)")

    await asyncio.gather(*map(migrate, engines))

    async with reading(engines[0]) as connection:
        assert await connection.run_sync(differences) == []
    assert len(await rows(engines[0], "SELECT * FROM allim_accounts")) == 1
    for engine in engines:
        await engine.dispose()


async def test_many_processes_start_on_a_new_file(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys; from allim.storage import *; from harness.schema import migrate\n"
        "asyncio.run(migrate(open_engine(sys.argv[1])))"
    )
    url = f"sqlite:///{tmp_path}/allim.db"

    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, url, env={"PYTHONPATH": "src:."})
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


async def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "50 % of: it"
    folder.mkdir()
    (folder / "0001_it.py").write_text(
        "from alembic import op\nrevision, down_revision, branch_labels, depends_on = '0001', None, None, None\n\n\n"
        "def upgrade() -> None:\n    op.execute('CREATE TABLE allim_it (id INTEGER)')\n"
    )
    engine = open_engine(f"sqlite:///{tmp_path}/allim.db")

    await storage.migrate(engine, {"it": folder})

    async with reading(engine) as connection:
        assert await connection.run_sync(Chain("it", folder).applied) == {"0001"}
    await engine.dispose()


@pytest.mark.parametrize(
    "assignments",
    ['revision = "0002"\ndown_revision = "0001"', 'revision: str = "0" + "002"\ndown_revision: str | None = "0001"'],
    ids=["as text", "otherwise, which Alembic alone reads"],
)
async def test_a_version_that_was_added_is_applied_at_the_next_start(assignments: str, tmp_path: Path) -> None:
    """The files of the versions say what is the newest, and are not run where that is enough."""
    folder = tmp_path / "versions"
    folder.mkdir()
    upgrade = (
        "from alembic import op\n{}\ndef upgrade():\n    op.execute('CREATE TABLE allim_notes_{} (id INTEGER)')\n"
    )
    (folder / "0001_one.py").write_text(upgrade.format('revision = "0001"\ndown_revision = None', "one"))
    engine = open_engine(f"sqlite:///{tmp_path / 'allim.db'}")
    try:
        await storage.migrate(engine, {"notes": folder})
        assert await storage.usable(engine, {"notes": folder})
        (folder / "0002_two.py").write_text(upgrade.format(assignments, "two"))

        assert not await storage.usable(engine, {"notes": folder})
        await storage.migrate(engine, {"notes": folder})

        assert await storage.usable(engine, {"notes": folder})
        async with reading(engine) as connection:
            names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        assert {"allim_notes_one", "allim_notes_two"} <= set(names)
    finally:
        await engine.dispose()
