"""Write events to many streams in slices, so that the event loop stays free between them.

A broadcast to 10,000 streams takes the kernel most of a tenth of a second. It is written in slices, and before each
slice other tasks run. Events of one topic that arrive meanwhile are joined: each stream gets them in one write, in
its next turn.
Source: docs/decisions/0010-broadcasts-in-slices.md, with the invariants that hold until a broadcast is written.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice

from allim.hub.event import Event, Run
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
    """Call `go_on` after other tasks have had TURNS_LEFT turns of the event loop, or OTHERS_S and at least one turn.

    A request needs about a dozen turns: one for each thing that it waits for.
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

    Shape: it is done when the turn `until` is reached; `before` streams had got everything due when it came; `apart`
    streams got it, but not everything that was due with it; `pulse` is the newest that came after it.
    """

    event: Event
    until: int
    before: int
    apart: int = 0
    pulse: Position | None = None


class _Broadcast:
    """Events of one topic that are being written to its streams.

    The streams take turns, round after round. In its turn a stream gets, in one write, all events that arrived since
    its last turn. An event is done when every stream has had a turn after the event arrived.

    Shape: the list of streams is fixed when the writing begins; after that an event joins only if the list is still
    the same, because a stream that joins the topic after an announcement reads the event from history. `turns` gives
    the streams round after round, `turn` counts them, `writes` counts the streams that got everything due.
    """

    __slots__ = ("_run", "due", "name", "size", "streams", "topic", "turn", "turns", "writes")

    def __init__(self, event: Event, topic: Topic) -> None:
        self.name = event.topic
        self.topic = topic
        self.due: deque[_Due] = deque()
        self._run: Run | None = None
        self.size = self.turn = self.writes = 0
        self.streams: tuple[Stream, ...] | None = None
        self.turns: Iterator[Stream] = iter(())
        self.join(event)

    def takes(self, topic: Topic) -> bool:
        """Return whether another event of this topic may join."""
        return (
            topic is self.topic
            and self.size < JOINED_BYTES
            and (self.streams is None or self.streams is topic.streams)
        )

    def join(self, event: Event) -> None:
        self.due.append(_Due(event, self.turn + len(self.streams or ()), self.writes))
        self.size += len(event.lines)
        self._run = None

    def begin(self) -> None:
        self.streams = self.topic.streams
        self.turns = cycle(self.streams)
        for due in self.due:
            due.until = len(self.streams)

    def go_on(self, ends_at: float, done: Callable[[Event, int, Position | None], None]) -> bool:
        """Write until the time `ends_at`. Returns True when nothing is due any more."""
        while self.due:
            oldest = self.due[0]
            while self.turn < oldest.until:
                self._write(min(STRIDE, oldest.until - self.turn))
                if time.perf_counter() >= ends_at:
                    return False
            self.due.popleft()
            self.size -= len(oldest.event.lines)
            self._run = None
            done(oldest.event, self.writes - oldest.before + oldest.apart, oldest.pulse)
        return True

    def _write(self, streams: int) -> None:
        """Give the next `streams` streams their turn. If writing to one fails, its turn is counted too."""
        run = self._gathered()
        every = len(run.events)
        turns = writes = 0
        try:
            for stream in islice(self.turns, streams):
                turns += 1
                if stream.close_reason is None:
                    written = stream.deliver(run)
                    if written == every:
                        writes += 1
                    elif written:
                        self._note_apart(written)
        finally:
            self.turn += turns
            self.writes += writes

    def write_now(self, stream: Stream) -> None:
        """Write those of these events that the stream does not have yet, before its turn."""
        if not stream.ended:
            self._note_apart(stream.deliver(self._gathered()))

    def _note_apart(self, written: int) -> None:
        for due in islice(reversed(self.due), written):
            due.apart += 1

    def _gathered(self) -> Run:
        if self._run is None:
            self._run = Run([due.event for due in self.due])
        return self._run


class Broadcasts:
    """Broadcasts that are announced and not yet written to all of their streams, in the order of the link.

    Shape: `written(ms, streams)` is called when an event was written to so many streams, with the milliseconds of its
    position; `heard` with a pulse when everything before it was.
    """

    def __init__(self, written: Callable[[int, int], None], heard: Callable[[Position], None]) -> None:
        self._written = written
        self._heard = heard
        self._waiting: deque[_Broadcast] = deque()  # the first has begun
        self._writable = asyncio.Event()
        self._writable.set()

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
            self._writable.clear()

    def __bool__(self) -> bool:
        """Return whether anything waits."""
        return bool(self._waiting)

    def hear(self, pulse: Position) -> None:
        """Pass the pulse on when everything that came before it has been written."""
        if self._waiting and self._waiting[-1].due:
            self._waiting[-1].due[-1].pulse = pulse
        else:
            self._heard(pulse)

    def write_now(self, stream: Stream) -> None:
        """Write the waiting events of this stream, so that something newer can follow."""
        for broadcast in self._waiting:
            if broadcast.name in stream.topics:
                broadcast.write_now(stream)

    async def writable(self) -> None:
        """Return when more may be announced."""
        await self._writable.wait()

    def _begin(self) -> None:
        """Start the first broadcast. Events published together with its first event have arrived by now."""
        self._waiting[0].begin()
        self._write_slice()

    def _write_slice(self) -> None:
        ends_at = time.perf_counter() + SLICE_S
        try:
            while self._waiting and self._waiting[0].go_on(ends_at, self._done):
                self._waiting.popleft()
                if len(self._waiting) < MAX_WAITING:  # the link brings more than one at a time
                    self._writable.set()
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
