"""One HTTP connection: uvicorn's protocol, with limits that uvicorn lacks and the offer to hand the connection over.

Source: docs/decisions/0002-handover.md, with the changes to uvicorn and their reasons; 0015-one-client.md.
"""

import asyncio
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import httptools
from starlette.types import Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.protocols.utils import is_ssl

from allim.http.requests import WRITE_AT_ONCE, WriteAtOnce
from allim.networks import is_host
from allim.server import refusals
from allim.server.connections import Connections
from allim.server.refusals import Refusal
from allim.transports.sse.handover import CLOSE_GRACE_S, EXTENSION, HandedOver, HandoverStream

HEAD_TIMEOUT_S = 20.0  # from the connection, or the first byte of a later request, to the end of its head
MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 3 * 1024 * 1024  # above the limit of every route, which names it; for bodies that no route reads
BODY_GRACE_S, BODY_BYTES_PER_S = 20.0, 1024  # a body takes no longer than this, and a second for so many bytes,
BODY_TIMEOUT_S = 120.0  # and no longer than this in all
SEND_TIMEOUT_S = 20.0  # for a client that reads nothing of an answer; as in nginx
PIECE_BYTES = 4 * 1024  # parsed at a time: one read holds up to 256 KB, which may be ten thousand requests
_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
IPV4_MAPPED = "::ffff:"  # and four numbers with dots: how a kernel writes an IPv4 client of an IPv6 socket
_NO_PROTOCOL = frozenset({b"connection", b"upgrade", b"http2-settings"})

AnswerFast = Callable[[Any, bytes, WriteAtOnce, Callable[[], None], Any], bool]
"""Answers a request that came whole, now or later, without an ASGI task; False when it is for the application.

Shape: the scope as far as `PendingRequest` has it, the body, `HandoverProtocol.answer_at_once`, a callback that
hands the request to the application later, and the tasks that a server waits for when it stops.
"""


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


class HandoverProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which offers in the scope to hand its connection over.

    It also limits each client, as a proxy in front would: heads and bodies end in time and in size, a client reads
    its answers, and only a few requests wait for an earlier answer. uvicorn has none of these limits.

    Shape: `shared` is the same for all connections of a server. `knows` returns whether a request has a route;
    without one it is 404 or 405, also when something else is wrong. `answer_fast` is asked before a request of one of
    these methods and `paths` goes to the application, if it came whole. `held` is the request that has come and not
    gone there, `running` the one that is being answered. `unread` has come behind the requests in the pipeline, and
    is parsed when that is empty. `network` is the one this connection is counted for, "" for none.
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

    def __init__(
        self,
        *args: Any,
        shared: Connections,
        answer_fast: AnswerFast | None = None,
        paths: Collection[tuple[bytes, bytes]] = (),
        knows: Callable[[Scope], bool] = lambda _: True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.shared = shared
        self.answer_fast = answer_fast
        self.paths = paths
        self.knows = knows
        self.held: tuple[RequestResponseCycle, Any] | PendingRequest | None = None
        self.head_bytes = 0
        self.in_head = False
        self.head_timer: asyncio.TimerHandle | None = None
        self.running: RequestResponseCycle | PendingRequest | None = None
        self.answered_at = 0.0

    # The connection ---------------------------------------------------------------------------------------------

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

    # Parsing ----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        for begin in range(0, len(data), PIECE_BYTES):
            self.parse(data[begin : begin + PIECE_BYTES])
            if self.transport.get_protocol() is not self or self.transport.is_closing():
                return
            if self.pipeline:
                self.unread = data[begin + PIECE_BYTES :]
                break
        self.flow.waiting = bool(self.pipeline)
        self.start_held()
        newest: RequestResponseCycle | None = self.cycle
        if newest is not None and newest.more_body and not self.pipeline:
            self.await_body()

    def parse(self, data: bytes) -> None:
        self.head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.read_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.refuse(refusals.BAD_REQUEST)
        else:
            if self.head_bytes > MAX_HEAD_BYTES:
                self.refuse(refusals.HEAD_TOO_LARGE)
            elif self.body_bytes > self.max_body_bytes:
                self.refuse_body(refusals.BODY_TOO_LARGE)
            elif self.in_head and self.head_timer is None:  # most heads come whole, and need no timer
                self.await_head()

    def read_without_upgrade(self, rest: bytes) -> None:
        """Read a request again, as the last one of its connection, without its wish for another protocol, which no
        route here speaks. Source: RFC 9110, 7.8: a server may ignore `Upgrade`.

        Divergence: httptools takes a request with `Upgrade` for one without a body, so uvicorn goes on to read the
        body as the next request. A route that speaks WebSocket would take the connection here. May go when uvicorn
        reads such a body as a body.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.refuse(refusals.BAD_REQUEST)
            return
        lines = [b"%b %b HTTP/%b\r\n" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b\r\n" % field for field in self.headers if field[0] not in _NO_PROTOCOL]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn: later bytes are dropped
        self.parse(b"".join([*lines, b"connection: close\r\n\r\n", rest]))

    def on_message_begin(self) -> None:
        self.in_head = True
        if self.head_timer is None:
            self.head_bytes = 0
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_body(self, body: bytes) -> None:
        self.head_bytes = 0  # the trailers behind a chunked body have the same limit as a head
        self.body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # it is read again
        cycle = self.cycle
        self.body_since = 0.0
        cycle.more_body = False  # also of a request that has been answered: nothing more is waited for
        if not cycle.response_complete:
            if self.expect_100_continue:
                cycle.keep_alive = self.kept_alive
            cycle.message_event.set()

    def on_headers_complete(self) -> None:
        # Divergence: uvicorn makes a scope when a message begins, and a cycle for each; a twelfth of the cost
        # of a request that is taken. May go when it asks a server before it makes anything.
        self.head_came()
        if self.parser.should_upgrade():
            return  # it is read again
        self.body_bytes = 0
        method = self.parser.get_method()
        before: RequestResponseCycle | None = self.cycle
        if (
            (method, self.url) in self.paths
            and (before is None or before.response_complete)
            and not self.expect_100_continue
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
        ):
            self.held = self.cycle = PendingRequest(
                {
                    "type": "http",
                    "method": method.decode(),
                    "path": self.url.decode(),
                    "headers": self.headers,
                    "scheme": self.scheme,
                    "client": self.client,
                }
            )  # type: ignore[assignment]
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers  # the list that stands in the scope
        self.scope["extensions"] = self.extensions()
        super().on_headers_complete()
        if expects:
            # Answered without its body, the connection ends: a client that sends the body all the same and one that
            # does not could not be told apart.
            self.kept_alive, self.cycle.keep_alive = self.cycle.keep_alive, False

    # Requests ---------------------------------------------------------------------------------------------------

    def extensions(self) -> dict[str, Any]:
        return {EXTENSION: self.hand_over, WRITE_AT_ONCE: self.offer_answer}

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Called by uvicorn at the end of a head. The request waits until all that came with the head is read."""
        self.held = cycle, app

    def start_held(self) -> None:
        held, self.held = self.held, None
        if held is None:
            return
        self.running = held if isinstance(held, PendingRequest) else held[0]
        refusal = self.refusal_of(self.running)
        if refusal is not None:
            self.refuse(refusal)
        elif isinstance(held, PendingRequest):
            usual = partial(self.hand_on, held)
            body, answer_fast = bytes(held.body), self.answer_fast
            if held.more_body or not (
                answer_fast and answer_fast(held.scope, body, self.answer_at_once, usual, self.tasks)
            ):
                usual()
        else:
            super()._start_asgi_task(*held)

    def hand_on(self, request: PendingRequest) -> None:
        """Let the application answer a request that was held for `answer_fast`, or tell its outcome.

        Source: uvicorn's `on_headers_complete`, for a path without a query or an escaped byte.
        """
        scope: Any = request.scope
        scope |= {
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "root_path": self.root_path,
            "state": self.app_state.copy(),
            "raw_path": scope["path"].encode(),
            "query_string": b"",
            "extensions": self.extensions(),
        }
        cycle: Any = RequestResponseCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=request.keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.body, cycle.more_body, cycle.disconnected = request.body, request.more_body, request.disconnected
        if request.body or not request.more_body:
            cycle.message_event.set()
        if self.running is request:
            self.running = cycle
        if self.cycle is request:  # type: ignore[comparison-overlap]
            self.cycle = cycle
        super()._start_asgi_task(cycle, self.app)

    def on_response_complete(self) -> None:
        # Divergence: uvicorn starts its timer for an idle connection anew with every request, and bytes that belong
        # to none (an empty line, the rest of a body after its answer) stop it for ever. Here it is started once, and
        # looks.
        # And uvicorn reads on after each answer, so that requests of a client that reads nothing pile up in memory.
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.answered_at = self.loop.time()
        if self.pipeline:
            self.held = self.pipeline.pop()
            if self.pipeline:
                self.start_held()
            else:
                unread, self.unread = self.unread, b""
                self.data_received(unread)
        elif self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.close_if_idle)
        self.flow.resume_reading()

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

    def refusal_of(self, request: RequestResponseCycle | PendingRequest) -> Refusal | None:
        """Return why a request that is sound HTTP is refused all the same, or None."""
        scope: Any = request.scope
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if (len(hosts) != 1 or not is_host(hosts[0])) and (hosts or scope.get("http_version") != "1.0"):
            return refusals.BAD_HOST
        if scope["method"] in _WITHOUT_BODY and (request.body or request.more_body) and self.knows(scope):
            return refusals.NO_BODY_HERE
        return None

    def refuse_body(self, refusal: Refusal) -> None:
        """Refuse the request whose body is being read; if it has been answered already, end the connection."""
        request = self.running
        if request is not None and request is self.cycle and not request.response_started:
            self.refuse(refusal)
        else:
            self.shared.refused(refusal.name)
            self.transport.close()

    def offer_answer(self, send: Send) -> WriteAtOnce | None:
        """Return `answer_at_once` if the caller holds this connection's own `send`. A middleware that wrapped `send`
        must see every message, so it gets None.
        """
        running = self.running
        return self.answer_at_once if isinstance(running, RequestResponseCycle) and send == running.send else None

    def answer_at_once(self, status: int, lines: bytes, body: bytes) -> bool:
        """Write a complete answer in one write, which costs half of uvicorn's two. Returns False, having written
        nothing, if uvicorn's own way must send it, which knows every other case.

        Shape: `lines` are its fields, known to be sound, without the length of the body.
        """
        request = self.running
        if (
            request is None
            or request.response_started
            or self.flow.write_paused
            or not request.keep_alive
            or self.access_log
            or request.scope["method"] == "HEAD"
        ):
            return False
        request.response_started = request.response_complete = True
        request.waiting_for_100_continue = False
        first = [b"%b: %b\r\n" % field for field in self.server_state.default_headers]
        length = b"content-length: %d\r\n" % len(body)
        self.transport.write(b"".join([STATUS_LINE[status], *first, length, lines, b"\r\n", body]))
        request.message_event.set()
        self.on_response_complete()
        return True

    def hand_over(self, stream: HandoverStream, head: bytes) -> bool:
        """Give the connection to the stream, which begins with this response head; False when the client has gone."""
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return False
        if self.pipeline:  # a second request waits behind the stream for ever
            self.transport.abort()
            return False
        transport = self.transport
        self.flow.resume_reading()
        transport.set_protocol(stream)
        # Non-None, or the old protocol would close the transport.
        self.connection_lost(HandedOver())
        stream.attach(transport, self.connections, head)
        return True
