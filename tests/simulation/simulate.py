"""Runs a schedule in a world of its own, and has it judged."""

import asyncio
import gc
import hashlib
import importlib
import itertools
import json
import random
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any
from unittest.mock import patch

import structlog
from harness.checker import Evidence, Mark, Report, Stored, check
from harness.storm import TYPE

from allim.errors import Unavailable
from allim.hub import ZERO, Position
from tests.simulation import world as worlds
from tests.simulation.clock import Overrun, Stuck, VirtualLoop, here, note_tasks, virtual_time
from tests.simulation.faults import FAULTS, Undo
from tests.simulation.network import Transport
from tests.simulation.redis import Stream, TooMuch
from tests.simulation.schedule import Schedule, Step, draw
from tests.simulation.world import Publisher, World

MAX_TURNS = 400_000
MAX_REDIS_COMMANDS = 300_000
SETTLE_S = 40.0  # for the last events to reach everybody
LINGER_S = 1.0


@dataclass
class Outcome:
    """What became of a schedule.

    Shape: `problems` is what was wrong beside the checker's report; `digest` is the same when everything went the
    same way; `trace` is what the replicas logged.
    """

    schedule: Schedule
    report: Report
    problems: list[str]
    digest: str
    trace: list[str] = field(default_factory=list)
    ended_s: float = 0.0

    @property
    def clean(self) -> bool:
        return self.report.clean and not self.problems

    @property
    def kinds(self) -> frozenset[str]:
        """What kinds of failure there were."""
        found = {rule for rule, violations in self.report.violations.items() if violations}
        return frozenset(found | {problem.partition(":")[0] for problem in self.problems})

    def __str__(self) -> str:
        return "\n".join([str(self.report), *(f"PROBLEM {problem}" for problem in self.problems)])


def schedule_of(seed: int) -> Schedule:
    return draw(seed, {name: bounds for name, (_, *bounds) in FAULTS.items()})  # type: ignore[misc]


def simulate(schedule: Schedule, *, trace: bool = False) -> Outcome:
    """Let it happen, and judge it."""
    loop = VirtualLoop(MAX_TURNS)
    note_tasks(loop)
    worlds._numbers = itertools.count(1)
    random.seed(schedule.seed)
    gc.disable()  # what is collected when would depend on what ran before
    problems: list[str] = []
    lines: list[str] = []
    loop.set_exception_handler(lambda _, context: problems.append(f"loop: {_told(context)}"))
    marks: list[Mark] = []
    with _logging(loop, lines, problems, trace=trace), _knobs(schedule), virtual_time(loop):
        asyncio.set_event_loop(loop)
        world = World(loop, schedule)
        try:
            world.redis.data.max_calls = MAX_REDIS_COMMANDS
            loop.run_until_complete(_happen(world, marks, problems))
        except (Stuck, Overrun, TooMuch) as error:
            problems.append(f"{type(error).__name__}: {error}")
        ended_s, digest, problems = loop.now, _digest(world), [*world.problems, *problems]
        report = check(_evidence(world, marks))
        _end(loop, world)
        asyncio.set_event_loop(None)
        loop.close()
        gc.enable()
    return Outcome(schedule, report, problems, digest, lines, ended_s)


async def _happen(world: World, marks: list[Mark], problems: list[str]) -> None:
    schedule, loop = world.schedule, world.loop
    await until(lambda: all(replica.hub._pulse._ever_heard for replica in world.replicas), 10)
    for reader in world.readers:
        world.people.append(loop.create_task(reader.follow()))
        if reader.plan.moody:
            world.people.append(loop.create_task(reader.be_moody()))
    await until(lambda: all(reader.cursor for reader in world.readers), 10)
    share = schedule.publishes_per_s / len(world.publishers)
    for publisher in world.publishers:
        world.people.append(loop.create_task(publisher.publish_all(share)))
    await _conduct(world, marks)
    await asyncio.sleep(max(0.0, schedule.ends_s - loop.now))
    for reader in world.readers:
        reader.stay()
    await _settle(world, problems)
    if world.sign_outs and marks:  # by then nobody who has signed out may hear anything, and who may does
        heartbeat_s = max(replica.defaults.heartbeat_s for replica in world.replicas)
        await asyncio.sleep(max(0.0, marks[-1].at + marks[-1].limit_s - world.now()) + 2 * heartbeat_s)
    for person in world.people:
        if person.done() and not person.cancelled() and (error := person.exception()) is not None:
            problems.append(f"the simulation itself: {error!r}")


