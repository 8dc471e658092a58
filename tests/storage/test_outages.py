"""A database that cannot take a write is an outage, with its reason, and counts again when it takes writes."""

import asyncio
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest
import structlog
from harness.postgres import fresh_database
from harness.proxy import fault_proxy
from harness.waiting import until
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from allim.errors import Unavailable
from allim.storage import engine as engine_module
from allim.storage import open_engine, reading, writable, writing

pytestmark = pytest.mark.anyio

TAKES_NO_WRITES = "The database takes no writes: it is a standby, or read-only."


@pytest.fixture
async def database(postgres: str) -> str:
    """The URL of a PostgreSQL database with a table in it."""
    url = await fresh_database(postgres)
    await asked(url, "CREATE TABLE counter (n INTEGER NOT NULL)")
    return url


@pytest.fixture
async def engine(database: str) -> AsyncIterator[AsyncEngine]:
    opened = open_engine(database)
    yield opened
    await opened.dispose()


@pytest.fixture
async def sqlite_engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """An engine for `allim.db`, with a table in it."""
    opened = open_engine(f"sqlite:///{tmp_path}/allim.db")
    async with writing(opened) as connection:
        await connection.execute(text("CREATE TABLE counter (n INTEGER NOT NULL)"))
    yield opened
    await opened.dispose()


async def asked(url: str, *statements: str) -> None:
    """Run the statements, also where transactions only read by default."""
    connection = await asyncpg.connect(url, server_settings={"default_transaction_read_only": "off"})
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def write(engine: AsyncEngine) -> None:
    async with writing(engine) as connection:
        await connection.execute(text("INSERT INTO counter VALUES (1)"))


async def refusal(engine: AsyncEngine) -> str:
    """Return the detail with which a write is refused."""
    with pytest.raises(Unavailable) as outage:
        await write(engine)
    return outage.value.detail


async def redness(engine: AsyncEngine) -> str:
    """Return the detail with which the database is not ready."""
    with pytest.raises(Unavailable) as outage:
        await writable(engine)
    return outage.value.detail


async def accepts_again(engine: AsyncEngine) -> bool:
    try:
        await write(engine)
        await writable(engine)
    except Unavailable:
        return False
    return True


# PostgreSQL ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    ["08006", "25006", "40001", "40P01", "53100", "53200", "53300", "55P03", "57P01", "57P03", "57014", "58030"],
)
async def test_a_state_of_the_server_is_an_outage(engine: AsyncEngine, state: str) -> None:
    with structlog.testing.capture_logs() as logs, pytest.raises(Unavailable):
        async with writing(engine) as connection:
            await connection.exec_driver_sql(f"DO $$ BEGIN RAISE 'so it is' USING ERRCODE = '{state}'; END $$")

    assert [(line["event"], line["reason"]) for line in logs] == [("database unavailable", "so it is")]
    await write(engine) if state != "25006" else await until(lambda: accepts_again(engine))


async def test_connections_to_a_server_that_only_reads_are_dropped(engine: AsyncEngine, database: str) -> None:
    await asyncio.gather(write(engine), write(engine))  # two are in the pool

    await asked(database, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    try:
        await until(lambda: is_refused(engine))
        assert await refusal(engine) == TAKES_NO_WRITES
        assert await redness(engine) == TAKES_NO_WRITES
    finally:
        await asked(database, "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")

    await until(lambda: accepts_again(engine))


async def is_refused(engine: AsyncEngine) -> bool:
    """Return whether a write is refused: the server reads its new configuration a moment later."""
    try:
        await write(engine)
    except Unavailable:
        return True
    return False


async def test_a_probe_finds_what_no_write_has_met_and_drops_all_connections(engine: AsyncEngine) -> None:
    async with writing(engine) as one, writing(engine) as another:
        for connection in (one, another):
            await connection.exec_driver_sql("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")

    assert await redness(engine) == TAKES_NO_WRITES
    await asyncio.gather(write(engine), write(engine))  # on new connections


async def test_a_full_disk_is_seen_although_small_writes_go_on(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "FULL_S", 1.0)
    with pytest.raises(Unavailable):
        async with writing(engine) as connection:
            await connection.exec_driver_sql("DO $$ BEGIN RAISE 'no space' USING ERRCODE = '53100'; END $$")

    assert await redness(engine) == "The disk of the database is full."
    await until(lambda: accepts_again(engine))


async def test_sessions_that_were_ended_are_replaced(engine: AsyncEngine, database: str) -> None:
    await asyncio.gather(*(write(engine) for _ in range(5)))
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> "

    await asked(database, others + "pg_backend_pid()")

    await asyncio.gather(*(write(engine) for _ in range(5)))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("allim@", "unknown@"), "The database refuses this user."),
        (("/test_", "/no_test_"), "The database does not exist."),
    ],
    ids=["user", "database"],
)
async def test_a_server_that_refuses_the_connection_is_an_outage(
    database: str, changed: tuple[str, str], said: str
) -> None:
    engine = open_engine(database.replace(*changed))

    assert await refusal(engine) == said
    assert await redness(engine) == said
    await engine.dispose()


