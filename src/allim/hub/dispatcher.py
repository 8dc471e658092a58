"""Dispatch events from the broker's link to this replica's streams, in order.

Normally an announced event is written directly to the streams of its topic, in slices if there are many. When
something may be missing (the link was lost, or an event's `prev` shows a hole), the affected streams catch up from
history and stay open.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from allim.errors import Unavailable
from allim.hub.audit import Audit
from allim.hub.broadcasts import JOINED_BYTES, Broadcasts
from allim.hub.broker import Broker
from allim.hub.catch_up import CatchUp
from allim.hub.event import Control, Event, Run
from allim.hub.position import ZERO, Position
from allim.hub.pulse import Pulse
from allim.hub.registry import Registry, Topic
from allim.hub.stream import Stream
from allim.telemetry import Metrics

log = structlog.get_logger(__name__)

REPAIR_TOPICS = 200  # topics compared in one step of a repair: bounds the time of one script in Redis
REPAIR_RETRY_S = 0.5
AT_ONCE = 128  # streams that an event is written to without looking at the clock


class Dispatcher:
    """Listens to the link and writes to the streams.

    It tells the pulse when the link is up, when a pulse arrives, and when everything before that pulse has been
    dispatched or is being caught up. It asks for an audit when a repair has put every stream that is behind into
    catch-up. `hinted` is called with the name of each hint.
    """

    def __init__(
        self,
        broker: Broker,
        registry: Registry,
        catch_up: CatchUp,
        metrics: Metrics,
        pulse: Pulse,
        audit: Audit,
    ) -> None:
        self._broker = broker
        self._registry = registry
        self._catch_up = catch_up
        self._metrics = metrics
        self._pulse = pulse
        self._audit = audit
        self._broadcasts = Broadcasts(metrics.dispatched, self._hear)
        self._in_doubt = False  # something may be missing: nothing is written directly, pulses prove nothing
        self._late_pulse = ZERO
        self._floor = ZERO  # the newest origin heard of
        self._heard = ZERO  # the last own pulse: everything before it has been dispatched
        self._newest = ZERO  # of all that the link brought
        self._repair: asyncio.Task[None] | None = None
        self.hinted: Callable[[str], None] = _ignore

    # The broker's listener ------------------------------------------------------------------------------------

    def on_events(self, events: Sequence[Event]) -> None:
        topic = self._registry.topic(events[0].topic)
        if topic is None:
            return  # its last stream left while the announcement was on its way
        # While the topic's first stream joins, the topic's newest event is not known yet.
        doubt = self._in_doubt or topic.last is None
        for late in () if doubt else self._late(events, topic):
            self._bring_back(topic, late)
        run: list[Event] = []  # events that are dispatched together
        size = 0
        for event in events:
            if topic.last is not None and event.position <= topic.last:
                continue  # a repair has covered it, or the first stream's history
            hole = topic.last is not None and event.prev > topic.last
            control = event.control
            if run and (hole or control is not None or size >= JOINED_BYTES):
                self._dispatch(run, topic)
                run, size = [], 0
            if hole:
                log.warning("hole in a topic", topic=event.topic, seen=str(topic.last), prev=str(event.prev))
            if doubt:  # once for all of them: a stream that has read the last one has read the others
                self._bring_back(topic, events[-1].position)
                doubt = False
            elif hole:
                self._bring_back(topic, event.prev)
            topic.last = event.position
            if control is None:
                run.append(event)
                size += len(event.lines)
            else:
                self._obey(control, topic)
        if run:
            self._dispatch(run, topic)
        self._newest = max(self._newest, events[-1].position)

    def on_pulse(self, position: Position) -> None:
        self._pulse.arrived()
        self._newest = max(self._newest, position)
        if self._in_doubt:
            self._late_pulse = position
        else:
            self._broadcasts.hear(position)

    def on_origin(self, floor: Position) -> None:
        log.warning("the history has a new origin", floor=str(floor))
        self._floor = max(self._floor, floor)
        if not self._in_doubt:
            self._tell_origin()

    def on_hint(self, name: str) -> None:
        self.hinted(name)

    def link_down(self) -> None:
        self.stop()
        self._in_doubt = True

    def link_up(self) -> None:
        self._pulse.link_up()
        for stream in self._registry:
            if stream.backlog is not None:
                stream.backlog.spoil()
        if self._in_doubt:
            self._metrics.link_repaired()
            self.stop()
            self._repair = asyncio.create_task(self._run_repair(), name="allim link repair")

    async def writable(self) -> None:
        await self._broadcasts.writable()

    # The hub's side -------------------------------------------------------------------------------------------

    def joined(self, stream: Stream, until: Position) -> None:
        """Note that the stream has read its topics' history up to a position: the first known one of a topic that no
        other stream here has joined.

        Other streams that are joining such a topic may have read an older page, and the link will not show them the
        difference: they read on.
        """
        for name in stream.topics:
            topic = self._registry.topic(name)
            if topic is not None and topic.last is None:
                topic.last = until
                for other in topic.streams:
                    if other is not stream and other.backlog is not None:
                        other.backlog.spoil()

    def bring_back(self, stream: Stream) -> None:
        """Put a live stream whose buffer is full back into catch-up."""
        self._metrics.fell_behind()
        self._catch_up.bring_back(stream, partial(self.seen, stream))

    def stop(self) -> None:
        if self._repair is not None:
            self._repair.cancel()
            self._repair = None

    # Straight on ----------------------------------------------------------------------------------------------

    def _late(self, events: Sequence[Event], topic: Topic) -> set[Position]:
        """Return the first and the last position of those events that arrived after something newer.

        A link promises the order of positions. If it breaks the order, a stream may be past these events and would
        drop them.
        """
        known = topic.last or ZERO
        late = [event.position for event in events if known < event.position <= self._newest]
        if not late:
            return set()
        self._metrics.came_late()
        log.warning("events came out of order", topic=events[0].topic, position=str(late[0]), events=len(late))
        return {late[0], late[-1]}

    def _obey(self, control: Control, topic: Topic) -> None:
        for stream in topic.streams:
            self._broadcasts.write_now(stream)
            stream.obey(control)

    def _dispatch(self, events: Sequence[Event], topic: Topic) -> None:
        streams = topic.streams
        if len(streams) > AT_ONCE:
            for event in events:
                self._broadcasts.add(event, topic)
            return
        if self._broadcasts:
            for stream in streams:
                self._broadcasts.write_now(stream)
        run = Run(events)
        delivered = [stream.deliver(run) for stream in streams]
        if len(events) == 1:
            self._metrics.dispatched(run.first.ms, sum(delivered))
            return
        for left, event in zip(range(len(events), 0, -1), events, strict=True):
            self._metrics.dispatched(event.position.ms, sum(count >= left for count in delivered))

    def _hear(self, position: Position) -> None:
        self._heard = position
        self._pulse.heard(position)

    def _tell_origin(self) -> None:
        for stream in self._registry:
            if stream.backlog is not None:
                stream.backlog.floor = self._floor
            elif stream.last < self._floor:
                self._broadcasts.write_now(stream)
                stream.pass_to(self._floor)
                self._metrics.gap("origin")
                stream.gap(stream.topics, "origin")

    # Repair ---------------------------------------------------------------------------------------------------

    async def _run_repair(self) -> None:
        """Compare every topic with history, and put the streams that are behind into catch-up."""
        names = self._registry.topics()
        behind = 0
        for at in range(0, len(names), REPAIR_TOPICS):
            behind += await self._compare_patiently(names[at : at + REPAIR_TOPICS])
        self._repair = None
        self._in_doubt = False
        self._tell_origin()
        if self._late_pulse > self._heard:
            self._broadcasts.hear(self._late_pulse)
        self._audit.request()
        log.info("link repaired", topics=len(names), streams_behind=behind)

    async def _compare_patiently(self, names: Sequence[str]) -> int:
        while True:
            try:
                return await self._compare(names)
            except Unavailable as error:
                log.warning("repair waits for history", error=error.detail)
            except Exception:
                log.exception("repair failed, trying again")
            await asyncio.sleep(REPAIR_RETRY_S)

    async def _compare(self, names: Sequence[str]) -> int:
        heads = await self._broker.heads(names)
        self._floor = max(self._floor, heads.floor)
        behind = 0
        for name, newest in zip(names, heads.newest, strict=True):
            topic = self._registry.topic(name)
            if topic is None or topic.last is None:
                continue  # left meanwhile, or joining: it reads by itself
            # The history that held the events since the last pulse may have been removed.
            removed = newest == ZERO and max(topic.last, self._heard) < heads.expired
            if newest > topic.last or removed:
                until = heads.now if removed else newest
                behind += self._bring_back(topic, until)
                topic.last = until
        return behind

    def _bring_back(self, topic: Topic, until: Position) -> int:
        """Put the topic's streams that have not read up to `until` into catch-up. Returns their number."""
        behind = [stream for stream in topic.streams if not stream.has_read(until)]
        for stream in behind:
            self._catch_up.bring_back(stream, partial(self.seen, stream))
        return len(behind)

    def seen(self, stream: Stream) -> dict[str, Position]:
        """Return the newest dispatched position of each of the stream's topics."""
        known = ((name, self._registry.topic(name)) for name in stream.topics)
        return {name: topic.last for name, topic in known if topic is not None and topic.last is not None}


def _ignore(_name: str) -> None:
    """Do nothing with a hint that no part of this replica waits for."""
