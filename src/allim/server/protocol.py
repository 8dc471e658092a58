"""One HTTP connection: uvicorn's protocol, with limits that uvicorn lacks and the offer to hand the connection over.

Source: docs/decisions/0002-handover.md, with the changes to uvicorn and their reasons; 0015-one-client.md.
"""

import asyncio
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import httptools
from starlette.types import Scope, Send
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    RequestResponseCycle,
)

from allim.http.requests import WRITE_AT_ONCE, WriteAtOnce
from allim.networks import is_host
from allim.server import refusals
from allim.server.limits import LimitedProtocol, PendingRequest
from allim.server.refusals import Refusal
from allim.transports.sse.handover import EXTENSION, HandedOver, HandoverStream

MAX_HEAD_BYTES = 64 * 1024
PIECE_BYTES = 4 * 1024  # parsed at a time: one read holds up to 256 KB, which may be ten thousand requests
_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
_NO_PROTOCOL = frozenset({b"connection", b"upgrade", b"http2-settings"})

AnswerFast = Callable[[Any, bytes, WriteAtOnce, Callable[[], None], Any], bool]
"""Answers a request that came whole, now or later, without an ASGI task; False when it is for the application.

Shape: the scope as far as `PendingRequest` has it, the body, `HandoverProtocol.answer_at_once`, a callback that
hands the request to the application later, and the tasks that a server waits for when it stops.
"""


class HandoverProtocol(LimitedProtocol):
    """uvicorn's HTTP protocol, which offers in the scope to hand its connection over.

    Shape: `knows` returns whether a request has a route; without one it is 404 or 405, also when something else is
    wrong. `answer_fast` is asked before a request of one of these methods and `paths` goes to the application, if it
    came whole.
    """

    def __init__(
        self,
        *args: Any,
        answer_fast: AnswerFast | None = None,
        paths: Collection[tuple[bytes, bytes]] = (),
        knows: Callable[[Scope], bool] = lambda _: True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.answer_fast = answer_fast
        self.paths = paths
        self.knows = knows

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

    def refusal_of(self, request: RequestResponseCycle | PendingRequest) -> Refusal | None:
        """Return why a request that is sound HTTP is refused all the same, or None."""
        scope: Any = request.scope
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if (len(hosts) != 1 or not is_host(hosts[0])) and (hosts or scope.get("http_version") != "1.0"):
            return refusals.BAD_HOST
        if scope["method"] in _WITHOUT_BODY and (request.body or request.more_body) and self.knows(scope):
            return refusals.NO_BODY_HERE
        return None

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
