"""What every request gets, as pure ASGI middleware: an ID, a line in the access log, the headers of every answer.

Streams pass through untouched. The query string is never logged: it may hold a last event ID or a ticket.
"""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence

import structlog
from starlette._utils import get_route_path
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from allim.errors import NotFound
from allim.http.fields import fields_of
from allim.http.problems import problem

log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._~-]{1,64}\Z", re.ASCII)
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
ANSWER = "allim.answer"  # the server's offer to write an answer as one
_COUNTED = frozenset({"/api/publish"})  # answered well they are counted; a line each would cost as much as they do

# nginx gives the same to the answers it makes itself: nginx/nginx.conf.template.
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",  # data; a page brings its own policy
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",  # not asked in CORS mode, where origins are checked by name
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",  # for browsers that do not know `frame-ancestors`
}
_TRANSPORT_SECURITY = {"strict-transport-security": "max-age=31536000"}  # a year; subdomains are not ours to bind

RawField = tuple[bytes, bytes]
_RAW: Mapping[tuple[str, str], RawField] = {
    (name, value): (name.encode(), value.encode()) for name, value in (SECURITY_HEADERS | _TRANSPORT_SECURITY).items()
}


class Requests:
    """Gives every request an ID, puts it into the answer and every log line, and logs how the request ended.

    While the replica is `leaving`, an answer ends its connection: a proxy keeps none that is about to be closed.

    A proxy's `X-Request-ID` is kept when it is one; anything else gets a new one. A request whose connection is
    handed over starts no response here: the hub logs when its stream opens and closes.

    Shape: `scope["state"]["answer_headers"]` is a dict of lower-case names. What anybody inside puts there goes into
    whatever answer follows, unless that answer says it itself (`vary` is added to); who writes a response head past
    this middleware takes them along. The security headers and the request's ID are in it from the start.
    """

    def __init__(self, app: ASGIApp, leaving: Callable[[], bool] = lambda: False) -> None:
        self.app = app
        self.leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = fields_of(scope).get("x-request-id", "")
        request_id = asked if _REQUEST_ID.match(asked) else os.urandom(8).hex()
        answer_headers = _first_headers(scope, request_id)
        scope.setdefault("state", {}).update(request_id=request_id, answer_headers=answer_headers)
        started_at = time.perf_counter()
        status: int | None = None

        answer_at_once = scope.get("extensions", {}).get(ANSWER)
        held: Message | None = None  # the start of an answer whose body follows at once

        async def send_with_headers(message: Message) -> None:
            nonlocal status, held
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _joined(message["headers"], answer_headers)
                if self.leaving():
                    MutableHeaders(scope=message)["connection"] = "close"
                elif answer_at_once is not None and message["headers"][0][0] == b"content-length":
                    held = message
                    return
            elif held is not None:
                start, held = held, None
                body = message.get("body", b"")
                if not message.get("more_body") and answer_at_once(start["status"], start["headers"], body):
                    return
                await send(start)
            await send(message)

        # A route's pattern ends with `$`, behind which a line end may still stand: `/metrics%0a` would be `/metrics`,
        # which nginx guards under that name alone.
        sound = scope["path"].isprintable()
        app = self.app if sound else problem(HTTPConnection(scope), NotFound("There is nothing at this path."))
        bound = structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await app(scope, receive, send_with_headers)
        finally:
            if status is not None:
                _tell(scope, status, started_at)
            structlog.contextvars.reset_contextvars(**bound)


def _tell(scope: Scope, status: int, started_at: float) -> None:
    path = get_route_path(scope)
    if path in _QUIET:
        return
    tell = log.debug if status < 300 and path in _COUNTED else log.info
    client = scope.get("client")
    tell(
        "request",
        method=scope["method"],
        path=scope["path"],
        status=status,
        duration_ms=round((time.perf_counter() - started_at) * 1000, 2),
        client=client[0] if client else None,
    )


def _first_headers(scope: Scope, request_id: str) -> dict[str, str]:
    transport = _TRANSPORT_SECURITY if scope["scheme"] == "https" else {}  # over http, browsers must ignore it
    return {"x-request-id": request_id, **SECURITY_HEADERS, **transport}


def _joined(said: Sequence[RawField], wanted: Mapping[str, str]) -> list[RawField]:
    """What an answer says itself, and what is wanted besides."""
    names = {name for name, _ in said}
    joined = list(said)
    for name, value in wanted.items():
        field = _RAW.get((name, value)) or (name.encode("latin-1"), value.encode("latin-1"))
        if field[0] not in names:
            joined.append(field)
        elif name == "vary":
            MutableHeaders(raw=joined).add_vary_header(value)
    return joined
