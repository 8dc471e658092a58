"""Connections between machines of a simulation, and what becomes of them.

A connection is a pair of asyncio transports, so that redis-py's connection, asyncio's streams and the handover's
streams run over it unchanged. Between the two lies a way each way: bytes travel in order, take their time, and wait
while the receiver does not read.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from tests.simulation.clock import VirtualLoop

CAPACITY = 64 * 1024  # bytes on a way and in the kernels at its ends
STEP_S = 1e-8  # between what comes one after the other
USER_TIMEOUT_S = 20.0  # after which a sender gives up whose bytes nobody acknowledges


class Way:
    """One direction of a connection.

    Shape: while it is `still`, what is sent waits, and comes at once when it goes on; what is sent while it is `lost`
    never comes, and neither does anything after it. `change` may drop, double or put off what is sent, as messages.
    Units: `delay_s` drawn for each piece between the two; `capacity` bytes.
    """

    def __init__(self, loop: VirtualLoop, rng: random.Random, delay_s: tuple[float, float], capacity: int) -> None:
        self.loop = loop
        self.rng = rng
        self.delay_s = delay_s
        self.capacity = capacity
        self.still = self.lost = False
        self.change: Callable[[bytes], list[bytes]] | None = None
        self.held: deque[bytes] = deque()
        self.under_way = 0
        self.last_at = 0.0
        self.to: Transport | None = None
        self.sender: Transport | None = None

    def room(self) -> int:
        return self.capacity - self.under_way

    def send(self, data: bytes, ready_at: float = 0.0) -> None:
        """Send what is ready then, or now."""
        self.under_way += len(data)
        if self.lost:
            return
        if self.still:
            self.held.append(data)
        else:
            self._travel(data, ready_at)

    def send_message(self, data: bytes, ready_at: float = 0.0) -> None:
        for message in self.change(data) if self.change is not None else [data]:
            self.send(message, ready_at)

    def go_on(self) -> None:
        self.still = False
        if self.held:
            together = b"".join(self.held)
            self.held.clear()
            self._travel(together)

    def _travel(self, data: bytes, ready_at: float = 0.0) -> None:
        low, high = self.delay_s
        at = max(self.loop.now, ready_at) + (low + (high - low) * self.rng.random())
        self.last_at = at = max(at, self.last_at + STEP_S)  # timers of one moment come in any order
        assert self.to is not None
        self.loop.call_at(at, self.to.arrive, data, context=self.to.context)

    def end(self, *, reset: bool) -> None:
        """The other side hears of the end, after what was sent before."""
        if self.lost or self.to is None:
            return
        if self.still:
            self.loop.call_later(0.5, self._end_later, reset)
            return
        at = max(self.loop.now + self.delay_s[0], self.last_at + STEP_S)
        self.loop.call_at(at, self.to.ended_there, reset, context=self.to.context)

    def _end_later(self, reset: bool) -> None:
        self.end(reset=reset)

    def acknowledge(self, size: int) -> None:
        self.under_way -= size
        if self.sender is not None:
            self.sender.pump()


class Transport(asyncio.Transport):
    """One end of a connection. Its buffer has limits, and its protocol is told, as with a socket's."""

    def __init__(self, loop: VirtualLoop, out: Way, into: Way, context: Context) -> None:
        super().__init__()
        self.loop = loop
        self.out = out
        self.into = into
        self.context = context
        self.protocol: Any = None
        self.buffer: deque[bytes] = deque()
        self.buffered = 0
        self.high = 64 * 1024
        self.low = 16 * 1024
        self.paused_writing = False
        self.closing = self.lost = False
        self.reading = True
        self.unread: deque[bytes] = deque()
        self.end_waits: bool | None = None  # what came after all that is unread: whether it was a reset
        self.user_timeout: asyncio.TimerHandle | None = None
        out.sender = self
        into.to = self

    # asyncio's side

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("10.0.0.1", 1) if name in ("peername", "sockname") else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self.low, self.high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = 64 * 1024 if high is None else high
        self.low = self.high // 4 if low is None else low

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closing:
            return
        data = bytes(data)
        if not data:
            return
        room = self.out.room() if not self.buffer else 0
        if room >= len(data):
            self.out.send(data)
            return
        if room > 0:
            self.out.send(data[:room])
            data = data[room:]
        self.buffer.append(data)
        self.buffered += len(data)
        if self.user_timeout is None:
            self._watch()
        if self.buffered > self.high and not self.paused_writing:
            self.paused_writing = True
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.reading = False

    def is_reading(self) -> bool:
        return self.reading

    def resume_reading(self) -> None:
        if self.reading or self.lost:
            return
        self.reading = True
        self.loop.call_soon(self._read_on, context=self.context)

    def close(self) -> None:
        if self.closing:
            return
        self.closing = True
        if not self.buffer:
            self._end(None)

    def abort(self) -> None:
        self.end_now(None)

    # the network's side

    def pump(self) -> None:
        """Send what has room now."""
        while self.buffer and (room := self.out.room()) > 0:
            data = self.buffer.popleft()
            if len(data) > room:
                self.buffer.appendleft(data[room:])
                data = data[:room]
            self.buffered -= len(data)
            self.out.send(data)
            self._watch()
        if self.paused_writing and self.buffered <= self.low and not self.lost:
            self.paused_writing = False
            self.context.copy().run(self.protocol.resume_writing)
        if self.closing and not self.buffer and not self.lost:
            self._end(None)

    def arrive(self, data: bytes) -> None:
        if self.lost:
            return
        if not self.reading or self.unread:
            self.unread.append(data)
            return
        self.into.acknowledge(len(data))
        self.protocol.data_received(data)

    def ended_there(self, reset: bool) -> None:
        """The other side closed or reset the connection."""
        if self.lost:
            return
        if self.unread and not reset:
            self.end_waits = reset
            return
        if reset:
            self.end_now(ConnectionResetError("reset by peer"))
            return
        keep_open = self.protocol.eof_received()
        if not keep_open:
            self.close()

    def end_now(self, error: Exception | None) -> None:
        """End at once; what is not sent is lost."""
        if self.lost:
            return
        self.closing = True
        self.buffer.clear()
        self.buffered = 0
        self._end(error)

    def unacknowledged(self) -> int:
        """How many bytes were written that the other side's kernel has not acknowledged."""
        return self.buffered + self.out.under_way

    def die(self) -> None:
        """The process at this end died: the other side hears a reset, this one nothing any more."""
        if not self.lost:
            self.lost = self.closing = True
            self.out.end(reset=True)

    def vanish(self) -> None:
        """Be gone, without a word to the other side or to the protocol."""
        self.lost = self.closing = True
        self.out.lost = self.into.lost = True

    def _read_on(self) -> None:
        while self.reading and self.unread and not self.lost:
            data = self.unread.popleft()
            self.into.acknowledge(len(data))
            self.protocol.data_received(data)
        if not self.unread and self.end_waits is not None and not self.lost:
            self.ended_there(self.end_waits)

    def _end(self, error: Exception | None) -> None:
        if self.lost:
            return
        self.lost = True
        if self.user_timeout is not None:
            self.user_timeout.cancel()
        self.out.end(reset=error is not None)
        self.loop.call_soon(self.protocol.connection_lost, error, context=self.context)

    def _watch(self) -> None:
        """Give up on a receiver that takes nothing for too long."""
        if self.user_timeout is not None:
            self.user_timeout.cancel()
            self.user_timeout = None
        if self.buffer:
            self.user_timeout = self.loop.call_later(
                USER_TIMEOUT_S, self.end_now, TimeoutError("nothing acknowledged"), context=self.context
            )


