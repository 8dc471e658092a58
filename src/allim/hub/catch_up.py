"""Catch-up: history before live, with no hole, no double and no reordering, also while publishers run.

Steps: put events that arrive live into the backlog; read history in pages from the stream's position and write it;
write the newer events of the backlog; go live. Positions are one order over all topics, so one scalar is enough for
the state of a stream.
A stream catches up when it joins, and again whenever its replica may have missed something. It stays open meanwhile.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import structlog

from allim.errors import Unavailable
from allim.hub.broadcasts import JOINED_BYTES
from allim.hub.broker import Broker, Reading
from allim.hub.close_reason import CloseReason
from allim.hub.event import Event, Run
from allim.hub.position import ZERO, Position
from allim.hub.reads import Reads
from allim.hub.resume import judge, parse_last_event_id
from allim.hub.stream import Backlog, Opening, Stream
from allim.telemetry import Metrics

log = structlog.get_logger(__name__)

RETRY_S = 0.5  # between two reads while the broker does not answer


class Start(NamedTuple):
    """The start of a stream: the content of its first frame, and the first page of history."""

    opening: Opening
    reading: Reading


Seen = Callable[[], dict[str, Position]]
"""The newest position dispatched of each of a stream's topics."""


class Chain:
    """The newest event a stream has of each topic while it catches up. It finds the events that can no longer be
    written in order, so that the reader is told of a gap.

    Shape: `seen` is, per topic, the newest position that the stream is known to have; None after a gap of the topic
    was told. The last page of history began after `since`; history was read without a break from `read_from` to
    `read_until`.
    """

    def __init__(self, seen: Mapping[str, Position], since: Position) -> None:
        self.seen: dict[str, Position | None] = {**seen}
        self.since = self.read_from = self.read_until = since

    def breaks_before(self, stream: Stream, event: Event) -> bool:
        seen = self.seen.get(event.topic)
        return seen is not None and seen < event.prev and not stream.has_read(event.prev)

    def note(self, event: Event) -> None:
        if event.topic in self.seen:
            self.seen[event.topic] = max(self.seen[event.topic] or ZERO, event.position)

    def note_read(self, until: Position) -> None:
        """Note a page that ended at `until`. Between two pages events may have been missed on the link."""
        if self.since > self.read_until:
            self.read_from = self.since
        self.read_until = until

    def never_read(self, stream: Stream, dispatched: Mapping[str, Position]) -> list[str]:
        """Return the topics with an event before the last page that neither history nor the link has delivered."""
        return [
            topic
            for topic, last in dispatched.items()
            if (seen := self.seen.get(topic)) is not None and seen < last <= self.since and not stream.has_read(last)
        ]

    def told(self, topics: Collection[str]) -> None:
        """Note that the reader was told of a gap in these topics."""
        self.seen.update(dict.fromkeys(self.seen.keys() & set(topics)))