async def test_a_role_without_a_connection_left_is_an_outage(database: str) -> None:
    role = f"limited_{database.rpartition('/')[2]}"
    await asked(database, f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 0")
    engine = open_engine(database.replace("allim@", f"{role}@"))

    assert await refusal(engine) == "The database takes no more connections."
    await engine.dispose()


async def test_a_server_that_vanished_costs_no_request(database: str) -> None:
    port = int(database.partition("127.0.0.1:")[2].partition("/")[0])
    with fault_proxy(port) as proxy:
        engine = open_engine(database.replace(str(port), str(proxy.port)))
        await asyncio.gather(*(write(engine) for _ in range(4)))

        proxy.black_hole(present_only=True)  # as when a failover moves an address
        async with asyncio.timeout(12):  # a query may take 15 s, and there are four connections
            for _ in range(5):
                await write(engine)
        await engine.dispose()


async def test_the_next_host_is_asked_when_one_does_not_answer(database: str) -> None:
    address = database.partition("@")[2].partition("/")[0]
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and then nothing
        silent.setblocking(False)
        engine = open_engine(database.replace(address, f"127.0.0.1:{silent.getsockname()[1]},{address}"))

        async with writing(engine), writing(engine):  # two connections
            pass

        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):  # the second one went to the other host at once
            silent.accept()
        await engine.dispose()


@pytest.mark.parametrize(
    "hosts",
    ["[::1]:1,{address}", "127.0.0.1:1,{address}", "{address},127.0.0.1"],
    ids=["ipv6", "closed-port", "without-port"],
)
async def test_hosts_may_be_written_as_libpq_does(database: str, hosts: str) -> None:
    address = database.partition("@")[2].partition("/")[0]
    engine = open_engine(
        database.replace(address, hosts.format(address=address)) + "?target_session_attrs=read-write"
    )

    await writable(engine)
    await engine.dispose()


async def test_hosts_may_be_written_as_sqlalchemy_does(database: str) -> None:
    address, name = database.partition("@")[2].split("/")
    engine = open_engine(f"postgresql://allim@/{name}?host=127.0.0.1:1&host={address}")

    await writable(engine)
    await engine.dispose()


# SQLite -------------------------------------------------------------------------------------------------------------


