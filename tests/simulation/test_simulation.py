"""A thousand schedules, each the same whenever it runs; what fails is shrunk and shown."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.schedule import shrink
from tests.simulation.simulate import schedule_of

ROOT = Path(__file__).parents[2]
FIRST, BLOCK = 1_000, 250


def _start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.simulation", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("first", range(FIRST, FIRST + 4 * BLOCK, BLOCK))
def test_whatever_befalls_every_promise_is_kept(first: int) -> None:
    processes = os.cpu_count() or 1
    running = [
        _start("--first", str(first + at), "--step", str(processes), "--count", str(count), "--seconds", "1400")
        for at in range(processes)
        if (count := len(range(at, BLOCK, processes)))
    ]

    said = [process.communicate()[0] for process in running]

    assert not any(process.returncode for process in running), "\n".join(said)


def test_a_seed_repeats_its_schedule_exactly() -> None:
    running = [_start("--seed", "1007", "--digest") for _ in range(2)]

    first, second = [process.communicate()[0] for process in running]

    assert first == second
    assert first.startswith("1007 ")


def test_a_failing_schedule_is_shrunk_to_what_makes_it_fail() -> None:
    schedule = next(schedule for schedule in map(schedule_of, range(100)) if len(schedule.steps) >= 4)
    culprit = schedule.steps[2]

    smaller = shrink(schedule, lambda other: any(step.what == culprit.what for step in other.steps), tries=200)

    assert [step.what for step in smaller.steps] == [culprit.what]
    assert len(smaller.readers) == len(smaller.replicas) == len(smaller.topics) == 1
