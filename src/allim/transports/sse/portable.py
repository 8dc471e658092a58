"""The portable way: the same frames and contract on any ASGI server, through sse-starlette.

Dearer than the handover (several tasks and a queue per stream), and the fallback wherever uvicorn is not ours.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import structlog
from sse_starlette.sse import AppStatus, EventSourceResponse, SendTimeoutError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from allim.hub import CloseReason
from allim.hub.catch_up import Start
from allim.transports.sse import frames
from allim.transports.sse.stream import SseStream

log = structlog.get_logger(__name__)

SEND_TIMEOUT_S = 20.0  # sse-starlette waits for ever by default

# Its own drain ends every stream in the same instant; the hub spreads the endings (traps A5, A6).
AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]


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
                self.close(CloseReason.SLOW_READER)

    def finish(self, *, flush: bool) -> None:
        if not flush:
            self.chunks.clear()
        self.something.set()
        self.room.set()

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


class PortableResponse(Response):
    """Write the stream through the ASGI server until one side ends it."""

    def __init__(self, stream: PortableStream, begin: Start, headers: Mapping[str, str]) -> None:
        super().__init__()
        self.stream = stream
        self.begin = begin
        self.stream_headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = self.stream
        response = EventSourceResponse(
            stream.wires(),
            headers={**frames.HEADERS, **self.stream_headers},
            ping=0,  # the hub's heartbeat is a frame that pages can see
            send_timeout=SEND_TIMEOUT_S,
            data_sender_callable=partial(stream.hub.follow, stream, self.begin),
        )
        try:
            await response(scope, receive, send)
        except SendTimeoutError:
            stream.close(CloseReason.SLOW_READER)
        finally:
            reason = stream.close_reason or CloseReason.CLIENT_LEFT
            stream.close(reason)
            stream.hub.leave(stream, reason)
