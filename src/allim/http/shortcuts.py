"""The fast path: answers a plain request that arrived whole without an ASGI task and without middleware.

A shortcut checks a request with the functions of its handler, in their order, and starts its work. It answers only
successful requests itself. If anything is wrong before the work has started, the regular path handles the request
from the beginning; an error after that is passed to the regular path as `Judged`. So each refusal, and each
middleware's work on it, is in one place. Source: docs/decisions/0012-shortcuts.md.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

from starlette.responses import Response
from starlette.types import Scope

from allim.errors import Unavailable
from allim.http.requests import STARTED_AT, WriteAtOnce, name_for, standing, tell
from allim.telemetry import request_id

OUTCOME = "allim.outcome"

_PLAIN = frozenset(
    {
        *(b"accept", b"accept-encoding", b"accept-language", b"authorization", b"connection", b"content-length"),
        *(b"content-type", b"host", b"idempotency-key", b"traceparent", b"tracestate", b"user-agent"),
        *(b"x-forwarded-for", b"x-forwarded-proto", b"x-real-ip", b"x-request-id"),
    }
)
"""Headers that no middleware uses, or that shortcuts handle as well. A request with any other takes the regular
path.
"""

_FROM_PROXIES = frozenset({b"x-forwarded-for", b"x-forwarded-proto"})

Fields = Mapping[bytes, bytes]


class Success(NamedTuple):
    """A complete answer to a successful request. Shape: `headers` are its own headers beside the content type."""

    status: int
    media_type: str
    body: bytes
    headers: Mapping[str, str]


class Pending(NamedTuple):
    """The work that a shortcut has started.

    Shape: `answer` makes the answer from the result of `done`, or an outcome for the regular path; it raises the
    errors that the handler would raise.
    """

    done: "asyncio.Future[Any]"
    answer: "Callable[[Any], Success | Judged]"


_Request = tuple[Scope, Fields, float, WriteAtOnce, Callable[[], None], "set[asyncio.Future[Any]]"]
"""A request on the fast path: scope, headers, start time, writer, regular path, and the futures under way."""

Shortcut = Callable[[Fields, bytes], Pending | None]
"""Starts the work of a request, given its headers and body. Returns None, or raises, if the regular path is
needed.
"""


class Judged(NamedTuple):
    """The outcome of a request that the regular path has to answer. Shape: `headers` go into the answer."""

    answer: Success | Exception
    headers: Mapping[str, str]
    traceback: TracebackType | None = None

    def response(self) -> Response:
        """Return the answer. Raises: the answer, if it is an error."""
        if isinstance(self.answer, Exception):
            try:
                raise self.answer.with_traceback(self.traceback)  # the error may be that of many requests
            finally:
                del self  # the traceback holds this frame: without this, each refusal would make a reference cycle
        return Response(self.answer.body, self.answer.status, media_type=self.answer.media_type)


class Shortcuts:
    """Answers requests before the application is called.

    Shape: `shortcuts` by method and path; `paths` has the same as raw bytes; `headers` go into every answer;
    `look_through` sets the client's address in a scope from a proxy's headers; while the replica is `leaving`, every
    request takes the regular path.
    """

    def __init__(
        self,
        shortcuts: Mapping[tuple[str, str], Shortcut],
        headers: Mapping[str, str],
        leaving: Callable[[], bool],
        look_through: Callable[[Scope], None],
    ) -> None:
        self._shortcuts = shortcuts
        self.paths = frozenset([(method.encode(), path.encode()) for method, path in shortcuts])
        self._lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        self._leaving = leaving
        self._look_through = look_through

    def take(
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
        shortcut = self._shortcuts.get((scope["method"], scope["path"]))
        if shortcut is None or self._leaving():
            return False
        fields = dict(scope["headers"])
        if len(fields) < len(scope["headers"]) or not fields.keys() <= _PLAIN:
            return False
        started_at = time.perf_counter()
        try:
            pending = shortcut(fields, body)
        except Exception:  # noqa: BLE001 - the regular path raises it again
            return False
        if pending is None:
            return False
        under_way.add(pending.done)
        request = (scope, fields, started_at, write_at_once, usual, under_way)
        pending.done.add_done_callback(partial(self._answer, request, pending))
        return True

    def _answer(self, request: _Request, pending: Pending, done: "asyncio.Future[Any]") -> None:
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
        scope[OUTCOME], scope[STARTED_AT] = made, started_at
        usual()

    def _written(self, request: _Request, answer: Success) -> bool:
        scope, fields, started_at, write_at_once, *_ = request
        if not _FROM_PROXIES.isdisjoint(fields):
            self._look_through(scope)
        name = name_for(fields.get(b"x-request-id", b"").decode("latin-1"))
        said = "".join([f"{name}: {value}\r\n" for name, value in answer.headers.items()])
        lines = f"content-type: {answer.media_type}\r\nx-request-id: {name}\r\n{self._lines}{said}".encode()
        if self._leaving() or not write_at_once(answer.status, lines + standing(scope).lines, answer.body):
            return False
        request_id.set(name)  # for this call alone: the loop runs each callback in a context of its own
        tell(scope, answer.status, started_at)
        return True