class Connection:
    """Both ends. Shape: `client` and `server` are the ends, `there` the way to the server and `back` the one back."""

    def __init__(
        self,
        loop: VirtualLoop,
        rng: random.Random,
        server_context: Context,
        delay_s: tuple[float, float],
        capacity: int = CAPACITY,
    ) -> None:
        self.there = Way(loop, rng, delay_s, capacity)
        self.back = Way(loop, rng, delay_s, capacity)
        self.client = Transport(loop, self.there, self.back, copy_context())
        self.server = Transport(loop, self.back, self.there, server_context)

    @property
    def over(self) -> bool:
        return self.client.lost and self.server.lost

    def begin(self, client: asyncio.BaseProtocol, server: asyncio.BaseProtocol) -> None:
        self.client.protocol, self.server.protocol = client, server
        self.server.context.copy().run(server.connection_made, self.server)
        client.connection_made(self.client)

    def cut(self) -> None:
        """Both ends hear at once that it was reset."""
        for end in (self.client, self.server):
            if not end.lost:
                end.out.lost = True
                end.end_now(ConnectionResetError("cut"))

    def hold(self) -> None:
        """Nothing comes through, and nobody is told."""
        self.there.still = self.back.still = True

    def go_on(self) -> None:
        """All that was held comes through at once."""
        self.there.go_on()
        self.back.go_on()

    def swallow(self) -> None:
        """What is sent from now on is lost, and nobody is told."""
        self.there.lost = self.back.lost = True
