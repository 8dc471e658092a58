"""Handover: a stream that left the ASGI server and owns its socket.

An event stream is one-way after its first byte, so it needs neither an ASGI task nor an HTTP parser. uvicorn's own
way of handing a WebSocket over is used: the transport gets another protocol. Nothing of the request is kept.
Source: docs/decisions/0002-handover.md, with the changes to uvicorn and their reasons.
"""

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from allim.hub import CloseReason, Framing, Run, Start
from allim.transports.sse import frames
from allim.transports.sse.stream import SseStream

EXTENSION = "allim.handover"
AT_START = "allim.handover_at_start"  # offered where middleware of others sees every message: see HandoverResponse
CLOSE_GRACE_S = 5.0  # for a reader to read the last frames before the end
USER_TIMEOUT_MS = 20_000  # after which the kernel ends the connection of a reader that acknowledges nothing
READ_PATIENCE_S = 10.0  # for a reader with a full buffer that reads no byte
FINAL_GRACE_S = 0.5  # the same, after the reader's token has expired: it gets nothing a second later
FIRST_BYTES = 16 * 1024  # written together at the beginning; less than a stream's buffer
CLIENT_GONE = 499  # nginx' word for it, in our log alone


class HandedOver(Exception):
    """Tells the old protocol why it lost its connection, which lives on. Nothing failed."""


class HandoverStream(SseStream, asyncio.Protocol):
    """A stream that is its connection's protocol. No task, no queue, no timer: the buffer is the transport's.

    Shape: `head` is the unsent response head. The `framing` is `frames.chunked`, so that the reader can
    tell the end of the stream from the end of the replica; for clients that speak HTTP/1.0 it is `frames.plain`.
    """

    __slots__ = ("connections", "framing", "head", "transport", "waiter")

    transport: asyncio.Transport | None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.transport = None
        self.connections: set[Any] = set()
        self.head = b""
        self.framing: Framing = frames.chunked
        self.waiter: asyncio.Future[None] | None = None

    def attach(self, transport: asyncio.Transport, connections: set[Any], head: bytes) -> None:
        """Take the connection. Being in `connections`, the server waits for it when it shuts down. The response head
        goes out with all that is written in this turn of the loop: each packet by itself is a tenth of the opening.
        """
        self.head = head
        self.transport = transport
        asyncio.get_running_loop().call_soon(self.send_head)
        self.connections = connections
        connections.add(self)
        transport.set_write_buffer_limits(high=self.hub.settings.stream_buffer_bytes)

    # The hub's side -------------------------------------------------------------------------------------------

    def write(self, run: Run) -> None:
        if self.close_reason is None and self.transport is not None:
            if self.head or self.proof:
                self.send(run.framed(frames.plain))
            else:
                self.transport.write(run.framed(self.framing))

    def send(self, wire: bytes) -> None:
        if self.close_reason is None and self.transport is not None:
            wire = self._in_body(frames.with_proof(wire, self.proof) if self.proof else wire)
            if self.head:
                self.head += wire
                if len(self.head) >= FIRST_BYTES:
                    self.send_head()
            else:
                self.transport.write(wire)

    def _in_body(self, wire: bytes) -> bytes:
        return frames.chunk(wire) if self.framing is frames.chunked else wire

    def send_head(self) -> None:
        """Send the head, and everything that was written with it."""
        if self.head and self.transport is not None:
            first, self.head = self.head, b""
            self.transport.write(first)

    def finish(self, last: bytes | None) -> None:
        self._wake()
        transport = self.transport
        if transport is None:
            return
        if last is None:
            _reset(transport)
            return
        self.head += self._in_body(last) + (frames.LAST_CHUNK if self.framing is frames.chunked else b"")
        self.send_head()
        transport.close()
        if transport.get_write_buffer_size():
            grace_s = CLOSE_GRACE_S if self.close_reason is None or self.close_reason.reconnect else FINAL_GRACE_S
            asyncio.get_running_loop().call_later(grace_s, self._reset_if_open)

    def _reset_if_open(self) -> None:
        if self.transport is not None:
            _reset(self.transport)

    async def writable(self) -> None:
        while (waiter := self.waiter) is not None:
            before = _unread(self.transport)
            await asyncio.wait([waiter], timeout=READ_PATIENCE_S)
            if not waiter.done() and _unread(self.transport) >= before:
                self.close(CloseReason.SLOW_READER)

    # The transport's side -------------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        if self.close_reason is None:
            # The kernel gave up on a reader that acknowledged nothing for TCP_USER_TIMEOUT.
            vanished = isinstance(exc, TimeoutError)
            self.close_reason = CloseReason.CLIENT_VANISHED if vanished else CloseReason.CLIENT_LEFT
        self.connections.discard(self)
        self.transport = None
        self._wake()
        self.hub.leave(self, self.close_reason)

    def data_received(self, data: bytes) -> None:
        """A stream's client has nothing more to say; a pipelined request cannot be answered."""
        self.close(CloseReason.CLIENT_SPOKE)

    def pause_writing(self) -> None:
        """The stream's buffer is full: from here on the reader gets history, at its own pace."""
        if self.waiter is None and not self.ended:
            self.waiter = asyncio.get_running_loop().create_future()
            _end_unacknowledged(self.transport, 0)  # `writable` judges: the kernel would end a slow reader as well
            if self.live:
                self.hub.bring_back(self)

    def resume_writing(self) -> None:
        _end_unacknowledged(self.transport, USER_TIMEOUT_MS)
        self._wake()

    def shutdown(self) -> None:
        """Called by the server when it stops. The hub ends streams itself, spread over the drain window."""

    def _wake(self) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def _unread(transport: asyncio.Transport | None) -> int:
    """Return how many bytes were written and not acknowledged by the reader's kernel yet."""
    sock: socket.socket | None = transport.get_extra_info("socket") if transport else None
    if transport is None or sock is None or sock.fileno() < 0:
        return 0
    (unacknowledged,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    return transport.get_write_buffer_size() + int(unacknowledged)


def _end_unacknowledged(transport: asyncio.Transport | None, after_ms: int) -> None:
    """Let the kernel end the connection when its reader has acknowledged nothing for so long; 0 for never."""
    sock: socket.socket | None = transport.get_extra_info("socket") if transport else None
    if sock is not None and sock.fileno() >= 0 and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, after_ms)


