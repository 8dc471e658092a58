"""Schedules: what a world is made of and what befalls it, drawn from a seed; and a failing one made smaller."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

QUIET_S = (1.0, 9.0)
ROUNDS = (1, 3)


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """One replica's settings. Units: `skew_s` seconds that its clock is ahead."""

    skew_s: float = 0.0
    history_events: int = 1000
    history_ttl_s: int = 3600
    pulse_s: float = 1.0
    heartbeat_pulses: int = 2
    buffer_bytes: int = 65536

    def told(self) -> dict[str, str]:
        """The settings that must be the same on every replica, as replicas tell each other."""
        return {"ALLIM_HISTORY_EVENTS": str(self.history_events), "ALLIM_HISTORY_TTL_S": str(self.history_ttl_s)}


@dataclass(frozen=True, slots=True)
class ReaderPlan:
    """One reader. Shape: `topics` beside the own ones; `moody` when it pauses, vanishes and goes elsewhere.

    Units: `every_s` seconds between its moods; `window` bytes on its way at a time.
    """

    topics: tuple[str, ...] = ()
    moody: bool = False
    every_s: float = 5.0
    window: int = 16384


@dataclass(frozen=True, slots=True)
class Step:
    """A fault or another event of the world: when, for how long, and the seed of what it draws.

    Units: seconds from the beginning.
    """

    at_s: float
    hold_s: float
    what: str
    seed: int

    def __str__(self) -> str:
        lasts = f" for {self.hold_s:.2f} s" if self.hold_s else ""
        return f"{self.at_s:7.2f} s: {self.what}{lasts} (seed {self.seed})"


@dataclass(frozen=True, slots=True)
class Schedule:
    """A world and what befalls it. The same schedule always does the same.

    Shape: `knobs` are constants of the code, by module and name, made small so that few events reach what they bound.
    Units: `ends_s` seconds; `publishes_per_s`; `event_bytes` of an event's data.
    """

    seed: int
    ends_s: float
    replicas: tuple[ReplicaPlan, ...]
    readers: tuple[ReaderPlan, ...]
    topics: tuple[str, ...]
    publishers: int
    publishes_per_s: float
    batch_share: float
    keyed_share: float
    event_bytes: int
    round_robin: bool
    redis_skew_s: float
    delay_s: tuple[float, float]
    durable: bool
    knobs: Mapping[str, int]
    steps: tuple[Step, ...] = field(default=())

    def __str__(self) -> str:
        lines = [
            f"seed {self.seed}: {self.ends_s:.1f} s, delays of {self.delay_s[0] * 1000:.2f} to "
            f"{self.delay_s[1] * 1000:.2f} ms, Redis' clock {self.redis_skew_s:+.1f} s ahead"
            f"{', durable' if self.durable else ''}, {dict(self.knobs)}",
            f"  {self.publishers} publishers, {self.publishes_per_s:g} publishes/s of {self.event_bytes} bytes to "
            f"{', '.join(self.topics)}; batches {self.batch_share:.2f}, with a key {self.keyed_share:.2f}"
            f"{', topics in turn' if self.round_robin else ''}",
        ]
        lines += [f"  replica {number}: {plan}" for number, plan in enumerate(self.replicas)]
        lines += [f"  reader {number}: {plan}" for number, plan in enumerate(self.readers)]
        lines += [f"  {step}" for step in self.steps]
        return "\n".join(lines)


def draw(seed: int, faults: Mapping[str, tuple[float, float, float]]) -> Schedule:
    """The schedule of a seed.

    Shape: `faults` by name: weight, shortest and longest time that it lasts.
    """
    rng = random.Random(seed)
    count = rng.choice((2, 2, 3))
    pulse_s = rng.choice((0.5, 1.0, 1.0, 2.0))
    plan = ReplicaPlan(
        history_events=rng.choice((20, 200, 1000, 1000)),
        history_ttl_s=rng.choice((15, 60, 3600, 3600)),
        pulse_s=pulse_s,
        heartbeat_pulses=rng.choice((1, 2, 3)),
        buffer_bytes=rng.choice((4096, 16384, 65536)),
    )
    replicas = tuple(replace(plan, skew_s=_skew(rng)) for _ in range(count))
    if rng.random() < 0.1:  # a rolling change that stopped half-way
        replicas = (replace(replicas[0], **_other_history(rng)), *replicas[1:])
    crowd = rng.random() < 0.15  # of topics
    topics = tuple(f"t{n}:x" for n in range(rng.randint(12, 24) if crowd else rng.randint(1, 5)))
    readers = tuple(
        ReaderPlan(
            topics=topics if crowd else tuple(sorted(rng.sample(topics, rng.randint(0, len(topics))))),
            moody=rng.random() < 0.5,
            every_s=rng.uniform(2, 8),
            window=rng.choice((4096, 16384, 65536)),
        )
        for _ in range(rng.randint(2, 3) if crowd else rng.randint(2, 6))
    )
    steps, ends_s = _steps(rng, faults)
    low_s = rng.choice((0.0001, 0.0005, 0.005))
    rate = rng.choice((20.0, 40.0)) if crowd else rng.choice((2.0, 5.0, 10.0, 10.0, 20.0))
    return Schedule(
        seed=seed,
        ends_s=ends_s,
        replicas=replicas,
        readers=readers,
        topics=topics,
        publishers=rng.randint(1, 3),
        publishes_per_s=min(rate, (360 if crowd else 120) / ends_s),
        batch_share=rng.choice((0.0, 0.2, 0.6)),
        keyed_share=rng.choice((0.0, 0.5, 1.0)),
        event_bytes=rng.choice((20, 200, 2000)) if not crowd else 20,
        round_robin=crowd,
        redis_skew_s=_skew(rng),
        delay_s=(low_s, low_s * rng.choice((1.0, 3.0) if pulse_s < 1 else (1.0, 3.0, 10.0))),
        durable=rng.random() < 0.15,
        knobs={
            "allim.hub.reads.PAGE_EVENTS": rng.choice((8, 64, 512)),
            "allim.hub.reads.PAGE_BYTES": rng.choice((4096, 65536, 262144)),
            "allim.hub.dispatcher.AT_ONCE": rng.choice((1, 2, 128)),
            "allim.hub.dispatcher.REPAIR_TOPICS": rng.choice((2, 200)),
            "allim.hub.broadcasts.MAX_WAITING": rng.choice((2, 16)),
            "allim.brokers.redis.link.TOGETHER": rng.choice((2, 64)),
        },
        steps=steps,
    )


