"""`make simulate`: schedule after schedule, until one fails, which is then made smaller and shown."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence

import click

from tests.simulation.schedule import shrink
from tests.simulation.simulate import Outcome, schedule_of, simulate

SHRINK_TRIES = 150
SHOWN_LINES = 60

real_time = time.monotonic


@click.command()
@click.option("--seconds", type=float, default=60.0, help="How long to go on.")
@click.option("--seed", type=int, help="The one schedule to run; otherwise the first of many is drawn.")
@click.option("--first", type=int, help="The first of many seeds.")
@click.option("--count", type=int, help="How many schedules at most.")
@click.option("--step", type=int, default=1, help="From a seed to the next.")
@click.option("--digest", is_flag=True, help="Of the one schedule say only what repeats exactly.")
@click.option("--survey", is_flag=True, help="Do not stop at a failure: count the kinds.")
@click.option("--shrink/--whole", "smaller", default=True, help="Make a failing schedule smaller.")
def main(
    seconds: float,
    seed: int | None,
    first: int | None,
    count: int | None,
    step: int,
    digest: bool,
    survey: bool,
    smaller: bool,
) -> None:
    """See the module."""
    if os.environ.get("PYTHONHASHSEED") != "0":  # or sets of text have another order each time
        sys.exit(subprocess.run([sys.executable, "-m", "tests.simulation", *sys.argv[1:]], env=_env()).returncode)
    if seed is not None:
        outcome = simulate(schedule_of(seed), trace=not smaller)
        if digest:
            click.echo(f"{seed} {outcome.digest}")
            return
        click.echo(outcome.schedule)
        click.echo(f"{outcome}\nDIGEST {outcome.digest}")
        if not outcome.clean:
            _show(outcome, smaller)
            sys.exit(1)
        return
    first = random.SystemRandom().randrange(10**9) if first is None else first
    sys.exit(_many(range(first, first + step * (count or 10**9), step), seconds, survey=survey, smaller=smaller))


def _many(seeds: Sequence[int], seconds: float, *, survey: bool, smaller: bool) -> int:
    began, done = real_time(), 0
    kinds: Counter[str] = Counter()
    for seed in seeds:
        if real_time() - began > seconds:
            break
        outcome = simulate(schedule_of(seed))
        done += 1
        if outcome.clean:
            continue
        if not survey:
            _show(outcome, smaller)
            return 1
        kinds.update(outcome.kinds)
        click.echo(f"seed {seed}: {', '.join(sorted(outcome.kinds))}")
    click.echo(f"{done} schedules from {seeds[0]} in {real_time() - began:.1f} s: {dict(kinds) or 'clean'}")
    return 1 if kinds else 0


def _show(outcome: Outcome, smaller: bool) -> None:
    seed, kinds = outcome.schedule.seed, outcome.kinds
    click.echo(f"FAILED seed {seed}: {', '.join(sorted(kinds))}")
    click.echo(f"{outcome}")
    schedule = outcome.schedule
    if not smaller:
        for line in outcome.trace:
            click.echo(line)
        return
    if smaller:
        schedule = shrink(schedule, lambda other: bool(simulate(other).kinds & kinds), SHRINK_TRIES)
    shrunk = simulate(schedule, trace=True)
    click.echo(f"\nThe same kind of failure, with less:\n{schedule}\n\n{shrunk}\n")
    for line in shrunk.trace[-SHOWN_LINES:]:
        click.echo(line)
    click.echo(f"\nAgain: make simulate SEED={seed}")


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": "0"}


if __name__ == "__main__":
    main()
