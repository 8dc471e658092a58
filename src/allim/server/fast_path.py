"""The fast path: answers a plain request that arrived whole without an ASGI task and without middleware.

A fast handler (`http/fast_path.py`) checks a request and starts its work. Only successful requests are answered here.
If anything is wrong before the work has started, the regular path handles the request from the beginning; an error
after that is passed to the regular path as `Judged`. So each refusal, and each middleware's work on it, is in one
place. Source: docs/decisions/0012-fast-path.md.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from starlette.types import Scope

from allim.errors import Unavailable
from allim.exchange import exchange_of
from allim.http.fast_path import FastHandler, Judged, Pending, RawHeaders, Success
from allim.http.requests import WriteAtOnce, fixed_headers, log_request, name_for
from allim.telemetry import request_id

_KNOWN_HEADERS = frozenset(
    {
        *(b"accept", b"accept-encoding", b"accept-language", b"authorization", b"connection", b"content-length"),
        *(b"content-type", b"host", b"idempotency-key", b"traceparent", b"tracestate", b"user-agent"),
        *(b"x-forwarded-for", b"x-forwarded-proto", b"x-real-ip", b"x-request-id"),
    }
)
"""Headers that no middleware uses, or that the fast path handles as well. A request with any other takes the regular
path.
"""

_FROM_PROXIES = frozenset({b"x-forwarded-for", b"x-forwarded-proto"})

_Request = tuple[Scope, RawHeaders, float, WriteAtOnce, Callable[[], None], "set[asyncio.Future[Any]]"]
"""A request on the fast path: scope, headers, start time, writer, regular path, and the futures under way."""


class FastPath:
    """Answers requests before the application is called.

    Shape: `handlers` by method and path; `paths` has the same as raw bytes; `headers` go into every answer;
    `look_through` sets the client's address in a scope from a proxy's headers; while the replica is `leaving`, every
    request takes the regular path.
    """

    def __init__(
        self,
        handlers: Mapping[tuple[str, str], FastHandler],
        headers: Mapping[str, str],
        leaving: Callable[[], bool],
        look_through: Callable[[Scope], None],
    ) -> None:
        self._handlers = handlers
        self.paths = frozenset([(method.encode(), path.encode()) for method, path in handlers])
        self._lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        self._leaving = leaving
        self._look_through = look_through

    def answer(
        self,
        scope: Scope,
        body: bytes,
        write_at_once: WriteAtOnce,
        usual: Callable[[], None],
        under_way: "set[asyncio.Future[Any]]",
    ) -> bool:
        """Answer a request, now or later. Returns False, having done nothing, if the regular path must handle it.

        Shape: `scope` has `type`, `method`, `path`, `headers`, `scheme` and `client`. `usual` passes the request to
        the regular path later, with its outcome. The future it waits for is added to `under_way`, so that a server
        that stops can wait for it or cancel it.
        """
        handler = self._handlers.get((scope["method"], scope["path"]))
        if handler is None or self._leaving():
            return False
        fields = dict(scope["headers"])
        if len(fields) < len(scope["headers"]) or not fields.keys() <= _KNOWN_HEADERS:
            return False
        started_at = time.perf_counter()
        try:
            pending = handler(fields, body)
        except Exception:  # noqa: BLE001 - the regular path raises it again
            return False
        if pending is None:
            return False
        under_way.add(pending.done)
        request = (scope, fields, started_at, write_at_once, usual, under_way)
        pending.done.add_done_callback(partial(self._finish, request, pending))
        return True

    def _finish(self, request: _Request, pending: Pending, done: "asyncio.Future[Any]") -> None:
        scope, _, started_at, _, usual, under_way = request
        under_way.discard(done)
        made: Success | Judged
        try:
            made = pending.answer(done.result())
        except asyncio.CancelledError:
            made = Judged(Unavailable("The replica stops; the outcome of this call is not known."), {})
        except Exception as error:  # noqa: BLE001 - the regular path raises it again
            # Without this frame, which holds the error.
            trace = error.__traceback__ and error.__traceback__.tb_next
            made = Judged(error.with_traceback(trace), {}, trace)
        if isinstance(made, Success):
            if self._written(request, made):
                return
            made = Judged(made, made.headers)
        exchange = exchange_of(scope)
        exchange.outcome, exchange.started_at = made, started_at
        usual()

    def _written(self, request: _Request, answer: Success) -> bool:
        scope, fields, started_at, write_at_once, *_ = request
        if not _FROM_PROXIES.isdisjoint(fields):
            self._look_through(scope)
        name = name_for(fields.get(b"x-request-id", b"").decode("latin-1"))
        said = "".join([f"{name}: {value}\r\n" for name, value in answer.headers.items()])
        lines = f"content-type: {answer.media_type}\r\nx-request-id: {name}\r\n{self._lines}{said}".encode()
        if self._leaving() or not write_at_once(answer.status, lines + fixed_headers(scope).lines, answer.body):
            return False
        request_id.set(name)  # for this call alone: the loop runs each callback in a context of its own
        log_request(scope, answer.status, started_at)
        return True
