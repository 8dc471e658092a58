"""The command line, over its real commands."""

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result
from harness.replicas import PUBLISH_KEY, SECRET, Replica, replica, token
from harness.schema import migrate
from harness.servers import end, free_port
from harness.waiting import until_sync

from allim.cli import main
from allim.storage import open_engine
from tests.client.scripted import answer, page, scripted


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("ALLIM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ALLIM_DATA_DIR", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def server() -> Iterator[Replica]:
    with replica(heartbeat_s=1, pulse_s=0.2) as running:
        yield running


def run(*args: str, **environ: str) -> Result:
    return CliRunner().invoke(main, args, env=environ)


@pytest.mark.parametrize("command", [["serve"], ["up"], ["tail", "--user", "1"]])
def test_wrong_settings_are_one_line_and_status_2(command: list[str]) -> None:
    result = run(*command, ALLIM_HEARTBEAT_S="soon")

    assert result.exit_code == 2
    assert result.stderr.startswith("allim: ALLIM_HEARTBEAT_S: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_an_unknown_setting_is_told_and_no_reason_to_stop() -> None:
    result = run("serve", ALLIM_HEARBEAT_S="1", ALLIM_LOG_LEVEL="loud", SECRET_KEY="x" * 32)

    assert result.stderr.splitlines() == [
        "allim: ALLIM_HEARBEAT_S is no setting, ignored; did you mean ALLIM_HEARTBEAT_S?",
        "allim: SECRET_KEY is set and ALLIM_SECRET_KEY is not: only ALLIM_SECRET_KEY is a setting",
        "allim: ALLIM_LOG_LEVEL: must be debug, info, warning or error",
    ]


def test_a_cluster_without_a_key_does_not_start() -> None:
    result = run("serve", ALLIM_REDIS_URL="redis://localhost")

    assert result.exit_code == 2
    required, advice = result.stderr.splitlines()
    assert required.startswith("allim: ALLIM_SECRET_KEY: required when ALLIM_REDIS_URL is set")
    assert advice.startswith("     → `openssl rand -hex 32` makes one")


def test_a_port_that_is_taken_is_one_line_and_status_2(server: Replica) -> None:
    command = [sys.executable, "-m", "allim", "serve", "--port", str(server.port)]

    result = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"allim: cannot listen on 127.0.0.1:{server.port}: Address already in use",
        "     → choose another with --port, or end the process that has it",
    ]


def test_a_port_that_cannot_be_is_refused() -> None:
    """Python's sockets take 99999 for 34463."""
    for command in ("serve", "up"):
        result = run(command, "--port", "99999")
        assert (result.exit_code, "0<=x<=65535" in result.stderr) == (2, True)


def test_no_replicas_is_a_mistake() -> None:
    result = run("up", "--replicas", "0")

    assert (result.exit_code, result.stderr) == (2, "allim: --replicas: must be at least 1\n")


def test_help_and_version_need_no_settings() -> None:
    assert run("--version", ALLIM_HEARTBEAT_S="x").output.startswith("allim, version ")
    summaries = run("--help").output.partition("Commands:")[2]
    assert "..." not in summaries
    for command in ("serve", "up", "publish", "tail", "token", "key", "doctor", "plan"):
        assert f"\n  {command} " in summaries
        result = run(command, "-h", ALLIM_HEARTBEAT_S="x")
        assert (result.exit_code, "Usage: " in result.output) == (0, True)


def test_publish_prints_the_position(server: Replica) -> None:
    args = ("publish", "user:1", "orders.shipped", '{"n": 1}', "--url", server.url, "--idempotency-key", "cli-1")

    first = run(*args, "--key", PUBLISH_KEY)
    again = run(*args, ALLIM_PUBLISH_KEY=PUBLISH_KEY)

    assert first.exit_code == 0
    assert first.stdout.endswith(" (memory)\n")
    assert again.stdout == first.stdout


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("user:1", "t", "{"), "allim: JSON: "),
        (("user:1", "t", ""), "allim: JSON: "),
        (("A", "t", "1"), "allim: topic: must look like"),
        (("a", "stream.open", "1"), "allim: type: "),
    ],
)
def test_publish_says_what_is_wrong(server: Replica, args: tuple[str, ...], told: str) -> None:
    result = run("publish", *args, "--url", server.url, "--key", PUBLISH_KEY)

    assert result.exit_code == 2
    assert result.stderr.startswith(told)
    assert result.stderr.count("\n") == 1


def test_publish_with_a_wrong_key_is_refused(server: Replica) -> None:
    result = run("publish", "a", "t", "1", "--url", server.url, "--key", "wrong")

    assert (result.exit_code, result.stderr) == (2, "allim: The publish key is not known.\n")


def test_publish_needs_a_key() -> None:
    assert run("publish", "a", "t", "1").exit_code == 2


def test_publish_without_a_server_is_not_confirmed() -> None:
    result = run(
        "publish", "a", "t", "1", "--url", f"http://127.0.0.1:{free_port()}", "--key", "k", "--timeout-s", "1"
    )

    assert result.exit_code == 2
    assert re.match(r"allim: \d+ attempts? in 1 s: .*; the event is not stored; idempotency key ", result.stderr)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("NaN",), "data: nan is no number in JSON"),
        (('"\\ud800"',), "data: a value of type str cannot be written as JSON: "),
        (("1", "--url", "example.org"), "url: must begin with http:// or https:// and name a host"),
        (("1", "--timeout-s", "0"), "timeout_s: must be "),
        (("1", "--idempotency-key", ""), "idempotency_key: must be "),
    ],
)
def test_publish_names_what_cannot_be(args: tuple[str, ...], told: str) -> None:
    result = run("publish", "a", "t", *args, "--key", "k")

    assert result.exit_code == 2
    assert result.stderr.startswith(f"allim: {told}")
    assert result.stderr.count("\n") == 1


