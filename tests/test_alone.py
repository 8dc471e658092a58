"""Without Redis one process at a time serves a data folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness.replicas import SECRET, launch_replica
from harness.servers import free_port
from harness.waiting import START_S

from allim.alone import alone
from allim.app import create_app
from allim.settings import SettingsError, load_settings

pytestmark = pytest.mark.anyio

IN_USE = "ALLIM_DATA_DIR: process {pid} uses {folder}, and without Redis processes share no events"


def test_a_second_process_is_refused_in_two_lines_that_say_what_to_do(tmp_path: Path) -> None:
    first = launch_replica(tmp_path)
    try:
        first.until_ready()
        second = serve(tmp_path / "data")
    finally:
        first.end()

    assert second.returncode == 2
    [what, advice] = second.stderr.splitlines()
    assert what == "allim: " + IN_USE.format(pid=first.process.pid, folder=tmp_path / "data")
    assert "ALLIM_REDIS_URL" in advice


def serve(folder: Path, *program: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    """A replica that is expected to end by itself."""
    command = program or (sys.executable, "-m", "allim", "serve", "--port", str(free_port()))
    settings = {"ALLIM_DATA_DIR": str(folder), "ALLIM_SECRET_KEY": SECRET, **environ}
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=START_S)


def test_several_workers_of_another_server_are_refused(tmp_path: Path) -> None:
    workers = ["--workers", "3", "--port", str(free_port())]
    done = serve(tmp_path, sys.executable, "-m", "uvicorn", "--factory", "allim.app:create_app", *workers)

    assert "Stopping parent process" in done.stderr
    assert "and without Redis processes share no events → set ALLIM_REDIS_URL" in done.stderr
    assert "Traceback" not in done.stderr


def test_several_replicas_with_a_redis_of_their_own_need_the_folder_too(tmp_path: Path) -> None:
    with alone(tmp_path):
        done = serve(tmp_path, sys.executable, "-m", "allim", "up", "--replicas", "2", "--port", str(free_port()))

    assert done.returncode == 1
    [what, _] = done.stderr.splitlines()
    assert what == "allim up: " + IN_USE.format(pid=os.getpid(), folder=tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_folder_is_free_when_its_process_has_ended(tmp_path: Path, number: signal.Signals) -> None:
    for _ in range(2):
        running = launch_replica(tmp_path)
        running.until_ready()
        running.process.send_signal(number)
        running.process.wait(20)

    with alone(tmp_path / "data"):
        pass


async def test_two_applications_in_one_process_need_two_folders(tmp_path: Path) -> None:
    one, two, other = (
        create_app(load_settings({"ALLIM_DATA_DIR": str(folder), "ALLIM_SECRET_KEY": SECRET}))
        for folder in (tmp_path, tmp_path, tmp_path / "other")
    )
    async with one.router.lifespan_context(one), other.router.lifespan_context(other):
        with pytest.raises(SettingsError, match=IN_USE.format(pid=os.getpid(), folder=tmp_path)):
            async with two.router.lifespan_context(two):
                pass


def test_a_forked_child_neither_holds_the_folder_nor_gets_it(tmp_path: Path) -> None:
    code = f"""
import os, sys, time
from pathlib import Path
from allim.alone import alone
from allim.settings import SettingsError
folder = Path({str(tmp_path)!r})
with alone(folder):
    child = os.fork()
    if child == 0:
        try:
            with alone(folder):
                os._exit(1)
        except SettingsError:
            os.write(1, b"refused\\n")
            time.sleep(30)
            os._exit(0)
    os.write(1, b"%d\\n" % child)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        said = [parent.stdout.readline().strip(), parent.stdout.readline().strip()]
        parent.kill()
        parent.wait()
        try:
            with alone(tmp_path):  # although the child lives on
                pass
        finally:
            [child] = [int(word) for word in said if word.isdigit()]
            os.kill(child, signal.SIGKILL)

    assert "refused" in said


def test_a_folder_that_cannot_be_locked_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with (
        pytest.raises(SettingsError, match=r"ALLIM_DATA_DIR: .* cannot be made or locked"),
        alone(tmp_path / "file" / "folder"),
    ):
        pass


def test_replicas_over_redis_may_share_a_folder(tmp_path: Path) -> None:
    settings = load_settings(
        {"ALLIM_DATA_DIR": str(tmp_path), "ALLIM_SECRET_KEY": SECRET, "ALLIM_REDIS_URL": "redis://127.0.0.1:1/0"}
    )
    create_app(settings)

    assert not (tmp_path / "lock").exists()
