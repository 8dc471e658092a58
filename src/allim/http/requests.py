"""What every request gets, as pure ASGI middleware: an ID, a line in the access log, the headers of every answer.

Streams pass through untouched. The query string is never logged: it may hold a last event ID or a ticket.
"""

import logging
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence

import structlog
from starlette._utils import get_route_path
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from allim.errors import NotFound
from allim.http.fields import fields_of
from allim.http.problems import problem
from allim.telemetry import request_id

log = structlog.get_logger(__name__)
_root = logging.getLogger()

_REQUEST_ID = re.compile(r"[A-Za-z0-9._~-]{1,64}\Z", re.ASCII)
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
ANSWER = "allim.answer"  # the server's offer to write an answer as one
_COUNTED = frozenset({"/api/publish"})  # answered well they are counted; a line each would cost as much as they do

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",  # data; a page brings its own policy
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",  # not asked in CORS mode, where origins are checked by name
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",  # for browsers that do not know `frame-ancestors`
}
"""nginx gives the same to the answers it makes itself: nginx/nginx.conf.template."""

RawField = tuple[bytes, bytes]


class _Standing:
    """Headers that are the same in every answer.

    Shape: `lines` are they as they are sent.
    """

    def __init__(self, headers: dict[str, str]) -> None:
        self.headers = headers
        self.names = frozenset(name.encode() for name in headers)
        self.lines = b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())


_PLAIN = _Standing(SECURITY_HEADERS)
_SECURE = _Standing({**SECURITY_HEADERS, "strict-transport-security": "max-age=31536000"})
"""A year; subdomains are not ours to bind. Over http, browsers must ignore it."""


class Requests:
    """Gives every request an ID, puts it into the answer and every log line, and logs how the request ended.

    While the replica is `leaving`, an answer ends its connection: a proxy keeps none that is about to be closed.

    A proxy's `X-Request-ID` is kept when it is one; anything else gets a new one. A request whose connection is
    handed over starts no response here: the hub logs when its stream opens and closes.

    Shape: `scope["state"]["answer_headers"]` is a dict of lower-case names. What anybody inside puts there goes into
    whatever answer follows, unless that answer says it itself (`vary` is added to). The request's ID is in it from
    the start. Who writes a response head past this middleware takes it along, and `standing_headers` beside it, which
    are the same in every answer. `answer_at_once` writes a response that is all there; False, with nothing written,
    when it must be sent in the usual way.
    """

    def __init__(self, app: ASGIApp, leaving: Callable[[], bool] = lambda: False) -> None:
        self.app = app
        self.leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = fields_of(scope).get("x-request-id")
        name = asked if asked and _REQUEST_ID.match(asked) else f"{random.getrandbits(64):016x}"
        wishes = {"x-request-id": name}
        standing = _SECURE if scope["scheme"] == "https" else _PLAIN
        started_at = time.perf_counter()
        status: int | None = None
        write_at_once = scope.get("extensions", {}).get(ANSWER)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _joined(message["headers"], standing.headers | wishes)
                if self.leaving():
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        def answer_at_once(response: Response) -> bool:
            nonlocal status
            fields = _joined(response.raw_headers, wishes)
            if (
                write_at_once is None
                or self.leaving()
                or not standing.names.isdisjoint([name for name, _ in fields])
                or not write_at_once(response.status_code, fields, standing.lines, response.body)
            ):
                return False
            status = response.status_code
            return True

        scope.setdefault("state", {}).update(
            request_id=name,
            answer_headers=wishes,
            standing_headers=standing.headers,
            answer_at_once=answer_at_once,
        )
        # A route's pattern ends with `$`, behind which a line end may still stand: `/metrics%0a` would be `/metrics`,
        # which nginx guards under that name alone.
        sound = scope["path"].isprintable()
        app = self.app if sound else problem(HTTPConnection(scope), NotFound("There is nothing at this path."))
        named = request_id.set(name)
        try:
            await app(scope, receive, send_with_headers)
        finally:
            if status is not None:
                _tell(scope, status, started_at)
            request_id.reset(named)


def _tell(scope: Scope, status: int, started_at: float) -> None:
    path = get_route_path(scope)
    if path in _QUIET:
        return
    counted = status < 300 and path in _COUNTED
    if counted and not _root.isEnabledFor(logging.DEBUG):
        return  # a question that costs less than a line that is not written
    tell = log.debug if counted else log.info
    client = scope.get("client")
    tell(
        "request",
        method=scope["method"],
        path=scope["path"],
        status=status,
        duration_ms=round((time.perf_counter() - started_at) * 1000, 2),
        client=client[0] if client else None,
    )


def _joined(said: Sequence[RawField], wishes: Mapping[str, str]) -> list[RawField]:
    """What an answer says itself, and what is wished for besides."""
    joined = list(said)
    names = [name for name, _ in said]
    for name, value in wishes.items():
        raw = name.encode("latin-1")
        if raw not in names:
            joined.append((raw, value.encode("latin-1")))
        elif name == "vary":
            MutableHeaders(raw=joined).add_vary_header(value)
    return joined
