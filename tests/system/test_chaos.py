"""A short storm under a fixed schedule of faults. `make chaos` runs long ones under random schedules."""

from pathlib import Path

import pytest

from tests.system.chaos import ALL_FAULTS, chaos, make_schedule

pytestmark = pytest.mark.anyio

SEED = 449


async def test_a_short_storm(tmp_path: Path) -> None:
    outcome = await chaos(25, SEED, followers=100, publishes_per_s=50, pulse_s=0.4, folder=tmp_path)

    assert outcome.clean, str(outcome)
    assert outcome.report.accepted > 1000


def test_every_fault_comes_before_any_comes_again() -> None:
    schedule = make_schedule(300, SEED)
    names = [name for round_ in schedule for name in round_.faults]

    assert schedule == make_schedule(300, SEED)
    assert set(names[: len(ALL_FAULTS)]) == set(ALL_FAULTS)
    assert len(names) >= 20
