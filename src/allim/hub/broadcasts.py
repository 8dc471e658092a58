"""Events for many streams, written a slice at a time, so that nobody else waits for the whole.

A broadcast to 10,000 streams takes the kernel most of a tenth of a second. It is written in slices, and before each
the event loop is free. Events of one topic that come meanwhile are joined: each stream gets them in one write, in its
next turn.
What must hold until a broadcast is written: docs/decisions/0010-broadcasts-in-slices.md.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice

from allim.hub.event import Event
from allim.hub.position import Position
from allim.hub.registry import Topic
from allim.hub.stream import Stream

SLICE_S = 0.0015  # how long a broadcast may keep the event loop
TURNS_LEFT = 8  # of the event loop to others, before each slice
OTHERS_S = 0.006  # after which they get no further turn: long ones would leave a broadcast a few percent of the time
STRIDE = 32  # streams written between two looks at the clock
JOINED_BYTES = 16 * 1024  # written to a stream at once: enough to make the cost of a write small
MAX_WAITING = 16  # broadcasts, each of one topic; with more than that the link is read no further


def after_others(go_on: Callable[[], None]) -> None:
    """Go on when everybody else has had some turns of the event loop, or one and their time. A request is answered in
    a dozen of them: one for each thing that it waits for.
    """
    _leave_turns(go_on, TURNS_LEFT, time.perf_counter() + OTHERS_S)


def _leave_turns(go_on: Callable[[], None], turns: int, until: float) -> None:
    loop = asyncio.get_running_loop()
    if turns and time.perf_counter() < until:
        loop.call_soon(_leave_turns, go_on, turns - 1, until)
    else:
        loop.call_soon(go_on)


@dataclass(slots=True)
class _Due:
    """An event that is being written.

    Shape: it is done when the turn `until` is reached; so many streams had been written to `before` it came, and so
    many were given it by itself; `pulse` is the newest that came after it.
    """

    event: Event
    until: int
    before: int
    by_itself: int = 0
    pulse: Position | None = None


class _Broadcast:
    """Events of one topic. The streams take turns, round after round, and each gets in one write what has come since
    its last turn; an event is done when the round has come back to where it began.

    Shape: the streams are taken when the writing begins, and then an event joins only if they are still the same:
    who joins a topic after an event was announced has it from history. `turns` gives the streams round after round,
    `turn` counts them, and `writes` those that were written all that was due.
    """

    __slots__ = ("due", "name", "size", "streams", "topic", "turn", "turns", "wire", "writes")

    def __init__(self, event: Event, topic: Topic) -> None:
        self.name = event.topic
        self.topic = topic
        self.due: deque[_Due] = deque()
        self.size = self.turn = self.writes = 0
        self.streams: tuple[Stream, ...] | None = None
        self.turns: Iterator[Stream] = iter(())
        self.join(event)

    def takes(self, topic: Topic) -> bool:
        """Whether another event of this topic may join."""
        return (
            topic is self.topic
            and self.size < JOINED_BYTES
            and (self.streams is None or self.streams is topic.streams)
        )

    def join(self, event: Event) -> None:
        self.due.append(_Due(event, self.turn + len(self.streams or ()), self.writes))
        self.size += len(event.wire)
        if self.streams is not None:
            self._gather()

    def begin(self) -> None:
        self.streams = self.topic.streams
        self.turns = cycle(self.streams)
        for due in self.due:
            due.until = len(self.streams)
        self._gather()

    def go_on(self, ends_at: float, done: Callable[[Event, int, Position | None], None]) -> bool:
        """Write until then; True when nothing is due any more."""
        while self.due:
            oldest = self.due[0]
            while self.turn < oldest.until:
                self._write(min(STRIDE, oldest.until - self.turn))
                if time.perf_counter() >= ends_at:
                    return False
            self.due.popleft()
            self.size -= len(oldest.event.wire)
            self._gather()
            done(oldest.event, self.writes - oldest.before + oldest.by_itself, oldest.pulse)
        return True

    def _write(self, streams: int) -> None:
        """Let so many streams have their turn. Everything is counted also when one fails, which has had it."""
        wire, first, last = self.wire, self.due[0].event.position, self.due[-1].event.position
        turns = writes = 0
        try:
            for stream in islice(self.turns, streams):
                turns += 1
                if stream.backlog is None and stream.last < first and stream.close_reason is None:
                    stream.last = last
                    writes += 1
                    stream.write(wire)
                else:
                    self.settle(stream)
        finally:
            self.turn += turns
            self.writes += writes

    def settle(self, stream: Stream) -> None:
        """Give a stream what it has not had of these events."""
        if not stream.ended:
            for due in self.due:
                due.by_itself += stream.deliver([due.event], due.event.wire)

    def _gather(self) -> None:
        self.wire = b"".join([due.event.wire for due in self.due])


class Broadcasts:
    """What is announced and not yet written to all of its streams, in the order of the link.

    Shape: `written(ms, streams)` is called when an event was written to so many streams, with the milliseconds of its
    position; `heard` with a pulse when everything before it was.
    """

    def __init__(self, written: Callable[[int, int], None], heard: Callable[[Position], None]) -> None:
        self._written = written
        self._heard = heard
        self._waiting: deque[_Broadcast] = deque()  # the first has begun
        self._room = asyncio.Event()
        self._room.set()

    def add(self, event: Event, topic: Topic) -> None:
        """Write the event to the topic's streams, in later turns of the loop."""
        waiting = self._waiting
        if waiting and waiting[-1].takes(topic):
            waiting[-1].join(event)
            return
        waiting.append(_Broadcast(event, topic))
        if len(waiting) == 1:
            after_others(self._begin)
        elif len(waiting) >= MAX_WAITING:
            self._room.clear()

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._waiting)

    def hear(self, pulse: Position) -> None:
        """Pass the pulse on when everything that came before it has been written."""
        if self._waiting and self._waiting[-1].due:
            self._waiting[-1].due[-1].pulse = pulse
        else:
            self._heard(pulse)

    def settle(self, stream: Stream) -> None:
        """Write what waits for this stream, so that something newer can follow."""
        for broadcast in self._waiting:
            if broadcast.name in stream.topics:
                broadcast.settle(stream)

    async def room(self) -> None:
        """Return when more may be announced."""
        await self._room.wait()

    def _begin(self) -> None:
        """By now whatever was published with the first has come, and is written together with it."""
        self._waiting[0].begin()
        self._write_slice()

    def _write_slice(self) -> None:
        ends_at = time.perf_counter() + SLICE_S
        try:
            while self._waiting and self._waiting[0].go_on(ends_at, self._done):
                self._waiting.popleft()
                if len(self._waiting) < MAX_WAITING:  # the link brings more than one at a time
                    self._room.set()
                if self._waiting:
                    self._waiting[0].begin()
                if time.perf_counter() >= ends_at:
                    break
        finally:  # also when a stream failed: the others wait for their turn
            if self._waiting:
                after_others(self._write_slice)

    def _done(self, event: Event, streams: int, pulse: Position | None) -> None:
        self._written(event.position.ms, streams)
        if pulse is not None:
            self._heard(pulse)
