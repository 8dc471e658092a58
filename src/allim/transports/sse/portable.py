"""The portable way: the same frames and contract on any ASGI server, through sse-starlette.

Dearer than the handover (several tasks and a queue per stream), and the fallback wherever uvicorn is not ours.
"""

import asyncio
import signal
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import anyio
import uvicorn
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from allim.hub import CloseReason, Start
from allim.transports.sse import frames
from allim.transports.sse.stream import SseStream

SEND_TIMEOUT_S = 20.0  # sse-starlette waits for ever by default


@contextmanager
def draining_on_signals(drain: Callable[[], None]) -> Iterator[None]:
    """Call `drain` when a signal tells the server to stop, before the server's own handler is called.

    A server tells its application to stop by the lifespan, after the last response has ended; a stream does not end
    by itself, so each would be cut when the server's patience ends. uvicorn is left alone: `allim serve` drains by
    itself, and sse-starlette looks for uvicorn's handler.

    Nothing happens in another thread than the main one, nor for a signal that the server does not handle in Python.
    """
    loop = asyncio.get_running_loop()
    kept: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(drain)
        kept[number](number, frame)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            by_uvicorn = isinstance(getattr(handler, "__self__", None), uvicorn.Server)
            if callable(handler) and handler is not signal.default_int_handler and not by_uvicorn:
                kept[number] = handler
                signal.signal(number, handle)
    try:
        yield
    finally:
        for kept_number, kept_handler in kept.items():
            if signal.getsignal(kept_number) is handle:  # else the server, or its loop, has taken it away already
                signal.signal(kept_number, kept_handler)


class PortableStream(SseStream):
    """A stream over a queue bounded by bytes."""

    __slots__ = ("chunks", "has_room", "size", "something")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.chunks: deque[bytes] = deque()
        self.size = 0
        self.something = asyncio.Event()
        self.has_room = asyncio.Event()

    def send(self, wire: bytes) -> None:
        if self.ended:
            return
        if self.proof:
            wire = frames.with_proof(wire, self.proof)
        self.chunks.append(wire)
        self.size += len(wire)
        self.something.set()
        if self.size > self.hub.settings.stream_buffer_bytes:
            self.has_room.clear()
            if self.live:
                self.hub.bring_back(self)

    def finish(self, last: bytes | None) -> None:
        assert self.close_reason is not None
        if last is None or not self.close_reason.reconnect:  # a final reason goes out with nothing before it
            self.chunks.clear()
        if last is not None:
            self.chunks.append(last)
        self.something.set()
        self.has_room.set()
        self.hub.leave(self, self.close_reason)  # the response may take until SEND_TIMEOUT_S to notice

    async def writable(self) -> None:
        if self.size > self.hub.settings.stream_buffer_bytes:
            await self.has_room.wait()

    async def wires(self) -> AsyncIterator[bytes]:
        """Yield the bytes to send, until the stream has ended."""
        while True:
            while self.chunks:
                wire = self.chunks.popleft()
                self.size -= len(wire)
                if self.size <= self.hub.settings.stream_buffer_bytes:
                    self.has_room.set()
                yield wire
            if self.ended:
                return
            self.something.clear()
            await self.something.wait()


class PortableResponse(Response):
    """Write the stream through the ASGI server until one side ends it.

    sse-starlette notices that uvicorn shuts down, and would then end every stream in the same instant; given an event
    and a grace period it leaves that to us, and the hub spreads the endings.
    """

    def __init__(self, stream: PortableStream, start: Start) -> None:
        super().__init__()
        self.stream = stream
        self.start = start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = self.stream
        shutdown = anyio.Event()

        async def feed() -> None:
            await stream.hub.follow(stream, self.start)
            await shutdown.wait()
            stream.hub.drain()

        response = EventSourceResponse(
            stream.wires(),
            headers=frames.HEADERS,
            ping=0,  # the hub's heartbeat is a frame that pages can see
            send_timeout=SEND_TIMEOUT_S,
            data_sender_callable=feed,
            shutdown_event=shutdown,
            shutdown_grace_period=stream.hub.settings.drain_s,
        )
        try:
            await response(scope, receive, send)
        except SendTimeoutError:
            stream.close(CloseReason.SLOW_READER)
        finally:
            stream.close(CloseReason.CLIENT_LEFT)
