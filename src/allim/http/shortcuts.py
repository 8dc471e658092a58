"""Past ASGI: a plain request that came whole, and whose answer waits for a reply or two, needs no task and no layers.

A shortcut judges a request at once, by the functions of its handler and in their order, and begins what is asked for.
It answers only successful requests by itself. A fault that shows before anything has begun is left to the usual way,
which judges from the start; one that shows afterwards is told in the usual way, as `Judged`. So each refusal, and
each layer's work on it, stands in one place. Source: docs/decisions/0012-shortcuts.md.
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
"""Fields that no layer on the usual way goes by, or that shortcuts go by as well. Any other is for the layers."""

_FROM_PROXIES = frozenset({b"x-forwarded-for", b"x-forwarded-proto"})

Fields = Mapping[bytes, bytes]


class Success(NamedTuple):
    """A complete answer to a successful request. Shape: `headers` are those of this answer beside its media type."""

    status: int
    media_type: str
    body: bytes
    headers: Mapping[str, str]


class Pending(NamedTuple):
    """What a shortcut has begun.

    Shape: `answer` makes the answer from the result of `done`, or an outcome for the usual way to tell; it raises the
    errors that the handler would raise.
    """

    done: "asyncio.Future[Any]"
    answer: "Callable[[Any], Success | Judged]"


_Request = tuple[Scope, Fields, float, WriteAtOnce, Callable[[], None], "set[asyncio.Future[Any]]"]
"""One that was taken: scope, fields, since when, who writes the answer, the usual way, and all that is under way."""

Shortcut = Callable[[Fields, bytes], Pending | None]
"""Judges a request by its fields and body; None, or an error, when it is for the usual way."""


class Judged(NamedTuple):
    """The outcome of a judged request, for the usual way to tell. Shape: `headers` go into the answer."""

    answer: Success | Exception
    headers: Mapping[str, str]
    traceback: TracebackType | None = None

    def response(self) -> Response:
        """Raises: what the answer is, if it is an error."""
        if isinstance(self.answer, Exception):
            try:
                raise self.answer.with_traceback(self.traceback)  # the error may be that of many requests
            finally:
                del self  # the traceback holds this frame: a cycle for each refusal otherwise
        return Response(self.answer.body, self.answer.status, media_type=self.answer.media_type)


class Shortcuts:
    """Takes requests before an application is called.

    Shape: `shortcuts` by method and path, which `paths` has as they come; `headers` go into every answer;
    `look_through` puts into a scope what proxies say about the client; none is taken while the replica is `leaving`.
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
        """Answer a request, now or later; False, with nothing done, when it is for the usual way.

        Shape: `scope` has `type`, `method`, `path`, `headers`, `scheme` and `client`. `usual` sends the request the
        usual way later, to tell the outcome. What it waits for stands in `under_way`: who stops waits for it, and may
        cancel it.
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
        except Exception:  # noqa: BLE001 - it is raised again where errors become answers
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
        except Exception as error:  # noqa: BLE001 - it is raised again where errors become answers
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
        request_id.set(name)  # in a context of this call alone: the loop makes one for each callback
        tell(scope, answer.status, started_at)
        return True
