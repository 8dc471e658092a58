"""Events for many streams, written a slice at a time, so that nobody else waits for the whole.

A broadcast to 10,000 streams takes the kernel most of a tenth of a second. It is written in slices, and between two
the event loop is free. Events of one topic that come meanwhile are joined: each stream gets them in one write.
What must hold until a broadcast is written: docs/decisions/0010-broadcasts-in-slices.md.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from allim.hub.event import Event
from allim.hub.position import Position
from allim.hub.registry import Topic
from allim.hub.stream import Stream

SLICE_S = 0.001  # how long a broadcast may keep the event loop
STRIDE = 32  # streams written between two looks at the clock
JOINED_BYTES = 16 * 1024  # written to a stream at once: enough to make the cost of a write small
MAX_WAITING = 16  # broadcasts, each of one topic; with more than that the link is read no further


class _Broadcast:
    """Events of one topic in their order, and how far they are written.

    Shape: the streams are taken when the writing begins: who joins a topic after an event was announced has it from
    history. `pulse` is the newest that came after these events.
    """

    __slots__ = ("events", "pulse", "settled", "size", "streams", "topic", "turns", "wire")

    def __init__(self, event: Event, topic: Topic) -> None:
        self.topic = topic
        self.events = [event]
        self.size = len(event.wire)
        self.settled = [0]  # streams that got the event by itself
        self.turns = 0  # streams that got all events in one write
        self.pulse: Position | None = None

    def join(self, event: Event) -> None:
        self.events.append(event)
        self.size += len(event.wire)
        self.settled.append(0)

    def begin(self) -> None:
        self.wire = b"".join([event.wire for event in self.events])
        self.streams = iter(self.topic.streams)

    def go_on(self, ends_at: float) -> bool:
        """Write until then; True when every stream has had its turn."""
        wire, first, last = self.wire, self.events[0].position, self.events[-1].position
        left = STRIDE
        for stream in self.streams:
            if stream.backlog is None and stream.last < first and stream.close_reason is None:
                stream.last = last
                stream.write(wire)
                self.turns += 1
            else:
                self.settle(stream)
            left -= 1
            if not left:
                if time.perf_counter() >= ends_at:
                    return False
                left = STRIDE
        return True

    def settle(self, stream: Stream) -> None:
        """Give a stream what it has not had of these events."""
        if not stream.ended:
            for number, event in enumerate(self.events):
                self.settled[number] += stream.deliver(event)


class Broadcasts:
    """What is announced and not yet written to all of its streams, in the order of the link.

    Shape: `written(event, streams)` is called when an event was written to so many streams, `heard` with a pulse
    when everything before it was.
    """

    def __init__(self, written: Callable[[Event, int], None], heard: Callable[[Position], None]) -> None:
        self._written = written
        self._heard = heard
        self._waiting: deque[_Broadcast] = deque()  # the first has begun
        self._room = asyncio.Event()
        self._room.set()

    def add(self, event: Event, topic: Topic) -> None:
        """Write the event to the topic's streams: some at once, the others in later turns of the loop."""
        waiting = self._waiting
        if not waiting:
            waiting.append(_Broadcast(event, topic))
            waiting[0].begin()
            self._write_slice()
        elif len(waiting) > 1 and (last := waiting[-1]).topic is topic and last.size < JOINED_BYTES:
            last.join(event)
        else:
            waiting.append(_Broadcast(event, topic))
            if len(waiting) >= MAX_WAITING:
                self._room.clear()

    def hear(self, pulse: Position) -> None:
        """Pass the pulse on when everything that came before it has been written."""
        if self._waiting:
            self._waiting[-1].pulse = pulse
        else:
            self._heard(pulse)

    def settle(self, stream: Stream) -> None:
        """Write what waits for this stream, so that something newer can follow."""
        for broadcast in self._waiting:
            if broadcast.events[0].topic in stream.topics:
                broadcast.settle(stream)

    async def room(self) -> None:
        """Return when more may be announced."""
        await self._room.wait()

    def _write_slice(self) -> None:
        ends_at = time.perf_counter() + SLICE_S
        try:
            while self._waiting and self._waiting[0].go_on(ends_at):
                self._finish(self._waiting.popleft())
                if time.perf_counter() >= ends_at:
                    break
        finally:  # also when a stream failed: the others wait for their turn
            if self._waiting:
                asyncio.get_running_loop().call_soon(self._write_slice)

    def _finish(self, broadcast: _Broadcast) -> None:
        self._room.set()
        if self._waiting:
            self._waiting[0].begin()
        for event, settled in zip(broadcast.events, broadcast.settled, strict=True):
            self._written(event, broadcast.turns + settled)
        if broadcast.pulse is not None:
            self._heard(broadcast.pulse)