class CatchUp:
    """Brings streams from a position to live."""

    def __init__(
        self,
        broker: Broker,
        metrics: Metrics,
        new_backlog: Callable[[], Backlog],
    ) -> None:
        self._reads = Reads(broker)
        self._metrics = metrics
        self._new_backlog = new_backlog
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, stream: Stream, last_event_id: str | None) -> Start:
        """Read the first page and judge the resume. The stream's topics must be subscribed.

        Raises: Unavailable.
        """
        reading = await self._reads.read(stream.topics, parse_last_event_id(last_event_id))
        verdict = judge(last_event_id, stream.topics, reading)
        if verdict.after is None:
            return Start(Opening(verdict, reading.now, 0), reading)
        return Start(Opening(verdict, verdict.after, reading.kept), reading)

    async def follow(self, stream: Stream, start: Start, seen: Seen) -> None:
        """Write the pages from the first to the last and go live. Returns early when the stream ends meanwhile."""
        stream.pass_to(start.opening.position)
        known = dict.fromkeys(stream.topics, start.reading.until)  # the verdict covers gaps up to there
        await self._go_on(stream, Chain(known, ZERO), start.reading, seen)

    def bring_back(self, stream: Stream, seen: Seen) -> None:
        """Put a stream back into catch-up, in the background. It stays open even if the broker does not answer."""
        if stream.backlog is None:
            stream.backlog = self._new_backlog()
            way = self._go_on(stream, Chain(seen(), stream.last), None, seen)
            task = asyncio.create_task(self._guard(stream, way), name="allim catch-up")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        stream.backlog.spoil()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reads.close()

    # The way back -----------------------------------------------------------------------------------------------

    async def _guard(self, stream: Stream, way: Awaitable[None]) -> None:
        try:
            await way
        except Exception:
            log.exception("catch-up failed", stream=stream.id)
            stream.close(CloseReason.LINK_FAILED)  # or it would wait for ever, neither live nor ended

    async def _go_on(self, stream: Stream, chain: Chain, first: Reading | None, seen: Seen) -> None:
        """Read and write until nothing is left, at the reader's pace, then go live.

        Shape: the `first` reading has been judged; gaps that its verdict names are not told again.
        """
        backlog = stream.backlog
        assert backlog is not None
        told = None
        lost: set[str] = set()  # topics that were told of as trimmed or expired and have not come since
        written, complete = 0, False
        if first is not None:
            told, complete = first.floor, first.complete
            lost = _still_lost(first)
            chain.told(lost)
            written = await self._write_page(stream, chain, first)
        while not stream.ended:
            await stream.writable()  # also before it goes live: a full buffer would never be seen to be full
            if not (complete and backlog.whole):
                backlog.clear()  # its events are announced, so they are in the page read next
                chain.since = stream.last
                reading = await self._read_patiently(stream)
                if reading is None:
                    return
                if (told is None or told < reading.floor) and stream.last < reading.floor:
                    self._tell(stream, chain, stream.topics, "origin")
                elif news := [topic for topic in (*reading.trimmed, *reading.expired) if topic not in lost]:
                    self._tell(stream, chain, news, "trimmed")
                told, complete = reading.floor, reading.complete
                lost = _still_lost(reading)
                written += await self._write_page(stream, chain, reading)
            elif stream.last < backlog.floor and (told is None or told < backlog.floor):
                self._tell(stream, chain, stream.topics, "origin")
                stream.pass_to(backlog.floor)
            elif backlog.events:
                written += await self._write(stream, chain, backlog.pop_all())
            elif missing := chain.never_read(stream, seen()):
                self._tell(stream, chain, missing, "trimmed")
            else:
                stream.note_read(chain.read_from, chain.read_until)
                stream.backlog = None
                break
        self._metrics.caught_up(written)

    async def _write_page(self, stream: Stream, chain: Chain, reading: Reading) -> int:
        chain.note_read(reading.until)
        written = await self._write(stream, chain, reading.events)
        stream.pass_to(reading.until)
        return written

    async def _write(self, stream: Stream, chain: Chain, events: Sequence[Event]) -> int:
        """Write events, several in one write where possible, because each write is a system call."""
        chained = bool(chain.seen)
        written = size = 0
        run: list[Event] = []
        last = stream.last  # with the run that is not written yet
        for event in events:
            broken, control = chained and chain.breaks_before(stream, event), event.control
            if run and (broken or control is not None or size >= JOINED_BYTES):
                stream.deliver_missed(Run(run))
                run, size = [], 0
                await stream.writable()
            if broken:
                self._tell(stream, chain, [event.topic], "trimmed")
            if chained and (event.position > last or stream.has_read(event.position)):
                chain.note(event)  # an event that came late is neither: `never_read` finds it
            if control is not None:
                stream.obey(control)
            elif event.position > last and stream.close_reason is None:
                run.append(event)
                size += len(event.lines)
                last = event.position
                written += 1
        if run:
            stream.deliver_missed(Run(run))
        return written

    def _tell(self, stream: Stream, chain: Chain, topics: Sequence[str], reason: str) -> None:
        self._metrics.gap(reason)
        stream.gap(topics, reason)
        chain.told(topics)

    async def _read_patiently(self, stream: Stream) -> Reading | None:
        """Return the history after the stream's position, retrying until the broker answers; None if the stream
        ended.
        """
        while not stream.ended:
            try:
                return await self._reads.read(stream.topics, stream.last)
            except Unavailable:  # the broker has logged it, once for all streams that wait
                await asyncio.sleep(RETRY_S * random.uniform(1, 2))
        return None


def _still_lost(reading: Reading) -> set[str]:
    """Return the topics that the next reading would name again, because this page held no event of them."""
    return {*reading.trimmed, *reading.expired} - {event.topic for event in reading.events}
