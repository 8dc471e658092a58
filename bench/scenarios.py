"""What is measured, and how. Each scenario gives figures of one contender that runs, with streams open.

Server CPU is that of the contender's own processes; Redis' is told apart. Every delivery of every run is judged.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

from harness.servers import Redis

from bench.contender import Running
from bench.generator import Load, Outcome
from bench.measure import cpu_s, memory_kib, redis_cpu_s
from bench.remote import Remote, generator

Result = TypeVar("Result")

WARM_STREAMS = 200  # opened and closed before memory is read: what the first ones cost is not a stream's
WINDOW = 4  # broadcasts under way at a time
AT_ONCE = (1, 8, 32)  # publishing connections, one request under way on each
MANY_AT_ONCE = AT_ONCE[-1]
BATCH = 1000
BATCHES_LEAST = 20
PACED_PER_S = 20_000
BESIDE_PER_S = 100
BESIDE_NUMBERS = 10**12  # of the events beside: no broadcast has them
RESUME_BROADCASTS = 2


class Figure(NamedTuple):
    """One line of the table. Shape: of `more` figures the higher one is the better, None is told without judging."""

    name: str
    unit: str
    more: bool | None


FIGURES: Mapping[str, Figure] = {
    "idle.kib": Figure("idle stream: server memory", "KiB", False),
    "idle.opened": Figure("streams opened per server CPU-second", "", True),
    "broadcast.cpu": Figure("broadcast: deliveries per server CPU-second", "", True),
    "broadcast.wall": Figure("broadcast: deliveries per second", "", None),
    "broadcast.load": Figure("broadcast: the generator's own CPU", "% of a core", None),
    "broadcast.load_us": Figure("broadcast: the generator's own CPU per delivery", "µs", None),
    **{
        f"publish-{at_once}.{name}": Figure(f"one event per request, {at_once} in flight: {what}", unit, more)
        for at_once in AT_ONCE
        for name, what, unit, more in (
            ("cpu", "events per server CPU-second", "", True),
            ("wall", "events per second", "", None),
            ("redis", "Redis CPU per event", "µs", None),
            ("p50", "publish to receipt, p50", "ms", False),
            ("p99", "publish to receipt, p99", "ms", False),
        )
    },
    "batch.cpu": Figure(f"batches of {BATCH:,}: events per server CPU-second", "", True),
    "batch.redis": Figure(f"batches of {BATCH:,}: Redis CPU per event", "µs", None),
    "paced.p50": Figure(f"{PACED_PER_S:,} deliveries/s: publish to receipt, p50", "ms", False),
    "paced.p90": Figure(f"{PACED_PER_S:,} deliveries/s: p90", "ms", False),
    "paced.p99": Figure(f"{PACED_PER_S:,} deliveries/s: p99", "ms", False),
    "paced.p999": Figure(f"{PACED_PER_S:,} deliveries/s: p99.9", "ms", False),
    "paced.cpu": Figure(f"{PACED_PER_S:,} deliveries/s: server CPU per second", "%", False),
    "beside.p50": Figure("another user's event while broadcasts run: p50", "ms", False),
    "beside.p99": Figure("another user's event while broadcasts run: p99", "ms", False),
    "beside.max": Figure("another user's event while broadcasts run: longest", "ms", False),
    "resume.opened": Figure("streams opened with catch-up per server CPU-second", "", True),
    "resume.redis": Figure("streams opened with catch-up: Redis CPU per stream", "µs", None),
}


@dataclass
class Stage:
    """One contender that runs, and who drives it. `problems` are deliveries that went wrong, in words."""

    running: Running
    generator: Remote
    redis: Redis
    streams: int
    seconds: float
    settle_s: float
    problems: list[str] = field(default_factory=list)

    def spend(self, call: Callable[[], Result]) -> tuple[Result, float, float]:
        """What the call gives, and the CPU seconds that the server and Redis spent meanwhile."""
        pids = self.running.pids()
        server_s, redis_s = cpu_s(pids), redis_cpu_s(self.redis)
        result = call()
        # A tick at least: what is too little to be seen divides nothing.
        return result, max(cpu_s(pids) - server_s, 0.01), redis_cpu_s(self.redis) - redis_s

    def drive(self, load: Load) -> Outcome:
        return self.judged(self.generator.drive(load, 0, self.streams))

    def judged(self, outcome: Outcome) -> Outcome:
        if not outcome.good:
            self.problems.append(str(outcome))
        return outcome


Values = dict[str, float]


@dataclass(frozen=True)
class Scenario:
    """Shape: `needs` is what a contender must be able to; `streams_open` is whether it begins with them open."""

    name: str
    needs: frozenset[str]
    measure: Callable[[Stage], Values]
    streams_open: bool = True


def idle(stage: Stage) -> Values:
    """Memory before and after all streams are open and some time has passed; with it, what opening costs."""
    warm = stage.streams  # the first user who has no stream in any other scenario
    stage.generator.prepare(0, stage.streams + WARM_STREAMS)
    stage.generator.open(warm, WARM_STREAMS)
    time.sleep(0.5)
    stage.generator.close(warm, WARM_STREAMS)
    time.sleep(1)
    before = memory_kib(stage.running.pids())
    _, server_s, _ = stage.spend(lambda: stage.generator.open(0, stage.streams))
    time.sleep(stage.settle_s)
    after = memory_kib(stage.running.pids())
    return {"kib": (after - before) / stage.streams, "opened": stage.streams / server_s}


def broadcast(stage: Stage) -> Values:
    """To everyone: the next one is published when at most `WINDOW` have not come everywhere."""
    trial = stage.drive(Load(broadcasts=3, window=WINDOW))
    count = _for(stage.seconds, trial)
    outcome, server_s, _ = stage.spend(lambda: stage.drive(Load(broadcasts=count, window=WINDOW)))
    return {
        "cpu": outcome.received / server_s,
        "wall": outcome.received / outcome.wall_s,
        "load": 100 * outcome.cpu_s / outcome.wall_s,
        "load_us": 1e6 * outcome.cpu_s / max(1, outcome.received),
    }


def publish(at_once: int, stage: Stage) -> Values:
    """REST to SSE: one event to one user per request, users in turn."""
    trial = stage.drive(Load(singles=500, at_once=at_once))
    count = _for(stage.seconds, trial)
    outcome, server_s, redis_s = stage.spend(lambda: stage.drive(Load(singles=count, at_once=at_once)))
    return {
        "cpu": outcome.received / server_s,
        "wall": outcome.received / outcome.wall_s,
        "redis": 1e6 * redis_s / outcome.published,
        "p50": outcome.ms[0],
        "p99": outcome.ms[2],
    }


def batch(stage: Stage) -> Values:
    """Each batch is to one user."""
    trial = stage.drive(Load(singles=2 * BATCH, batch=BATCH, at_once=2))
    count = max(BATCHES_LEAST, _for(stage.seconds, trial))
    load = Load(singles=count * BATCH, batch=BATCH, at_once=2)
    outcome, server_s, redis_s = stage.spend(lambda: stage.drive(load))
    return {"cpu": outcome.received / server_s, "redis": 1e6 * redis_s / (count * BATCH)}


def paced(stage: Stage) -> Values:
    """Broadcasts at a rate that every contender can bear; what counts is how late they come."""
    per_s = PACED_PER_S / stage.streams
    stage.drive(Load(broadcasts=max(1, int(per_s / 2)), per_s=per_s))
    load = Load(broadcasts=max(5, int(per_s * stage.seconds)), per_s=per_s)
    outcome, server_s, _ = stage.spend(lambda: stage.drive(load))
    p50, p90, p99, p999, _ = outcome.ms
    return {"p50": p50, "p90": p90, "p99": p99, "p999": p999, "cpu": 100 * server_s / outcome.wall_s}


def beside(stage: Stage) -> Values:
    """Single events to a user whose stream is read by another process, while one broadcast follows the other.

    The reader of the broadcasts yields to that process: what is measured is the server's delay, not the generator's.
    """
    trial = stage.drive(Load(broadcasts=3, window=1))
    load = Load(broadcasts=_for(stage.seconds + 1, trial), window=1)
    singles = Load(singles=int(BESIDE_PER_S * stage.seconds), per_s=BESIDE_PER_S)
    user = stage.streams
    with generator(stage.running, first_number=BESIDE_NUMBERS, ignored_below=BESIDE_NUMBERS) as other:
        other.open(user, 1)
        time.sleep(0.5)
        stage.generator.give_way()
        stage.generator.begin("drive", load, 0, stage.streams)
        time.sleep(0.3)
        outcome = stage.judged(other.drive(singles, user, 1))
        stage.judged(stage.generator.outcome())
    return {"p50": outcome.ms[0], "p99": outcome.ms[2], "max": outcome.ms[4]}


def resume(stage: Stage) -> Values:
    """Every stream opens with the last event ID of before some events: one of its user's and two to everyone."""
    stage.generator.close(0, stage.streams)
    stage.generator.prepare(0, stage.streams)
    stage.generator.open(0, 1)
    before = stage.generator.first_id()
    assert before is not None, "no frame has an id"
    stage.generator.close(0, 1)
    stage.generator.drive(
        Load(broadcasts=RESUME_BROADCASTS, singles=stage.streams, at_once=MANY_AT_ONCE, received=False),
        0,
        stage.streams,
    )

    def come_back() -> Outcome:
        stage.generator.open(0, stage.streams, last_event_id=before)
        return stage.judged(stage.generator.drive_expected())

    _, server_s, redis_s = stage.spend(come_back)
    return {"opened": stage.streams / server_s, "redis": 1e6 * redis_s / stage.streams}


SCENARIOS = (
    Scenario("idle", frozenset({"idle"}), idle, streams_open=False),
    Scenario("broadcast", frozenset({"broadcast"}), broadcast),
    *(Scenario(f"publish-{at_once}", frozenset({"publish"}), partial(publish, at_once)) for at_once in AT_ONCE),
    Scenario("batch", frozenset({"batch"}), batch),
    Scenario("paced", frozenset({"paced"}), paced),
    Scenario("beside", frozenset({"broadcast", "publish"}), beside),
    Scenario("resume", frozenset({"resume"}), resume, streams_open=False),
)


def _for(seconds: float, trial: Outcome) -> int:
    """How many requests take about so long, by how long the trial took."""
    return max(3, math.ceil(seconds * trial.published / trial.wall_s))
