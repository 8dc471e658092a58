"""The checker is only as good as what it catches: the product, broken in its four vital places, under a storm."""

from pathlib import Path

import pytest

from tests.mutants import ANNOUNCE_BEFORE_APPEND, DROP_THE_REPAIR, IGNORE_THE_ORIGIN, SKIP_THE_BUFFER, Mutant, mutated
from tests.system.chaos import chaos

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

SEED = 7
RETURNS = ("replica_crashes", "nginx_crashes")
LOSSES = ("redis_is_flushed", "redis_crashes_and_is_empty")
CUTS = ("redis_kills_subscribers", "link_is_cut", "link_is_silent")


@pytest.mark.parametrize(
    ("mutant", "faults"),
    [
        (SKIP_THE_BUFFER, RETURNS),
        (IGNORE_THE_ORIGIN, LOSSES),
        (ANNOUNCE_BEFORE_APPEND, RETURNS),
        (DROP_THE_REPAIR, CUTS),
    ],
    ids=lambda value: value.name if isinstance(value, Mutant) else "",
)
async def test_the_checker_catches(
    mutant: Mutant, faults: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mutated(mutant) as sources:
        monkeypatch.setenv("PYTHONPATH", str(sources))  # for the replicas; the storm itself stays whole
        outcome = await chaos(15, SEED, followers=100, publishes_per_s=80, pulse_s=0.4, only=faults, folder=tmp_path)

    assert outcome.report.violations["holes"] or outcome.report.violations["origin"], str(outcome)