async def _conduct(world: World, marks: list[Mark]) -> None:
    """Break and heal by the schedule. A mark for each time that everything is healed."""
    limit_s = recovery_s(max(plan.pulse_s for plan in world.schedule.replicas), world)
    moments: list[tuple[float, int, Step, bool]] = []
    for number, step in enumerate(world.schedule.steps):
        moments += [(step.at_s, number, step, True), (step.at_s + step.hold_s, number, step, False)]
    moments.sort(key=lambda moment: (moment[0], moment[1], not moment[3]))
    undos: dict[int, Undo] = {}
    broken: list[str] = []
    for at_s, number, step, begins in moments:
        await asyncio.sleep(max(0.0, at_s - world.loop.now))
        if begins:
            if marks:
                marks[-1] = marks[-1]._replace(undisturbed_until=min(marks[-1].undisturbed_until, world.now()))
            broken = broken if undos else []
            broken.append(step.what)
            undos[number] = FAULTS[step.what][0](world, random.Random(step.seed))
            continue
        undone = undos.pop(number)()
        if isawaitable(undone):
            await undone
        if not undos:
            marks.append(Mark(world.now(), " and ".join(broken), limit_s, position=world.broker_position()))


def recovery_s(pulse_s: float, world: World) -> float:
    """A link's patience, its longest pause before it connects again, a pulse, a heartbeat to say so, and a margin."""
    heartbeat_pulses = max(plan.heartbeat_pulses for plan in world.schedule.replicas)
    return 2.4 * pulse_s + 2.0 + pulse_s + heartbeat_pulses * pulse_s + 3.0


async def _settle(world: World, problems: list[str]) -> None:
    """A last event on every topic; who has it has everything before, or was told."""
    await until(lambda: not world.publishing, 60)
    last = Publisher(world, 99)
    ends: dict[str, Position] = {}
    for at in range(0, len(world.all_topics), 20):
        topics = world.all_topics[at : at + 20]
        published = await last.publish(topics, f"end-{at}")
        ends |= dict(zip(topics, published.positions, strict=False))
    newest = max(ends.values(), default=ZERO)

    def behind() -> list[str]:
        return [
            reader.log.name
            for reader in world.readers
            if not reader.over
            and (reader.cursor or ZERO) < max(ends.get(topic, newest) for topic in reader.log.topics)
        ]

    await until(lambda: not behind(), SETTLE_S)
    if late := behind():
        problems.append(f"never caught up: {late}")
    # Replicas see each other again with the second pulse after a clock was set or Redis was emptied.
    longest_pulse_s = max(plan.pulse_s for plan in world.schedule.replicas)
    await asyncio.sleep(max(LINGER_S, 2.5 * longest_pulse_s))
    problems += await _untold(world)
    if endless := _without_end(world):
        problems.append(f"keys without an end: {endless[:5]}")


