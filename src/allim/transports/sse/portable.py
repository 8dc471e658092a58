"""The portable way: the same frames and contract on any ASGI server, through sse-starlette.

Dearer than the handover (several tasks and a queue per stream), and the fallback wherever uvicorn is not ours.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import anyio
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from allim.hub import CloseReason
from allim.hub.catch_up import Start
from allim.transports.sse import frames
from allim.transports.sse.stream import Proven, SseStream

SEND_TIMEOUT_S = 20.0  # sse-starlette waits for ever by default


class PortableStream(SseStream):
    """A stream over a queue bounded by bytes."""

    __slots__ = ("chunks", "room", "size", "something")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.chunks: deque[bytes] = deque()
        self.size = 0
        self.something = asyncio.Event()
        self.room = asyncio.Event()

    def write(self, wire: bytes) -> None:
        if self.ended:
            return
        self.chunks.append(wire)
        self.size += len(wire)
        self.something.set()
        if self.size > self.hub.settings.stream_buffer_bytes:
            self.room.clear()
            if self.live:
                self.hub.bring_back(self)

    def finish(self, *, flush: bool) -> None:
        assert self.close_reason is not None
        last = [self.chunks[-1]] if flush and self.chunks else []
        if not flush or not self.close_reason.reconnect:  # who may not read on gets the reason and nothing before it
            self.chunks = deque(last)
        self.something.set()
        self.room.set()
        self.hub.leave(self, self.close_reason)  # the response may take until SEND_TIMEOUT_S to notice

    async def drained(self) -> None:
        if self.size > self.hub.settings.stream_buffer_bytes:
            await self.room.wait()

    async def wires(self) -> AsyncIterator[bytes]:
        """What is to be sent, until the stream has ended."""
        while True:
            while self.chunks:
                wire = self.chunks.popleft()
                self.size -= len(wire)
                if self.size <= self.hub.settings.stream_buffer_bytes:
                    self.room.set()
                yield wire
            if self.ended:
                return
            self.something.clear()
            await self.something.wait()


class ProvenPortableStream(Proven, PortableStream):
    """A portable stream that a ticket opened."""

    __slots__ = ("proof",)


class PortableResponse(Response):
    """Write the stream through the ASGI server until one side ends it.

    sse-starlette notices that uvicorn shuts down, and would then end every stream in the same instant; given an event
    and a grace period it leaves that to us, and the hub spreads the endings.
    """

    def __init__(self, stream: PortableStream, begin: Start) -> None:
        super().__init__()
        self.stream = stream
        self.begin = begin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = self.stream
        shutdown = anyio.Event()

        async def feed() -> None:
            await stream.hub.follow(stream, self.begin)
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