async def test_a_file_locked_by_another_process_is_not_ready(sqlite_engine: AsyncEngine, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "allim.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        async with asyncio.timeout(5):  # a write waits for 10 s
            assert await redness(sqlite_engine) == "The database is locked."

    await until(lambda: accepts_again(sqlite_engine))


async def test_nothing_is_written_to_a_deleted_file(sqlite_engine: AsyncEngine, tmp_path: Path) -> None:
    (tmp_path / "allim.db").rename(tmp_path / "away.db")

    with structlog.testing.capture_logs() as logs:
        assert await refusal(sqlite_engine) == "The database file was deleted or replaced."
    assert await redness(sqlite_engine) == "The database file was deleted or replaced."
    with pytest.raises(Unavailable):
        async with reading(sqlite_engine) as connection:
            await connection.execute(text("SELECT n FROM counter"))
    assert not (tmp_path / "allim.db").exists()
    assert "put the old file back, or restart every replica" in logs[0]["reason"]

    (tmp_path / "away.db").rename(tmp_path / "allim.db")
    await write(sqlite_engine)
    await writable(sqlite_engine)


async def test_nothing_is_written_beside_a_file_that_took_its_place(
    sqlite_engine: AsyncEngine, tmp_path: Path
) -> None:
    shutil.copy(tmp_path / "allim.db", tmp_path / "backup.db")
    (tmp_path / "backup.db").rename(tmp_path / "allim.db")

    assert await refusal(sqlite_engine) == "The database file was deleted or replaced."
    assert await redness(sqlite_engine) == "The database file was deleted or replaced."


async def test_a_file_deleted_during_a_transaction_is_told(sqlite_engine: AsyncEngine, tmp_path: Path) -> None:
    async def lose() -> None:
        async with writing(sqlite_engine) as connection:
            await connection.execute(text("INSERT INTO counter VALUES (1)"))
            (tmp_path / "allim.db").unlink()

    with pytest.raises(Unavailable):
        await lose()


async def test_a_deleted_write_ahead_log_is_told(sqlite_engine: AsyncEngine, tmp_path: Path) -> None:
    (tmp_path / "allim.db-wal").unlink()

    assert await refusal(sqlite_engine) == "The database file was deleted or replaced."
    assert await redness(sqlite_engine) == "The database file was deleted or replaced."


async def test_a_damaged_file_is_an_outage(sqlite_engine: AsyncEngine, tmp_path: Path) -> None:
    async with writing(sqlite_engine) as connection:  # for the pages to be in the file, and in no cache
        await connection.execute(
            text(
                "INSERT INTO counter WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL "
                "SELECT i + 1 FROM n WHERE i < 5000) SELECT i FROM n"
            )
        )
    with closing(sqlite3.connect(tmp_path / "allim.db")) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (tmp_path / "allim.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 60_000)
    await sqlite_engine.dispose()

    with pytest.raises(Unavailable) as outage:
        async with reading(sqlite_engine) as connection:
            await connection.execute(text("SELECT sum(n) FROM counter"))
    assert outage.value.detail == "The database file is damaged."


FULL_DISK = """
import asyncio, sys
from pathlib import Path
from sqlalchemy import text
from allim.errors import Unavailable
from allim.storage import open_engine, writable, writing

async def told(step):
    try:
        await step
    except Unavailable as outage:
        return outage.detail
    return "ok"

async def write(engine):
    async with writing(engine) as connection:
        await connection.execute(text("INSERT INTO words VALUES (:word)"), {"word": "x" * 3000})

async def main(folder):
    engine = open_engine(f"sqlite:///{folder}/allim.db")
    async with writing(engine) as connection:
        await connection.execute(text("CREATE TABLE words (word TEXT)"))
    await write(engine)
    filler = (folder / "filler").open("wb", buffering=0)
    try:
        while True:
            filler.write(bytes(4096))
    except OSError:
        print(await told(write(engine)), await told(writable(engine)), sep="\\n")
    filler.truncate(0)
    print(await told(write(engine)), await told(writable(engine)), sep="\\n")
    await engine.dispose()

asyncio.run(main(Path(sys.argv[1])))
"""


def test_a_full_disk_is_an_outage_until_there_is_room(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=1m none "$1" && exec "$2" -c "$3" "$1"'
    private = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run(
        [*private, "mount", "-t", "tmpfs", "none", tmp_path], check=False, capture_output=True
    ).returncode:
        pytest.skip("NO DISK CAN BE MOUNTED, so a full one is not tested: allow user namespaces, or run as root")

    ran = subprocess.run(
        [*private, "sh", "-c", mount, "sh", tmp_path, sys.executable, FULL_DISK],
        env={**os.environ, "PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        check=True,
    )

    full = "The disk of the database is full."
    assert [line for line in ran.stdout.splitlines() if "database unavailable" not in line] == [
        full,
        full,
        "ok",
        "ok",
    ]