async def until(condition: Any, timeout_s: float) -> None:
    """Return when it holds, or the time is over."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + timeout_s
    while not condition() and loop.time() < ends:
        await asyncio.sleep(0.05)


def _end(loop: VirtualLoop, world: World) -> None:
    """Leave nothing running."""
    loop.max_turns += 100_000
    loop.set_exception_handler(lambda *_: None)
    for replica in world.replicas:
        replica.crash()
    for _ in range(20):
        tasks = asyncio.all_tasks(loop)
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))


def _evidence(world: World, marks: Sequence[Mark]) -> Evidence:
    return Evidence(
        world.publishes,
        [reader.log for reader in world.readers],
        marks,
        world.forgotten,
        world.dropping,
        broker_s=world.broker_s,
        keeps_s=min(world.kept_s),
        pages=world.pages,
        refusals=world.refusals,
        sign_outs=world.sign_outs,
        kept=list(_history(world)),
    )


async def _untold(world: World) -> list[str]:
    """What readiness must say at the end, and does not; or says, and should not."""
    differ = len({tuple(replica.plan.told().items()) for replica in world.replicas}) > 1
    found = []
    for replica in world.replicas:
        try:
            said = await replica.broker.check()
        except Unavailable as error:
            found.append(f"readiness: {replica.name} is not ready although all is well: {error}")
        else:
            if bool(said) != differ:
                found.append(
                    f"readiness: {replica.name} says {said!r}, and replicas {'differ' if differ else 'agree'}"
                )
    return found


def _history(world: World) -> Iterator[Stored]:
    """What Redis holds at the end. Entries that order something are no events."""
    for key, value in world.redis.data.values.items():
        if not isinstance(value, Stream):
            continue
        topic = key.partition(b":history:")[2].decode()
        for position, entry in zip(value.ids, value.entries, strict=True):
            lines = entry.fields[b"d"]
            if lines.startswith(f"event: {TYPE}\n".encode()):
                yield Stored(Position(*position), topic, json.loads(lines.partition(b"data: ")[2])["n"])


def _without_end(world: World) -> list[str]:
    """The keys that stay for ever, beside the clock and the list of histories, which scripts remove by that list."""
    data = world.redis.data
    listed = data.values.get(b"allim:{0}:expiry", {})
    assert isinstance(listed, dict)
    kept = {b"allim:{0}:clock", b"allim:{0}:expiry", *(b"allim:{0}:history:" + topic for topic in listed)}
    return sorted(key.decode() for key in data.values if key not in data.ends_ms and key not in kept)


def _digest(world: World) -> str:
    digest = hashlib.sha256()
    for reader in world.readers:
        for entry in reader.log.entries:
            digest.update(f"{reader.log.name} {entry.at!r} {entry}\n".encode())
    for publish in world.publishes:
        digest.update(f"{publish}\n".encode())
    digest.update(f"{world.redis.data.called} {world.loop.turns}".encode())
    return digest.hexdigest()[:16]


@contextmanager
def _knobs(schedule: Schedule) -> Iterator[None]:
    with ExitStack() as stack:
        for name, value in schedule.knobs.items():
            module, _, constant = name.rpartition(".")
            stack.enter_context(patch.object(importlib.import_module(module), constant, value))
        # What is asked of the kernel of a real connection.
        stack.enter_context(patch("allim.transports.sse.handover._unread", _unread))
        # Or redis-py reads and parses a file for each connection, a sixth of a schedule's time.
        stack.enter_context(patch("redis.utils.get_lib_version", lambda: "0"))
        yield


def _unread(transport: Transport | None) -> int:
    return 0 if transport is None else transport.unacknowledged()


@contextmanager
def _logging(loop: VirtualLoop, lines: list[str], problems: list[str], *, trace: bool) -> Iterator[None]:
    """What the product logs goes into the trace; an unexpected exception is a problem."""

    def note(_: Any, level: str, event: Any) -> Any:
        machine = here()
        said = " ".join(f"{name}={value}" for name, value in event.items() if name not in ("event", "exc_info"))
        text = f"{event['event']} {said}"
        if event.get("exc_info"):
            problems.append(f"logged: {text} {_exception()}")
        if trace or level in ("error", "critical"):
            lines.append(f"{loop.now:9.4f} {machine.name if machine else '':10} {level}: {text}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[note], wrapper_class=structlog.make_filtering_bound_logger(20 if trace else 40))
    try:
        yield
    finally:
        structlog.configure(**before)


def _exception() -> str:
    error = sys.exc_info()[1]
    return "".join(traceback.format_exception(error)[-3:]).replace("\n", " | ") if error else ""


def _told(context: Any) -> str:
    error = context.get("exception")
    return f"{context.get('message')} {error!r}"