def _skew(rng: random.Random) -> float:
    far_s = rng.choice((-90.0, 90.0, -300.0))
    return rng.choice((0.0, 0.0, rng.uniform(-1, 1), rng.uniform(-30, 30), far_s, far_s))


def _other_history(rng: random.Random) -> dict[str, int]:
    return rng.choice(
        ({"history_ttl_s": 10}, {"history_ttl_s": 7200}, {"history_events": 10}, {"history_events": 5000})
    )


def _steps(rng: random.Random, faults: Mapping[str, tuple[float, float, float]]) -> tuple[tuple[Step, ...], float]:
    names, weights = list(faults), [weight for weight, _, _ in faults.values()]
    steps = []
    at_s = rng.uniform(1.0, 4.0)
    for _ in range(rng.randint(*ROUNDS)):
        longest = 0.0
        for name in rng.choices(names, weights, k=rng.choice((1, 1, 1, 2, 2, 3))):
            _, shortest_s, longest_s = faults[name]
            begins_s, hold_s = rng.uniform(0, 1.5), rng.uniform(shortest_s, longest_s)
            steps.append(Step(at_s + begins_s, hold_s, name, rng.getrandbits(24)))
            longest = max(longest, begins_s + hold_s)
        at_s += longest + rng.uniform(*QUIET_S)
    return tuple(sorted(steps, key=lambda step: step.at_s)), at_s


# -- Smaller ----------------------------------------------------------------------------------------------------


def shrink(schedule: Schedule, fails: Callable[[Schedule], bool], tries: int) -> Schedule:
    """A smaller schedule that fails still, after so many tries at most."""
    left = tries
    found = True
    while found and left > 0:
        found = False
        for smaller in _smaller(schedule):
            if left <= 0:
                break
            left -= 1
            if fails(smaller):
                schedule, found = smaller, True
                break
    return schedule


def _smaller(schedule: Schedule) -> Iterator[Schedule]:
    steps = schedule.steps
    size = len(steps) // 2
    while size:
        for at in range(0, len(steps), size):
            yield replace(schedule, steps=(*steps[:at], *steps[at + size :]))
        size //= 2
    last_s = max((step.at_s + step.hold_s for step in steps), default=0.0)
    if schedule.ends_s > last_s + 3:
        yield replace(schedule, ends_s=last_s + 2)
    for at in range(len(schedule.readers)):
        if len(schedule.readers) > 1:
            yield replace(schedule, readers=(*schedule.readers[:at], *schedule.readers[at + 1 :]))
    if len(schedule.replicas) > 1:
        yield replace(schedule, replicas=schedule.replicas[:-1])
    if schedule.publishes_per_s > 1:
        yield replace(schedule, publishes_per_s=schedule.publishes_per_s / 2)
    if len(schedule.topics) > 1:
        yield _with_topics(schedule, schedule.topics[: (len(schedule.topics) + 1) // 2])
    for at, reader in enumerate(schedule.readers):
        if reader.moody:
            yield _with_reader(schedule, at, replace(reader, moody=False))
    for at, step in enumerate(steps):
        if step.hold_s > 0.5:
            yield replace(schedule, steps=(*steps[:at], replace(step, hold_s=step.hold_s / 2), *steps[at + 1 :]))
    plain: tuple[dict[str, object], ...] = (
        {"batch_share": 0.0},
        {"keyed_share": 1.0},
        {"publishers": 1},
        {"redis_skew_s": 0.0},
        {"knobs": {}},
        {"round_robin": False},
        {"durable": False},
        {"event_bytes": 20},
    )
    for change in plain:
        if any(getattr(schedule, name) != value for name, value in change.items()):
            yield replace(schedule, **change)  # type: ignore[arg-type]
    for at, plan in enumerate(schedule.replicas):
        if plan.skew_s:
            others = (*schedule.replicas[:at], replace(plan, skew_s=0.0), *schedule.replicas[at + 1 :])
            yield replace(schedule, replicas=others)


def _with_topics(schedule: Schedule, topics: tuple[str, ...]) -> Schedule:
    readers = tuple(
        replace(reader, topics=tuple(topic for topic in reader.topics if topic in topics))
        for reader in schedule.readers
    )
    return replace(schedule, topics=topics, readers=readers)


def _with_reader(schedule: Schedule, at: int, reader: ReaderPlan) -> Schedule:
    return replace(schedule, readers=(*schedule.readers[:at], reader, *schedule.readers[at + 1 :]))
