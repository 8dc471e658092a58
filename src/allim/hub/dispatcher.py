"""From the broker's link to this replica's streams, in order.

Normally an announcement goes straight to the streams of its topic. When something may be missing (the link was
lost, or an event's `prev` shows a hole), the dispatcher holds what arrives, reads the missed events from history,
dispatches them in order, then what it held, and goes on. The streams stay open.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog

from allim.errors import Unavailable
from allim.hub.broker import Broker, Reading
from allim.hub.catch_up import PAGE_EVENTS, merge
from allim.hub.event import Event
from allim.hub.position import ZERO, Position
from allim.hub.registry import Registry
from allim.telemetry import Metrics

log = structlog.get_logger(__name__)

REPAIR_TOPICS = 200  # topics read in one step of a repair: a bound on what Redis does at a stretch
REPAIR_RETRY_S = 0.5


class Missed(NamedTuple):
    """What history says of the time a link did not bring.

    Shape: the events in order, the topics it cannot answer for with the reason, and the newest position it was asked
    for.
    """

    events: Sequence[Event]
    lost: dict[str, str]
    now: Position


class Dispatcher:
    """Hears the link and writes to the streams.

    Shape: `heard` is the position of the last own pulse: everything before it has been dispatched. `alive` is told of
    a pulse when it arrives, `beat` when what came before it has been dispatched too. `stood_up` is set whenever a
    link stands anew.
    """

    def __init__(
        self,
        broker: Broker,
        registry: Registry,
        metrics: Metrics,
        alive: Callable[[], None],
        beat: Callable[[Position], None],
    ) -> None:
        self._broker = broker
        self._registry = registry
        self._metrics = metrics
        self._alive = alive
        self._beat = beat
        self._held: list[Event | Position] | None = None
        self._unfilled: Position | None = None  # where a hole begins that is being filled
        self._repair: asyncio.Task[None] | None = None
        self.heard = ZERO
        self.stood_up = asyncio.Event()

    # The broker's listener ------------------------------------------------------------------------------------

    def on_event(self, event: Event) -> None:
        if self._held is not None:
            self._held.append(event)
        elif (seen := self._seen_before_hole(event)) is not None:
            log.warning("hole in a topic", topic=event.topic, seen=str(seen), prev=str(event.prev))
            self._held = [event]
            self._unfilled = seen
            self._start_repair([event.topic], seen)
        else:
            self._dispatch(event)

    def on_pulse(self, position: Position) -> None:
        self._alive()
        if self._held is not None:
            self._held.append(position)
        else:
            self._hear(position)

    def link_down(self) -> None:
        self.stop()
        if self._held is None:
            self._held = []

    def link_up(self) -> None:
        """Every topic is read from the last pulse on: one link delivers in order, so all before it was heard."""
        self.stood_up.set()
        if self._held is not None:
            self._metrics.link_repaired()
            after = self.heard if self._unfilled is None else min(self.heard, self._unfilled)
            self._start_repair(self._registry.topics(), after)

    def stop(self) -> None:
        if self._repair is not None:
            self._repair.cancel()
            self._repair = None

    # Straight on ----------------------------------------------------------------------------------------------

    def _seen_before_hole(self, event: Event) -> Position | None:
        """The last position seen on the topic when this event's `prev` is newer, that is when one is missing."""
        topic = self._registry.topic(event.topic)
        if topic is None or topic.last is None or event.prev <= topic.last:
            return None
        return topic.last

    def _dispatch(self, event: Event) -> None:
        topic = self._registry.topic(event.topic)
        if topic is None:
            return  # its last stream left while the announcement was on its way
        if topic.last is not None and event.position <= topic.last:
            return  # a repair has dispatched it, or the first stream's history covers it
        topic.last = event.position
        if (control := event.control) is not None:
            for stream in topic.streams:
                stream.obey(control)
            return
        written = 0
        for stream in topic.streams:
            written += stream.deliver(event)
        self._metrics.dispatched(event.position.ms, written)

    def _hear(self, position: Position) -> None:
        self.heard = position
        self._beat(position)

    # Repair ---------------------------------------------------------------------------------------------------

    def _start_repair(self, names: Sequence[str], after: Position) -> None:
        self.stop()
        self._repair = asyncio.create_task(self._run_repair(names, after), name="allim link repair")

    async def _run_repair(self, names: Sequence[str], after: Position) -> None:
        while True:
            try:
                missed = await self._read_missed(names, after)
            except Unavailable as error:
                log.warning("repair waits for history", error=error.detail)
                await asyncio.sleep(REPAIR_RETRY_S)
            except Exception:
                log.exception("repair failed, trying again")
                await asyncio.sleep(REPAIR_RETRY_S)
            else:
                self._release(missed, frozenset(names))
                return

    async def _read_missed(self, names: Sequence[str], after: Position) -> Missed:
        missed: list[Event] = []
        lost: dict[str, str] = {}
        now: Position | None = None
        for at in range(0, len(names), REPAIR_TOPICS):
            chunk, cursor, complete = names[at : at + REPAIR_TOPICS], after, False
            while not complete:
                reading = await self._broker.read(chunk, cursor, PAGE_EVENTS)
                lost |= self._lost(reading, cursor)
                events, cursor, complete = merge(reading)
                missed += events
            now = reading.now if now is None else min(now, reading.now)
        missed.sort(key=lambda event: event.position)
        return Missed(missed, lost, now or after)

    def _lost(self, reading: Reading, after: Position) -> dict[str, str]:
        lost: dict[str, str] = {}
        for history in reading.topics:
            known = max(after, self._last(history.topic))
            if known < reading.floor:
                lost[history.topic] = "origin"
            elif history.oldest_prev is not None and known < history.oldest_prev:
                lost[history.topic] = "trimmed"
        return lost

    def _last(self, name: str) -> Position:
        topic = self._registry.topic(name)
        return ZERO if topic is None or topic.last is None else topic.last

    def _release(self, missed: Missed, names: frozenset[str]) -> None:
        """Gaps first, then what was missed, then what was held: positions rise on every stream."""
        self._repair = self._unfilled = None
        held, self._held = self._held or [], None
        for name, reason in missed.lost.items():
            self._tell_gap(name, reason)
        for event in missed.events:
            self._dispatch_late(event)
        for item in held:
            if not isinstance(item, Event):
                self.on_pulse(item)
            elif item.topic in names and not self._holding() and self._cannot_be_filled(item, missed):
                self._dispatch(item)
            else:
                self.on_event(item)
        if missed.events or missed.lost:
            log.info("repaired", missed=len(missed.events), lost_topics=len(missed.lost))

    def _holding(self) -> bool:
        return self._held is not None

    def _cannot_be_filled(self, event: Event, missed: Missed) -> bool:
        """Whether history was asked for what came before this event and does not have it: then a gap is told."""
        if event.prev > missed.now or self._seen_before_hole(event) is None:
            return False
        if event.topic not in missed.lost:
            self._tell_gap(event.topic, "trimmed")
        return True

    def _dispatch_late(self, event: Event) -> None:
        topic = self._registry.topic(event.topic)
        if topic is None or (topic.last is not None and event.position <= topic.last):
            return
        if event.control is None:
            for stream in topic.streams:
                # Written past it already (another topic was faster): it cannot come in order any more, so say so.
                if stream.live and stream.covered < event.position <= stream.last:
                    self._metrics.gap("trimmed")
                    stream.gap([event.topic], "trimmed")
        self._dispatch(event)

    def _tell_gap(self, name: str, reason: str) -> None:
        topic = self._registry.topic(name)
        if topic is None:
            return
        for stream in topic.streams:
            if stream.live:  # one that catches up reads history itself, and is told by its own verdict
                self._metrics.gap(reason)
                stream.gap([name], reason)
