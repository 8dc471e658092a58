"""Every foreseeable way in which `allim serve` does not start: two lines say what is wrong and what to do."""

import http.server
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from harness.postgres import fresh_database, postgres_server
from harness.replicas import SECRET, launch_replica
from harness.schema import migrate
from harness.servers import Redis, free_port, redis_server
from harness.waiting import START_S, until_sync
from sqlalchemy import text

from allim.storage import open_engine, writing

START = [sys.executable, "-m", "allim", "serve", "--port", "0"]
HIDDEN = "hunter2"  # every password here, right or wrong


@pytest.fixture(scope="module")
def guarded() -> Iterator[Redis]:
    """A Redis with a password, and without a second database."""
    with redis_server("--databases", "1") as server:
        with server.client() as client:
            client.config_set("requirepass", HIDDEN)
        yield server


@pytest.fixture(scope="module")
def web() -> Iterator[int]:
    """The port of a web server."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


def refused(folder: Path, *args: str, **environ: str) -> list[str]:
    """The lines with which a start ends that is refused."""
    given = {
        "PATH": os.environ["PATH"],
        "ALLIM_DATA_DIR": str(folder / "data"),
        "ALLIM_SECRET_KEY": SECRET,
        **environ,
    }
    done = subprocess.run([*START, *args], env=given, capture_output=True, text=True, timeout=START_S)

    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert HIDDEN not in done.stderr
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://127.0.0.1:{guarded}/0", "127.0.0.1:{guarded} demands a password, and ALLIM_REDIS_URL gives none"),
        ("redis://:{hidden}-wrong@127.0.0.1:{guarded}/0", "127.0.0.1:{guarded} does not let this user in: "),
        ("redis://:{hidden}@127.0.0.1:{open}/0", "127.0.0.1:{open} has no password, and ALLIM_REDIS_URL gives one"),
        ("redis://:{hidden}@127.0.0.1:{guarded}/1", "127.0.0.1:{guarded} has no database of this number"),
        ("redis://127.0.0.1:{web}/0", "127.0.0.1:{web} is no Redis: it speaks another protocol"),
        ("redis+sentinel://127.0.0.1:{open}/main", "the sentinels 127.0.0.1:{open}: this is no sentinel"),
        (
            "rediss://127.0.0.1:{open}/0?ssl_ca_certs=/no/ca.pem",
            "ssl_ca_certs in ALLIM_REDIS_URL names /no/ca.pem: no such file or directory",
        ),
    ],
    ids=["no password", "wrong password", "needless password", "database", "web server", "no sentinel", "no CA"],
)
def test_a_redis_that_will_not_do(
    tmp_path: Path, redis: Redis, guarded: Redis, web: int, url: str, said: str
) -> None:
    names = {"open": redis.port, "guarded": guarded.port, "web": web, "hidden": HIDDEN}

    what, advice = refused(tmp_path, ALLIM_REDIS_URL=url.format(**names))

    assert what.startswith(f"allim: ALLIM_REDIS_URL: {said.format(**names)}")
    assert advice.startswith("     → ")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"redis://:{HIDDEN}/x@127.0.0.1/0", "has no host and port; "),
        ("redis://127.0.0.1/main", "the database after the host must be a number"),
        ("redis://127.0.0.1/0?color=red", "has a parameter not known here: 'color'"),
        (f"redis+sentinel://:{HIDDEN}@127.0.0.1:{HIDDEN}/main", "has no host and port; "),
    ],
    ids=["password", "database", "parameter", "sentinel"],
)
def test_a_redis_url_that_cannot_be_is_one_line(tmp_path: Path, url: str, said: str) -> None:
    (line,) = refused(tmp_path, ALLIM_REDIS_URL=url)

    assert line.startswith(f"allim: ALLIM_REDIS_URL: {said}")


def test_a_redis_that_is_not_there_yet_is_told_once_in_plain_words_and_waited_for(tmp_path: Path) -> None:
    port = free_port()
    running = launch_replica(tmp_path, redis_url=f"redis://127.0.0.1:{port}/0")
    try:
        line = f'"error": "127.0.0.1:{port} refuses the connection", "advice": "start redis-server there, or'
        until_sync(lambda: line in running.log.read_text(), START_S, what="the line")
        until_sync(lambda: '"event": "capacity"' in running.log.read_text(), START_S, what="the start goes on")
    finally:
        running.kill()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://u:{hidden}@127.0.0.1:{nothing}/x", "127.0.0.1:{nothing} refuses the connection"),
        (
            "postgresql://u:{hidden}@no-such-host.invalid/x",
            "no-such-host.invalid:5432: there is no host of this name",
        ),
        ("{postgres}_not_there", "127.0.0.1:{port} has no database 'postgres_not_there'"),
        ("{stranger}", "127.0.0.1:{port} does not let user 'stranger' in: "),
        ("{postgres}?sslmode=require", "127.0.0.1:{port} does not speak TLS as demanded"),
        ("sqlite:///{folder}/text.db", "{folder}/text.db is no SQLite database"),
        ("sqlite:////proc/x/allim.db", "the sqlite file /proc/x/allim.db cannot be opened: no such file"),
    ],
    ids=["refused", "host", "database", "user", "tls", "no database", "folder"],
)
def test_a_database_that_will_not_do(tmp_path: Path, postgres: str, url: str, said: str) -> None:
    (tmp_path / "text.db").write_text("no database, but a text that is long enough to be read as one. " * 20)
    port = postgres.rpartition(":")[2].partition("/")[0]
    names = {
        "hidden": HIDDEN,
        "nothing": free_port(),
        "postgres": postgres,
        "stranger": postgres.replace("allim@", "stranger@"),
        "port": port,
        "folder": tmp_path,
    }

    what, advice = refused(tmp_path, ALLIM_DATABASE_URL=url.format(**names))

    assert what.startswith(f"allim: ALLIM_DATABASE_URL: {said.format(**names)}")
    assert advice.startswith("     → ")


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_schema_of_a_newer_allim_is_named(tmp_path: Path, postgres: str, kind: str) -> None:
    async def made_newer() -> str:
        url = f"sqlite:///{tmp_path}/newer.db" if kind == "sqlite" else await fresh_database(postgres)
        engine = open_engine(url)
        await migrate(engine)
        async with writing(engine) as connection:
            await connection.execute(text("UPDATE allim_accounts_version SET version_num = '9999'"))
        await engine.dispose()
        return url

    what, advice = refused(tmp_path, ALLIM_DATABASE_URL=anyio.run(made_newer))

    assert what.startswith("allim: ALLIM_DATABASE_URL: its schema accounts 9999 is not known to allim ")
    assert advice.startswith("     → run that version or a later one")


@pytest.mark.parametrize(
    ("args", "environ", "said"),
    [
        ((), {"ALLIM_DATA_DIR": "/proc/x"}, "ALLIM_DATA_DIR: /proc/x/lock cannot be made or locked: no such file"),
        (
            (),
            {"ALLIM_DATA_DIR": "/proc/x", "ALLIM_SECRET_KEY": ""},
            "ALLIM_DATA_DIR: No such file or directory: /proc/x",
        ),
        (("--host", "192.0.2.1"), {}, "cannot listen on 192.0.2.1:0: Cannot assign requested address"),
    ],
    ids=["lock", "secret key", "host"],
)
def test_a_folder_and_an_address_that_will_not_do(
    tmp_path: Path, args: tuple[str, ...], environ: dict[str, str], said: str
) -> None:
    lines = refused(tmp_path, *args, **environ)

    assert lines[0].startswith(f"allim: {said}")
    assert len(lines) <= 2


def test_a_second_signal_ends_at_once_without_an_error(tmp_path: Path) -> None:
    running = launch_replica(tmp_path, drain_s=600)
    running.until_ready()
    running.process.send_signal(signal.SIGTERM)
    until_sync(lambda: '"at_once": false' in running.log.read_text(), what="the first signal")
    running.process.send_signal(signal.SIGTERM)

    assert running.process.wait(START_S) == 0
    assert '"level": "error"' not in running.log.read_text()
    assert "Traceback" not in running.log.read_text()
