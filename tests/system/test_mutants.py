"""The checker is only as good as what it catches: the product, broken in its four vital places, under a storm."""

from pathlib import Path
from typing import Any

import pytest

from tests.mutants import ANNOUNCE_BEFORE_APPEND, DROP_THE_REPAIR, IGNORE_THE_ORIGIN, SKIP_THE_BUFFER, Mutant, mutated
from tests.system.chaos import chaos

pytestmark = pytest.mark.anyio

SEEDS = (7, 11, 13)  # what a storm meets is chance: each of them may be calm where the product is broken
RETURNS = ("replica_crashes", "nginx_crashes")
STORM: dict[str, Any] = {"followers": 100, "publishes_per_s": 80, "pulse_s": 0.4}
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
        for seed in SEEDS:
            folder = tmp_path / str(seed)
            folder.mkdir()
            outcome = await chaos(
                15, seed, followers=100, publishes_per_s=80, pulse_s=0.4, only=faults, folder=folder
            )
            if outcome.report.violations["holes"] or outcome.report.violations["origin"]:
                return

    raise AssertionError(str(outcome))