def test_tail_says_why_it_hears_nothing() -> None:
    with scripted(page(502), answer(204)) as server:
        url = server.url
        result = run("tail", "--url", url, "--token", "t")

    assert result.stderr.splitlines() == [
        f"allim: {url}: HTTP status 502; trying again",
        "allim: the stream was refused: the server says not to come back",
    ]


def test_tail_of_what_is_no_stream_is_one_line_and_status_2() -> None:
    with scripted(page(200)) as server:
        result = run("tail", "--url", server.url, "--token", "t")

    assert result.exit_code == 2
    assert result.stderr.startswith("allim: the answer is no event stream (Content-Type: text/html); ")


def test_tail_shows_id_type_and_data(server: Replica, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-u", "-m", "allim", "tail", "--url", server.url, "--user", "tail"]
    environ = {**os.environ, "ALLIM_SECRET_KEY": SECRET, "ALLIM_DATA_DIR": str(tmp_path)}
    with out.open("wb") as file:
        process = subprocess.Popen(command, env=environ, stdout=file, stderr=file)
    try:
        until_sync(lambda: "stream.open" in out.read_text(), what="the stream is open")
        position = server.publish(("user:tail", "t", {"text": "ü"})).json()["id"]
        until_sync(lambda: f'{position}  t  {{"text": "ü"}}\n' in out.read_text(), what="the event is shown")
    finally:
        end(process)


def test_tail_that_is_refused_is_one_line_and_status_2(server: Replica) -> None:
    result = run("tail", "--url", server.url, "--token", "garbage")
    foreign = run("tail", "--url", server.url, "--token", token(), "--topics", "secret")

    assert (result.exit_code, result.stderr) == (2, "allim: The token is not valid; sign in again.\n")
    assert (foreign.exit_code, foreign.stderr.count("\n")) == (2, 1)


def test_tail_needs_somebody_to_be() -> None:
    result = run("tail")

    assert (result.exit_code, result.stderr) == (2, "allim: give --token or --user\n")


def test_token_makes_somebody_an_operator(server: Replica) -> None:
    made = run("token", "ops", "--operator", ALLIM_SECRET_KEY=SECRET)
    headers = {"authorization": f"Bearer {made.stdout.strip()}"}

    assert httpx.delete(f"{server.url}/api/users/nobody/streams", headers=headers).status_code == 204


@pytest.mark.parametrize("args", [("a\nb",), ("u1", "--topics", "News"), ("u1", "--lifetime-s", "0")])
def test_token_says_that_it_would_be_none(args: tuple[str, ...]) -> None:
    result = run("token", *args, ALLIM_SECRET_KEY=SECRET)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "allim: this would be no valid token: see USER, --topics and --lifetime-s\n"


def test_doctor_prints_what_is_wrong_and_what_to_do() -> None:
    fine = run("doctor", ALLIM_SECRET_KEY=SECRET)
    wrong = run("doctor", ALLIM_SECRET_KEY=SECRET, ALLIM_REDIS_URL="redis://127.0.0.1:1")

    assert fine.exit_code == 0, fine.output
    assert "ok   settings: one process, memory broker" in fine.stdout
    assert wrong.exit_code == 1
    assert "FAIL redis: " in wrong.stdout
    assert "     → start redis-server there, or correct ALLIM_REDIS_URL" in wrong.stdout


def test_key_makes_a_secret_and_the_entry_that_knows_it(tmp_path: Path) -> None:
    made = run("key", "shop")
    wrong = run("key", "a shop")

    lines = dict(line.split() for line in made.stdout.splitlines())
    assert len(lines["secret"]) > 40
    assert lines["secret"] not in lines["entry"]
    with replica(publish_keys=lines["entry"]) as running:
        published = run("publish", "a", "t", "1", "--url", running.url, ALLIM_PUBLISH_KEY=lines["secret"])
    assert published.exit_code == 0, published.output
    assert (wrong.exit_code, wrong.stderr) == (2, "allim: NAME: must be 1 to 64 of A-Z a-z 0-9 . _ ~ -\n")


async def migrated(url: str) -> None:
    engine = open_engine(url)
    await migrate(engine)
    await engine.dispose()


def test_dead_jobs_are_listed_and_tried_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/allim.db"
    before = run("work", "dead", ALLIM_DATABASE_URL=url)
    assert (before.exit_code, "has not run with this database" in before.output) == (2, True)
    asyncio.run(migrated(url))
    with closing(sqlite3.connect(tmp_path / "allim.db")) as database, database:
        for job in ("one", "two", "three"):
            values = (job, "orders.receipt", '["a"]', "dead", 1.0, 1.0, 11, 11, "RuntimeError: odd", 2.0)
            names = "id, name, arguments, state, due_at, written_at, attempts, failures, error, ended_at"
            database.execute(f"INSERT INTO allim_work_jobs ({names}) VALUES ({', '.join('?' * 10)})", values)

    listed = run("work", "dead", ALLIM_DATABASE_URL=url)
    neither = run("work", "retry", ALLIM_DATABASE_URL=url)
    one = run("work", "retry", "one", ALLIM_DATABASE_URL=url)
    again = run("work", "retry", "one", ALLIM_DATABASE_URL=url)
    others = run("work", "retry", "--all", ALLIM_DATABASE_URL=url)
    none = run("work", "dead", ALLIM_DATABASE_URL=url)

    assert 'one  orders.receipt  11  RuntimeError: odd  ["a"]' in listed.output.splitlines()
    assert len(listed.output.splitlines()) == 3
    assert (neither.exit_code, one.output, again.exit_code) == (2, "1 tried again\n", 2)
    assert (others.output, none.output) == ("2 tried again\n", "")
