"""Catch-up: history before live, with no hole, no double and no reordering, also while publishers run.

The way: put aside what arrives live, read history in pages from where the stream stands, write it, write what was put
aside and is newer, go live. Positions are one order over all topics, so one scalar says how far a stream is.
A stream catches up when it joins, and again whenever its replica may have missed something: it stays open.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import structlog

from allim.errors import Unavailable
from allim.hub.broker import Broker, Reading
from allim.hub.close_reason import CloseReason
from allim.hub.event import Event
from allim.hub.position import ZERO, Position
from allim.hub.resume import judge, parse_last_event_id
from allim.hub.stream import Backlog, Hole, Opening, Stream
from allim.telemetry import Metrics

log = structlog.get_logger(__name__)

PAGE_EVENTS = 512
PAGE_BYTES = 256 * 1024
READS_AT_ONCE = 32  # bounds, with the size of a page, what history costs Redis and this replica at a stretch
RETRY_S = 0.5  # between two reads while the broker does not answer


class Start(NamedTuple):
    """Where a stream begins: the frame it opens with, and the first page."""

    opening: Opening
    reading: Reading


class CatchUp:
    """Brings streams from a position to live."""

    def __init__(
        self,
        broker: Broker,
        metrics: Metrics,
        history_ttl_s: int,
        new_backlog: Callable[[], Backlog],
    ) -> None:
        self._broker = broker
        self._metrics = metrics
        self._ttl_ms = history_ttl_s * 1000
        self._new_backlog = new_backlog
        self._reading = asyncio.Semaphore(READS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, stream: Stream, last_event_id: str | None) -> Start:
        """Read the first page and judge. The stream's topics must be subscribed.

        Raises: Unavailable.
        """
        reading = await self._read(stream.topics, parse_last_event_id(last_event_id))
        verdict = judge(last_event_id, stream.topics, reading, self._ttl_ms // 1000)
        if verdict.after is None:
            return Start(Opening(verdict, reading.now, 0), reading)
        return Start(Opening(verdict, verdict.after, reading.kept), reading)

    async def follow(self, stream: Stream, start: Start) -> None:
        """Write the pages from the first to the last and go live. Returns early when the stream ends meanwhile."""
        stream.last = start.opening.position
        await self._go_on(stream, ZERO, start.reading)

    def bring_back(self, stream: Stream, hole: Hole) -> None:
        """Let a stream read what is missing, in the background. It stays open, whatever the broker does."""
        if stream.backlog is None:
            stream.backlog = self._new_backlog()
            task = asyncio.create_task(self._guard(stream, self._go_on(stream, stream.last)), name="allim catch-up")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        stream.backlog.spoil()
        stream.backlog.holes.append(hole)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # The way back -----------------------------------------------------------------------------------------------

    async def _guard(self, stream: Stream, way: Awaitable[None]) -> None:
        try:
            await way
        except Exception:
            log.exception("catch-up failed", stream=stream.id)
            stream.close(CloseReason.LINK_FAILED)  # or it would wait for ever, neither live nor ended

    async def _go_on(self, stream: Stream, since: Position, first: Reading | None = None) -> None:
        """Read and write until nothing is left, at the reader's pace, then go live.

        Shape: what lies before `since` cannot be written in order any more. The `first` reading has been judged, and
        what the verdict says need not be told again.
        """
        backlog = stream.backlog
        assert backlog is not None
        told = ZERO if first is None else first.floor
        expired_told = first is not None
        written = 0 if first is None else await self._write_page(stream, first)
        complete = first is not None and first.complete
        while not stream.ended:
            if not (complete and backlog.whole):
                backlog.clear()  # whatever it held is announced, so it is in the history read next
                holes, backlog.holes = backlog.holes, []
                for hole in holes:
                    await self._tell_late(stream, hole, since)
                reading = await self._read_patiently(stream, stream.topics, stream.last)
                if reading is None:
                    return
                if told < reading.floor and stream.last < reading.floor:
                    self._tell(stream, stream.topics, "origin")
                elif stream.last.ms < reading.time_ms - self._ttl_ms and not expired_told:
                    self._tell(stream, stream.topics, "trimmed")
                elif lost := _lost(stream, holes, reading):
                    self._tell(stream, lost, "trimmed")
                told, expired_told = max(told, reading.floor), True
                written += await self._write_page(stream, reading)
                complete = reading.complete
            elif max(told, stream.last) < backlog.floor:
                self._tell(stream, stream.topics, "origin")
                told = backlog.floor
            elif backlog.events:
                written += await self._write(stream, backlog.take())
            else:
                stream.covered_from, stream.covered = since, stream.last
                stream.backlog = None
                break
        self._metrics.caught_up(written)

    async def _tell_late(self, stream: Stream, hole: Hole, since: Position) -> None:
        """What is missing from before `since` cannot come in order any more: say so."""
        if hole.since >= since:
            return  # all of it comes now
        reading = await self._read_patiently(stream, (hole.topic,), hole.since)
        if reading is None:
            return
        late = [event.position for event in reading.events if event.position <= since]
        if reading.trimmed or not all(stream.covered_from < position <= stream.covered for position in late):
            self._tell(stream, [hole.topic], "trimmed")

    async def _write_page(self, stream: Stream, reading: Reading) -> int:
        written = await self._write(stream, reading.events)
        stream.last = max(stream.last, reading.until)
        return written

    async def _write(self, stream: Stream, events: Sequence[Event]) -> int:
        written = 0
        for event in events:
            if (control := event.control) is not None:
                stream.obey(control)
            elif event.position > stream.last and not stream.ended:
                stream.write(event.wire)
                stream.last = event.position
                written += 1
                await stream.drained()
        return written

    def _tell(self, stream: Stream, topics: Sequence[str], reason: str) -> None:
        self._metrics.gap(reason)
        stream.gap(topics, reason)

    # Reading ----------------------------------------------------------------------------------------------------

    async def _read(self, topics: Sequence[str], after: Position | None) -> Reading:
        async with self._reading:
            return await self._broker.read(topics, after, PAGE_EVENTS, PAGE_BYTES)

    async def _read_patiently(self, stream: Stream, topics: Sequence[str], after: Position) -> Reading | None:
        """The reading, whenever the broker answers again; None when the stream has ended by then."""
        while not stream.ended:
            try:
                return await self._read(topics, after)
            except Unavailable:  # told in the log by the broker, once for all that wait
                await asyncio.sleep(RETRY_S * random.uniform(1, 2))
        return None


def _lost(stream: Stream, holes: Sequence[Hole], reading: Reading) -> Sequence[str]:
    """The topics that history cannot answer for: trimmed, or without what was announced before the next event."""
    lost = dict.fromkeys(reading.trimmed)
    for hole in holes:
        if stream.last < hole.until <= reading.until:
            found = any(event.topic == hole.topic and event.position <= hole.until for event in reading.events)
            if not found:
                lost[hole.topic] = None
    return tuple(lost)
