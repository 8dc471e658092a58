"""The broker of the embedded form: one process, history in memory. History ends with the process."""

import asyncio
import math
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import groupby, islice
from operator import attrgetter

from allim.brokers.memory.ledger import MemoryLedger
from allim.hub import (
    ZERO,
    Event,
    Heads,
    Ledger,
    Listener,
    Outcome,
    Position,
    Publication,
    Quota,
    Reading,
)

TOPIC_BYTES, EVENT_BYTES, KEY_BYTES, POSITION_BYTES = 4400, 100, 400, 20  # as in publish.lua
NAME_BYTES = 256  # of a topic's name that are in TOPIC_BYTES


@dataclass(slots=True)
class _History:
    """A topic's events.

    Shape: an earlier history of the topic held nothing newer than `removed`.
    Units: `written_at` in seconds of the monotonic clock.
    """

    events: deque[Event]
    removed: Position
    written_at: float


class MemoryBroker:
    """Source: the contract in `allim.hub.broker`.

    Positions follow the wall clock and never go back; the times for which something is kept are measured with the
    monotonic clock.
    """

    durability = "memory"
    memory_max_bytes = 0

    def __init__(
        self,
        history_events: int = 256,
        history_ttl_s: int = 3600,
        ledger: Ledger | None = None,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._history_events = history_events
        self._history_ttl_s = history_ttl_s
        self._ledger = ledger or MemoryLedger()  # charges the demands of publishes
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._last = ZERO.after(now_ms())
        self._floor = self._last
        self._expired = ZERO  # the newest position that a removed history held
        self._history: dict[str, _History] = {}
        # By how long they are known, in seconds; then in the order of their last use.
        self._keys: dict[int, dict[str, tuple[float, str, Sequence[Position]]]] = {}
        self._topics: set[str] = set()
        self._listener: Listener | None = None

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        listener.link_up()

    async def close(self) -> None:
        self._listener = None

    async def publish(self, publication: Publication) -> Outcome:
        if self._listener is not None:
            await self._listener.writable()
        known = None if publication.key is None else self._known(publication.key, publication.keep_s)
        quotas = await self._charge(publication, 0 if known else self._added_bytes(publication))
        if not all(quota.granted for quota in quotas):
            return Outcome((), quotas)
        if known is not None:
            fingerprint, positions = known
            conflict = fingerprint != publication.fingerprint
            return Outcome(() if conflict else positions, quotas, conflict)
        positions = [self._append(entry.topic, entry.lines) for entry in publication.entries]
        if publication.key is not None:
            self._keep(publication.key, publication.keep_s, publication.fingerprint, positions)
        return Outcome(positions, quotas)

    async def subscribe(self, topics: Collection[str]) -> None:
        self._topics.update(topics)

    def unsubscribe(self, topic: str) -> None:
        self._topics.discard(topic)

    async def read(self, topics: Sequence[str], after: Position | None, max_events: int, max_bytes: int) -> Reading:
        self._expire()
        if after is None:
            return Reading(self._last, self._floor, (), self._last, 0, (), (), complete=True)
        histories = {topic: self._history[topic] for topic in topics if topic in self._history}
        newer = [
            (history.events, bisect_right(history.events, after, key=attrgetter("position")))
            for history in histories.values()
        ]
        kept = sum(len(events) - start for events, start in newer)
        merged = merge(*(islice(events, start, None) for events, start in newer), key=attrgetter("position"))
        page: list[Event] = []
        size = 0
        while len(page) < min(kept, max_events) and size < max_bytes:
            page.append(next(merged))
            size += len(page[-1].lines)
        complete = len(page) == kept
        until = self._last if complete else page[-1].position
        trimmed = [topic for topic, history in histories.items() if after < history.events[0].prev]
        expired = [topic for topic in topics if self._is_removed(topic, after)]
        return Reading(self._last, self._floor, page, until, kept, trimmed, expired, complete)

    async def heads(self, topics: Sequence[str]) -> Heads:
        self._expire()
        newest = [self._history[topic].events[-1].position if topic in self._history else ZERO for topic in topics]
        return Heads(self._last, self._floor, self._expired, newest)

    async def pulse(self) -> float:
        position = self._next()
        self._announce(lambda listener: listener.on_pulse(position))
        return self._now_ms() / 1000

    async def hint(self, name: str) -> None:
        self._announce(lambda listener: listener.on_hint(name))

    async def replace_link(self) -> None:
        """Do nothing: announcements are calls in the same loop."""

    async def _charge(self, publication: Publication, added: int) -> Sequence[Quota]:
        if publication.demand is None:
            return ()
        demands = [publication.demand]
        if publication.memory is not None and added:
            demands.append(publication.memory._replace(cost=added))
        return (await self._ledger.charge(demands)).quotas

    def _added_bytes(self, publication: Publication) -> int:
        """Return the bytes that this publish adds to the store, as `publish.lua` counts them."""
        added = 0
        for topic, entries in groupby(sorted(publication.entries), key=attrgetter("topic")):
            kept = len(self._history[topic].events) if topic in self._history else 0
            added += 0 if kept else TOPIC_BYTES + 2 * max(0, len(topic) - NAME_BYTES)
            added += sum(EVENT_BYTES + len(entry.lines) for entry in islice(entries, self._history_events - kept))
        if publication.key is not None and publication.memory is not None:
            periods = publication.keep_s / publication.memory.period_s
            added += math.ceil((KEY_BYTES + POSITION_BYTES * len(publication.entries)) * periods)
        return added

    def _known(self, key: str, keep_s: int) -> tuple[str, Sequence[Position]] | None:
        self._forget_keys()
        for keys in self._keys.values():
            if key in keys:
                _, fingerprint, positions = keys.pop(key)
                self._keep(key, keep_s, fingerprint, positions)
                return fingerprint, positions
        return None

    def _keep(self, key: str, keep_s: int, fingerprint: str, positions: Sequence[Position]) -> None:
        self._keys.setdefault(keep_s, {})[key] = (self._monotonic(), fingerprint, positions)

    def _forget_keys(self) -> None:
        for keep_s, keys in self._keys.items():
            oldest = self._monotonic() - keep_s
            while keys and next(iter(keys.values()))[0] < oldest:
                del keys[next(iter(keys))]

    def _next(self) -> Position:
        self._last = self._last.after(self._now_ms())
        return self._last

    def _append(self, topic: str, lines: bytes) -> Position:
        history = self._history.pop(topic, None)
        if history is None:
            self._expire()
            history = _History(deque(maxlen=self._history_events), self._expired, 0.0)
        self._history[topic] = history  # to the end: the topics stand in the order of their last event
        kept = history.events
        event = Event(topic, self._next(), kept[-1].position if kept else ZERO, lines)
        kept.append(event)
        history.written_at = self._monotonic()
        if topic in self._topics:
            self._announce(lambda listener: listener.on_events([event]))
        return event.position

    def _announce(self, tell: Callable[[Listener], None]) -> None:
        # In a later turn of the loop: a publisher gets its own event like any other, and in order.
        asyncio.get_running_loop().call_soon(self._tell, tell)

    def _tell(self, tell: Callable[[Listener], None]) -> None:
        if self._listener is not None:
            tell(self._listener)

    def _is_removed(self, topic: str, after: Position) -> bool:
        """Return whether a removed history of the topic may have held an event after this position."""
        history = self._history.get(topic)
        if history is None:
            return after < self._expired
        return history.events[0].prev == ZERO and after < history.removed

    def _expire(self) -> None:
        """Remove the histories of topics without an event within the history's TTL."""
        oldest = self._monotonic() - self._history_ttl_s
        while self._history and (history := next(iter(self._history.values()))).written_at < oldest:
            self._expired = max(self._expired, history.events[-1].position)
            del self._history[history.events[-1].topic]
