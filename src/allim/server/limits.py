"""A connection with limits for its client, as a proxy in front would have them. uvicorn has none of these.

Heads and bodies end in time, a client reads its answers, and an idle connection ends. Source:
docs/decisions/0015-one-client.md, and 0002-handover.md for the changes to uvicorn.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import is_ssl

from allim.server import refusals
from allim.server.connections import Connections
from allim.server.refusals import Refusal
from allim.transports.sse.handover import CLOSE_GRACE_S, HandedOver

HEAD_TIMEOUT_S = 20.0  # from the connection, or the first byte of a later request, to the end of its head
MAX_BODY_BYTES = 3 * 1024 * 1024  # above the limit of every route, which names it; for bodies that no route reads
BODY_GRACE_S, BODY_BYTES_PER_S = 20.0, 1024  # a body takes no longer than this, and a second for so many bytes,
BODY_TIMEOUT_S = 120.0  # and no longer than this in all
SEND_TIMEOUT_S = 20.0  # for a client that reads nothing of an answer; as in nginx
IPV4_MAPPED = "::ffff:"  # and four numbers with dots: how a kernel writes an IPv4 client of an IPv6 socket


def address_of(transport: asyncio.Transport, end: str) -> tuple[str, Any] | None:
    """Return an address as a scope holds it: host and port, or the path of a Unix socket, which its client has not.

    A socket that listens on `::` sees IPv4 clients as `::ffff:192.0.2.1`. The scope gets `192.0.2.1`: limits, trusted
    proxies and logs go by it.

    Shape: `end` is `peername` or `sockname`.
    """
    address = transport.get_extra_info(end)
    if isinstance(address, tuple):
        host = str(address[0])
        is_ipv4 = host.startswith(IPV4_MAPPED) and "." in host
        return (host.removeprefix(IPV4_MAPPED) if is_ipv4 else host, int(address[1]))
    return (address, None) if address and isinstance(address, str) else None


class PendingRequest:
    """A request that may be taken, in the place of the cycle that uvicorn would make for it, until one is needed.

    Shape: the attributes of a cycle that uvicorn and this protocol use. `scope` has the keys that cost nothing.
    """

    __slots__ = (
        "body",
        "disconnected",
        "keep_alive",
        "more_body",
        "response_complete",
        "response_started",
        "scope",
        "waiting_for_100_continue",
    )
    message_event = asyncio.Event()  # no task waits for it

    def __init__(self, scope: dict[str, Any]) -> None:
        self.scope = scope
        self.body = bytearray()
        self.more_body = self.keep_alive = True
        self.disconnected = self.response_started = self.response_complete = False
        self.waiting_for_100_continue = False


class Reading(FlowControl):
    """uvicorn's flow control, except that nothing is read while requests wait for an earlier answer."""

    waiting = False

    def resume_reading(self) -> None:
        if not self.waiting:
            super().resume_reading()


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with limits for each client.

    Shape: `shared` is the same for all connections of a server. `running` is the request that is being answered,
    `held` one that has come and waits. `unread` has come behind the requests in the pipeline, and is parsed when that
    is empty. `network` is the one this connection is counted for, "" for none.
    """

    flow: Reading
    max_body_bytes, body_timeout_s = MAX_BODY_BYTES, BODY_TIMEOUT_S
    unread = b""
    network = ""
    body_bytes = 0
    body_since = 0.0  # from when on the rest of a body has been waited for; 0 while none is
    unsent = 0  # bytes that waited to be sent when they last became fewer
    unsent_since = 0.0
    kept_alive = True

    held: tuple[RequestResponseCycle, Any] | PendingRequest | None = None
    running: RequestResponseCycle | PendingRequest | None = None
    head_bytes = 0
    in_head = False
    head_timer: asyncio.TimerHandle | None = None
    answered_at = 0.0

    def __init__(self, *args: Any, shared: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shared = shared

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # Divergence: for the two addresses, which the transport knows, uvicorn makes a socket object and seven system
        # calls, a fiftieth of a stream's opening. May go when it asks the transport.
        self.connections.add(self)
        self.transport = transport
        self.flow = Reading(transport)
        self.client, self.server = address_of(transport, "peername"), address_of(transport, "sockname")
        self.scheme = "https" if is_ssl(transport) else "http"
        if self.client is not None:
            network = self.shared.enter(self.client[0])
            if network is None:
                self.shared.refused(refusals.TOO_MANY_CONNECTIONS.name)
                transport.write(refusals.TOO_MANY_CONNECTIONS.answer)
                transport.close()  # at once, or the refused connections would be held instead
                return
            self.network = network
        self.await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.head_came()
        if self.network:
            self.shared.leave(self.network)
            self.network = ""
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        super().connection_lost(exc)
        if self.running is not None:
            # Divergence: of pipelined requests uvicorn tells the last alone, so the one it works on would go on for
            # ever, or write to a connection that has ended.
            self.running.disconnected = True
            self.running.message_event.set()
        # They lead back here, through the extensions and the callbacks: without them a connection is freed at once,
        # and not collected.
        self.scope = self.cycle = self.running = self.held = None  # type: ignore[assignment]
        self.pipeline.clear()
        self.unread = b""

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unsent, self.unsent_since = self.transport.get_write_buffer_size(), self.loop.time()
        self.shared.watch(self)

    def check_progress(self, now: float) -> bool:
        """End the connection if its body comes too slowly, or if its client does not read the answer.
        Returns whether a body or an answer is still under way.
        """
        if self.transport.get_protocol() is not self or self.transport.is_closing():
            return False
        if self.flow.write_paused:
            unsent = self.transport.get_write_buffer_size()
            if unsent < self.unsent:
                self.unsent, self.unsent_since = unsent, now
            elif now - self.unsent_since > SEND_TIMEOUT_S:
                self.shared.refused("slow_reader")
                self.transport.abort()
                return False
        if not self.body_since:
            return self.flow.write_paused
        if self.flow.read_paused:
            self.body_since = now  # the application has not read the last bytes: the client cannot go on
        elif now - self.body_since > min(BODY_GRACE_S + self.body_bytes / BODY_BYTES_PER_S, self.body_timeout_s):
            self.refuse_body(refusals.SLOW_BODY)
            return False
        return True

    def close_if_idle(self) -> None:
        if self.transport.get_protocol() is not self:
            return
        busy = self.in_head or (self.running is not None and not self.running.response_complete)
        idle_s = 0.0 if busy else self.loop.time() - self.answered_at
        if idle_s < self.timeout_keep_alive:
            left_s = self.timeout_keep_alive - idle_s
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self.close_if_idle)
        else:
            self.transport.close()

    def _unset_keepalive_if_required(self) -> None:
        """Called by uvicorn with every request; `close_if_idle` looks by itself."""

    def await_head(self) -> None:
        self.head_timer = asyncio.get_running_loop().call_later(HEAD_TIMEOUT_S, self.end_if_head_is_late)

    def end_if_head_is_late(self) -> None:
        if self.flow.read_paused:
            self.await_head()  # the rest of it may have come, and is not read before earlier requests are answered
            return
        if self.in_head:
            self.shared.refused("slow_head")
        self.transport.abort()

    def await_body(self) -> None:
        if not self.body_since:  # most bodies come whole, and are not watched
            self.body_since = self.loop.time()
            self.shared.watch(self)

    def head_came(self) -> None:
        self.in_head = False
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for bytes that are no HTTP."""
        self.refuse(refusals.BAD_REQUEST)

    def refuse(self, refusal: Refusal) -> None:
        """Answer, and read on: closing over unread bytes would reset the connection, and nginx would take the replica
        for broken instead of passing the answer on."""
        transport = self.transport
        self.shared.refused(refusal.name)
        self.flow.waiting = False
        self.flow.resume_reading()
        self.connection_lost(HandedOver())
        transport.set_protocol(asyncio.Protocol())  # drops all that comes
        transport.write(refusal.answer)
        transport.write_eof()
        asyncio.get_running_loop().call_later(CLOSE_GRACE_S, transport.abort)

    def refuse_body(self, refusal: Refusal) -> None:
        """Refuse the request whose body is being read; if it has been answered already, end the connection."""
        request = self.running
        if request is not None and request is self.cycle and not request.response_started:
            self.refuse(refusal)
        else:
            self.shared.refused(refusal.name)
            self.transport.close()