def _reset(transport: asyncio.Transport) -> None:
    """End the connection now, and free the kernel's buffer for its reader."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0 and sock.type == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class HandoverResponse(Response):
    """Hand the connection over, then write the missed events. The ASGI task ends when the stream is live.

    Head and body are the stream's, so none are made by the base. Inside another application, whose middleware may add
    headers to responses, an ordinary response without a body is begun. The server hands the connection over in its
    place, with all of its headers.
    """

    background = None

    def __init__(
        self, stream: HandoverStream, start: Start, headers: Mapping[str, str], lines: bytes, *, chunked: bool
    ) -> None:
        self.stream = stream
        self.start = start
        self.head = frames.head(headers, lines, chunked=chunked)
        stream.framing = frames.chunked if chunked else frames.plain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream, extensions = self.stream, scope["extensions"]
        if AT_START in extensions:
            if await self._handed_over_at_start(extensions[AT_START], scope, receive, send):
                await stream.hub.follow(stream, self.start)
            return
        hand_over: Callable[[HandoverStream, bytes], bool] = extensions[EXTENSION]
        if not hand_over(stream, self.head):
            stream.hub.leave(stream, CloseReason.CLIENT_LEFT)
            # It is not sent, but uvicorn would log a missing answer as a defect.
            await Response(status_code=CLIENT_GONE)(scope, receive, send)
            return
        await stream.hub.follow(stream, self.start)

    async def _handed_over_at_start(
        self, take: "Callable[[HandoverStream], asyncio.Future[bool]]", scope: Scope, receive: Receive, send: Send
    ) -> bool:
        outcome = take(self.stream)
        try:
            await Response(headers=frames.HEADERS)(scope, receive, send)
            return await outcome
        finally:
            if not outcome.done() or outcome.cancelled() or not outcome.result():
                self.stream.hub.leave(self.stream, CloseReason.CLIENT_LEFT)
