"""A dispatcher without a broker: its history can be read, and its announcements are up to the test."""

import asyncio
from collections.abc import Callable, Collection, Sequence

from harness.streams import ListStream, hub_settings, identity

from allim.brokers.memory import MemoryLedger
from allim.hub import ZERO, Backlog, Event, Heads, Listener, Outcome, Position, Publication, Reading, Run
from allim.hub.audit import Audit
from allim.hub.catch_up import CatchUp
from allim.hub.clock import SharedClock
from allim.hub.dispatcher import Dispatcher
from allim.hub.event import encode
from allim.hub.pulse import Pulse
from allim.hub.registry import Registry
from allim.telemetry import Metrics


class History:
    """A broker whose history can be read, and whose announcements are up to the test."""

    durability = "memory"
    memory_max_bytes = 0

    def __init__(self) -> None:
        self.kept: dict[str, list[Event]] = {}
        self.newest: dict[str, Position] = {}
        self.floor = self.expired = ZERO
        self.now = ZERO
        self.failures: list[Exception] = []
        self.open = asyncio.Event()
        self.open.set()
        self.asked: list[tuple[tuple[str, ...], Position | None]] = []

    def add(self, topic: str, ms: int, lines: bytes | None = None) -> Event:
        """Store an event at this position, announced or not."""
        self.now = Position(ms, 0)
        event = Event(topic, self.now, self.newest.get(topic, ZERO), lines or encode("t", ms))
        self.newest[topic] = event.position
        self.kept.setdefault(topic, []).append(event)
        return event

    def trim(self, topic: str, keep: int) -> None:
        del self.kept[topic][:-keep]

    def expire(self, topic: str) -> None:
        """Remove the topic's history, as the broker does when it got nothing for long."""
        self.expired = max(self.expired, self.newest.pop(topic))
        del self.kept[topic]

    async def read(self, topics: Sequence[str], after: Position | None, max_events: int, max_bytes: int) -> Reading:
        assert after is not None
        self.asked.append((tuple(topics), after))
        await self._answer()
        kept = [self.kept[topic] for topic in topics if self.kept.get(topic)]
        newer = sorted((e for events in kept for e in events if e.position > after), key=lambda e: e.position)
        page, complete = newer[:max_events], len(newer) <= max_events
        trimmed = [events[0].topic for events in kept if after < events[0].prev]
        expired = [topic for topic in topics if not self.kept.get(topic) and after < self.expired]
        until = self.now if complete else page[-1].position
        return Reading(self.now, self.floor, page, until, len(newer), trimmed, expired, complete)

    async def heads(self, topics: Sequence[str]) -> Heads:
        await self._answer()
        return Heads(self.now, self.floor, self.expired, [self.newest.get(topic, ZERO) for topic in topics])

    async def _answer(self) -> None:
        await self.open.wait()
        if self.failures:
            raise self.failures.pop(0)

    async def start(self, listener: Listener) -> None: ...

    async def close(self) -> None: ...

    async def publish(self, publication: Publication) -> Outcome:
        raise NotImplementedError

    async def subscribe(self, topics: Collection[str]) -> None: ...

    def unsubscribe(self, topic: str) -> None: ...

    async def pulse(self) -> float:
        raise NotImplementedError

    async def hint(self, name: str) -> None:
        raise NotImplementedError

    async def replace_link(self) -> None: ...


class CountedPulse(Pulse):
    """A pulse that notes what the dispatcher tells it."""

    def start(self) -> None:
        super().start()
        self.arrivals = 0
        self.beats: list[Position] = []

    def arrived(self) -> None:
        super().arrived()
        self.arrivals += 1

    def heard(self, position: Position) -> None:
        super().heard(position)
        self.beats.append(position)


class CountedAudit(Audit):
    """An audit that only counts how often it was asked for."""

    requests = 0

    def request(self) -> None:
        self.requests += 1


class Bench:
    """A dispatcher over a history, and streams that are live at a position."""

    def __init__(self) -> None:
        self.history = History()
        self.registry = Registry()
        self.metrics = Metrics()
        settings = hub_settings(heartbeat_s=5, pulse_s=5)  # each pulse is for all streams
        self.pulse = CountedPulse(self.history, self.registry, self.metrics, settings, SharedClock())
        self.audit = CountedAudit(MemoryLedger(), self.registry)
        self.catch_up = CatchUp(self.history, self.metrics, lambda: Backlog(1000))
        self.dispatcher = Dispatcher(
            self.history,
            self.registry,
            self.catch_up,
            self.metrics,
            self.pulse,
            self.audit,
        )

    def stream(self, *topics: str, at: int = 0, session: str = "s1") -> ListStream:
        stream = ListStream(*topics, who=identity(session=session))
        stream.backlog = None
        stream.pass_to(Position(at, 0))
        stream.covered = stream.last
        self.registry.add(stream)
        self.dispatcher.joined(stream, Position(at, 0))
        return stream

    def metric(self, line: str) -> bool:
        return line.encode() in self.metrics.text().splitlines()


def keep_in(kept: list[Sequence[Event]]) -> Callable[[Run], None]:
    """A stream's `write` that keeps the events of each call."""
    return lambda run: kept.append(run.events)
