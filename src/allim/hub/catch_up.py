"""Catch-up: history before live, with no hole, no double and no reordering, also while publishers run.

The way: subscribe (confirmed), put aside what arrives live, read history in pages, write it, write what was put
aside and is newer, go live. Positions are one order over all topics, so one scalar says how far a stream is.
"""

from collections.abc import Sequence
from typing import NamedTuple

from allim.hub.broker import Broker, Reading
from allim.hub.event import Event
from allim.hub.position import Position
from allim.hub.resume import judge, parse_last_event_id
from allim.hub.stream import Opening, Stream

PAGE_EVENTS = 128


class Page(NamedTuple):
    """Events of several topics in order, and how far they reach.

    Shape: everything of the topics up to `until` has been read when this page and those before it are written;
    `complete` when that is all history holds.
    """

    events: Sequence[Event]
    until: Position
    complete: bool


class Start(NamedTuple):
    """Where a stream begins: the frame it opens with, its first page, and the newest position at that moment."""

    opening: Opening
    page: Page
    now: Position


def merge(reading: Reading) -> Page:
    """The events of a reading in order, up to where no topic's page was cut short."""
    cut = [history.events[-1].position for history in reading.topics if history.more and history.events]
    until = min(cut, default=reading.now)
    events = sorted(
        (event for history in reading.topics for event in history.events if event.position <= until),
        key=lambda event: event.position,
    )
    return Page(events, until, complete=not cut)


def trimmed_topics(reading: Reading, after: Position) -> list[str]:
    """The topics that lost events after this position before they could be read."""
    return [h.topic for h in reading.topics if h.oldest_prev is not None and after < h.oldest_prev]


async def start(broker: Broker, stream: Stream, last_event_id: str | None, ttl_s: int) -> Start:
    """Read the first page and judge. The stream's topics must be subscribed.

    Raises: Unavailable.
    """
    asked = parse_last_event_id(last_event_id)
    reading = await broker.read(stream.topics, asked, PAGE_EVENTS)
    verdict = judge(last_event_id, reading, ttl_s)
    if verdict.after is None:
        return Start(Opening(verdict, reading.now, 0), Page((), reading.now, complete=True), reading.now)
    replayed = sum(len(history.events) + history.more for history in reading.topics)
    return Start(Opening(verdict, verdict.after, replayed), merge(reading), reading.now)


async def follow(broker: Broker, stream: Stream, page: Page) -> int:
    """Write the pages from the first to the last and go live; gives the number of events written.

    Stops early when the stream ends meanwhile.
    Raises: Unavailable when history cannot be read on.
    """
    assert stream.backlog is not None
    written = await _write(stream, page)
    while not stream.ended and (not page.complete or stream.backlog.overflowed):
        stream.backlog.clear()  # whatever it held is announced, so it is in the history read next
        reading = await broker.read(stream.topics, page.until, PAGE_EVENTS)
        if lost := trimmed_topics(reading, page.until):
            stream.gap(lost, "trimmed")
        page = merge(reading)
        written += await _write(stream, page)
    return written + _go_live(stream, page.until)


async def _write(stream: Stream, page: Page) -> int:
    written = 0
    for event in page.events:
        if (control := event.control) is not None:
            stream.obey(control)
        elif not stream.ended:
            stream.write(event.wire)
            stream.last = event.position
            written += 1
            await stream.drained()
    return written


def _go_live(stream: Stream, until: Position) -> int:
    assert stream.backlog is not None
    backlog, stream.backlog = stream.backlog, None
    stream.last = stream.covered = until
    return sum(stream.deliver(event) for event in backlog.events)
