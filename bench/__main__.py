"""Measure allim and its peers side by side.

    python -m bench [--quick] [--runs 3] [--only NAME …] [--write docs/performance.md]

Each contender runs alone, over an empty Redis of its own; the contenders take turns, run after run. The exit status
is 1 when a delivery was lost, doubled or came to the wrong stream.
"""

import datetime
import os
import platform
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.servers import redis_server

from bench.allim import ALLIM, PORTABLE
from bench.contender import Contender
from bench.generator import Failure
from bench.measure import machine, redis_version
from bench.peers import PEERS
from bench.remote import generator
from bench.report import Results, Row, document, write
from bench.scenarios import AT_ONCE, FIGURES, SCENARIOS, Scenario, Stage


class Phase(NamedTuple):
    """Scenarios that one start of a contender goes through, with so many streams."""

    streams: int
    names: tuple[str, ...]


class Pace(NamedTuple):
    """Units: `seconds` for each load, `settle_s` for streams to lie idle: longer than allim's heartbeat of 15 s."""

    phases: tuple[Phase, ...]
    seconds: float
    settle_s: float
    runs: int


PUBLISHES = tuple(f"publish-{at_once}" for at_once in AT_ONCE)
FULL = Pace(
    (
        Phase(1_000, ("broadcast", *PUBLISHES, "batch", "paced")),
        Phase(10_000, ("idle", "broadcast", "beside", "resume")),
    ),
    seconds=4.0,
    settle_s=20.0,
    runs=3,
)
QUICK = Pace(
    (Phase(1_000, tuple(scenario.name for scenario in SCENARIOS)),),
    seconds=0.5,
    settle_s=1.0,
    runs=1,
)


@click.command()
@click.option("--quick", is_flag=True, help="A look in two minutes: 1,000 streams, one short run.")
@click.option("--runs", type=int, help="Medians of so many runs.")
@click.option("--only", multiple=True, help="Contenders and scenarios whose names hold this.")
@click.option("--write", "page", type=click.Path(path_type=Path, exists=True), help="Put the report into this page.")
def main(quick: bool, runs: int | None, only: Sequence[str], page: Path | None) -> None:
    """Measure, side by side."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    pace = QUICK if quick else FULL
    contenders, scenarios = _chosen(only)
    facts = _facts(quick, runs or pace.runs)
    results = Results()
    for run in range(runs or pace.runs):
        for phase in pace.phases:
            for contender in contenders:
                _go_through(contender, phase, scenarios, pace, results)
        _say(f"run {run + 1} of {runs or pace.runs} done")
    report = document(facts, results, contenders)
    print(report)
    if page:
        write(report, page)
    sys.exit(1 if results.problems else 0)


def _chosen(only: Sequence[str]) -> tuple[list[Contender], list[Scenario]]:
    """What the words choose; a word that fits no contender chooses scenarios, and the other way round. allim always
    runs: the others are compared with it."""
    known = (*PEERS, PORTABLE)
    peers = [peer for peer in known if any(word in peer.name for word in only if word != ALLIM.name)]
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in only]
    unknown = [
        word
        for word in only
        if not any(word in one.name for one in (ALLIM, *known)) and word not in {one.name for one in SCENARIOS}
    ]
    if unknown:
        raise click.BadParameter(f"nothing has the name {', '.join(unknown)}")
    return [ALLIM, *(peers if peers or ALLIM.name in only else PEERS)], scenarios or list(SCENARIOS)


def _go_through(
    contender: Contender, phase: Phase, scenarios: Sequence[Scenario], pace: Pace, results: Results
) -> None:
    """All scenarios of a phase, with one contender that is started for them."""
    wanted = [one for name in phase.names for one in scenarios if one.name == name]
    able = [one for one in wanted if one.needs <= contender.can]
    for scenario in wanted:
        if scenario not in able:
            _miss(results, scenario, phase.streams, contender, "cannot")
    if not able:
        return
    with (
        tempfile.TemporaryDirectory(prefix="allim-bench-") as folder,
        redis_server() as redis,
        contender.start(Path(folder), redis.url) as running,
        generator(running) as load,
    ):
        stage = Stage(running, load, redis, phase.streams, pace.seconds, pace.settle_s)
        try:
            if able[0].streams_open:
                load.prepare(0, phase.streams)
                load.open(0, phase.streams)
                time.sleep(1)
            while able:
                _perform(able[0], stage, contender, results)
                able = able[1:]
        except Failure as failure:
            results.problems.append(f"{contender.name}, {able[0].name}, {phase.streams:,} streams: {failure}")
            for scenario in able:
                _miss(results, scenario, phase.streams, contender, "failed")


def _perform(scenario: Scenario, stage: Stage, contender: Contender, results: Results) -> None:
    """Raises: Failure, after which the contender cannot go on."""
    began = time.monotonic()
    values = scenario.measure(stage)
    title = f"{contender.name}, {scenario.name}, {stage.streams:,} streams"
    _say(f"{title}: {', '.join(f'{name} {value:,.2f}' for name, value in values.items())}", began)
    results.problems += [f"{title}: {problem}" for problem in stage.problems]
    stage.problems.clear()
    for name, value in values.items():
        results.values[Row(f"{scenario.name}.{name}", stage.streams), contender.name].append(value)


def _miss(results: Results, scenario: Scenario, streams: int, contender: Contender, why: str) -> None:
    for figure in FIGURES:
        if figure.startswith(f"{scenario.name}."):
            results.cannot[Row(figure, streams), contender.name] = why


def _facts(quick: bool, runs: int) -> dict[str, str]:
    with redis_server() as redis:
        redis_is = redis_version(redis)
    return {
        "measured": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "load before": f"{os.getloadavg()[0]:.1f} processes wanted a core in the last minute",
        "Python": platform.python_version(),
        "Redis": redis_is,
        "command": f"`python -m bench {shlex.join(sys.argv[1:])}`" if sys.argv[1:] else "`python -m bench`",
        "runs": f"{runs}, of which the medians are shown" if runs > 1 else "1, and short" if quick else "1",
    }


def _say(text: str, began: float | None = None) -> None:
    taken = "" if began is None else f" [{time.monotonic() - began:.0f} s]"
    print(f"{datetime.datetime.now():%H:%M:%S} {text}{taken}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
