"""The broker of the embedded form: one process, history in memory. Keeps every promise but outliving the process."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate

from allim.hub import (
    IDEMPOTENCY_WINDOW_S,
    ZERO,
    Event,
    Heads,
    Listener,
    Position,
    Publication,
    Reading,
    idempotency_conflict,
)


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
    """Source: the promise in `allim.hub.broker`.

    Positions go by the wall clock, and never back; what is kept for a time goes by the monotonic clock.
    """

    durability = "memory"

    def __init__(
        self,
        history_events: int = 256,
        history_ttl_s: int = 3600,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._history_events = history_events
        self._history_ttl_s = history_ttl_s
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._last = ZERO.after(now_ms())
        self._floor = self._last
        self._expired = ZERO  # the newest position that a removed history held
        self._history: dict[str, _History] = {}
        self._keys: dict[str, tuple[float, str, Sequence[Position]]] = {}
        self._topics: set[str] = set()
        self._listener: Listener | None = None

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        listener.link_up()

    async def close(self) -> None:
        self._listener = None

    async def publish(self, publication: Publication) -> Sequence[Position]:
        if self._listener is not None:
            await self._listener.room()
        if publication.key is not None and (known := self._known(publication.key, publication.fingerprint)):
            return known
        positions = [self._append(entry.topic, entry.lines) for entry in publication.entries]
        if publication.key is not None:
            self._keys[publication.key] = (self._monotonic(), publication.fingerprint, positions)
        return positions

    async def subscribe(self, topics: Collection[str]) -> None:
        self._topics.update(topics)

    def unsubscribe(self, topic: str) -> None:
        self._topics.discard(topic)

    async def read(self, topics: Sequence[str], after: Position | None, max_events: int, max_bytes: int) -> Reading:
        self._expire()
        if after is None:
            return Reading(self._last, self._floor, (), self._last, 0, (), (), complete=True)
        histories = {topic: self._history[topic] for topic in topics if topic in self._history}
        newer = sorted(
            (event for history in histories.values() for event in history.events if event.position > after),
            key=lambda event: event.position,
        )
        size = list(accumulate((len(event.lines) for event in newer), initial=0))
        page = [event for event, before in zip(newer[:max_events], size, strict=False) if before < max_bytes]
        complete = len(page) == len(newer)
        until = self._last if complete else page[-1].position
        trimmed = [topic for topic, history in histories.items() if after < history.events[0].prev]
        expired = [topic for topic in topics if self._is_removed(topic, after)]
        return Reading(self._last, self._floor, page, until, len(newer), trimmed, expired, complete)

    async def heads(self, topics: Sequence[str]) -> Heads:
        self._expire()
        newest = [self._history[topic].events[-1].position if topic in self._history else ZERO for topic in topics]
        return Heads(self._last, self._floor, self._expired, newest)

    async def pulse(self) -> float:
        position = self._next()
        self._announce(lambda listener: listener.on_pulse(position))
        return self._now_ms() / 1000

    async def replace_link(self) -> None:
        """There is none to replace: announcements are calls of the same loop."""

    def _known(self, key: str, fingerprint: str) -> Sequence[Position] | None:
        oldest = self._monotonic() - IDEMPOTENCY_WINDOW_S
        while self._keys and next(iter(self._keys.values()))[0] < oldest:
            del self._keys[next(iter(self._keys))]
        known = self._keys.get(key)
        if known is None:
            return None
        if known[1] != fingerprint:
            raise idempotency_conflict()
        del self._keys[key]  # to the end: the keys stand in the order of their last use
        self._keys[key] = (self._monotonic(), *known[1:])
        return known[2]

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
        # By the loop and not at once: a publisher hears its own event like everybody else's, and in order.
        asyncio.get_running_loop().call_soon(self._tell, tell)

    def _tell(self, tell: Callable[[Listener], None]) -> None:
        if self._listener is not None:
            tell(self._listener)

    def _is_removed(self, topic: str, after: Position) -> bool:
        """Whether a removed history of the topic may have held something after this position."""
        history = self._history.get(topic)
        if history is None:
            return after < self._expired
        return history.events[0].prev == ZERO and after < history.removed

    def _expire(self) -> None:
        """Remove the histories of topics that got nothing for the history's TTL."""
        oldest = self._monotonic() - self._history_ttl_s
        while self._history and (history := next(iter(self._history.values()))).written_at < oldest:
            self._expired = max(self._expired, history.events[-1].position)
            del self._history[history.events[-1].topic]
