"""What every request gets, as pure ASGI middleware: an ID, a line in the access log, the headers of every answer.

Streams pass through untouched. The query string is never logged: it may hold a last event ID or a ticket.
"""

import logging
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import structlog
from starlette._utils import get_route_path
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from allim.errors import AllimError, BadRequest, NotFound
from allim.http.fields import Fields, fields_of
from allim.http.problems import problem
from allim.telemetry import request_id

log = structlog.get_logger(__name__)
_root = logging.getLogger()

_REQUEST_ID = re.compile(r"[A-Za-z0-9._~-]{1,64}\Z", re.ASCII)
STARTED_AT = "allim.started_at"  # in the scope, where a request was looked at before it came here
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
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

WriteAtOnce = Callable[[int, bytes, bytes], bool]
"""Writes an answer that is all there as one: status, fields as `sound_lines`, body. False, with nothing written, when
it must be sent in the usual way."""

_FRAMING = (b"connection: ", b"content-length: ", b"transfer-encoding: ")
_CONTROL = bytes(code for code in (*range(32), 127) if code != ord("\t"))


class Standing:
    """Headers that are the same in every answer.

    Shape: `lines` are they as they are sent.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = MappingProxyType(headers)
        self.names = frozenset(name.encode() for name in headers)
        self.lines = b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())


_PLAIN = Standing(SECURITY_HEADERS)
_SECURE = Standing({**SECURITY_HEADERS, "strict-transport-security": "max-age=31536000"})
"""A year; subdomains are not ours to bind. Over http, browsers must ignore it."""


class Requests:
    """Gives every request an ID, puts it into the answer and every log line, and logs how the request ended.

    While the replica is `leaving`, an answer ends its connection: a proxy keeps none that is about to be closed.

    A proxy's `X-Request-ID` is kept when it is one; anything else gets a new one. A request whose connection is
    handed over starts no response here: the hub logs when its stream opens and closes.

    Shape: `scope["state"]["answer_headers"]` is a dict of lower-case names. What anybody inside puts there goes into
    whatever answer follows, unless that answer says it itself (`vary` is added to). The request's ID is in it from
    the start. Who writes a response head past this middleware takes it along, and the lines of `standing` beside it:
    headers that are the same in every answer, and which nobody wishes for. `answer_at_once` writes a response that is
    all there; False, with nothing written, when it must be sent in the usual way. `offer` is the name in the scope's
    extensions under which a server offers that: to who gives it its own `send`, it gives a `WriteAtOnce`.
    """

    def __init__(self, app: ASGIApp, offer: str = "", leaving: Callable[[], bool] = lambda: False) -> None:
        self.app = app
        self.offer = offer
        self.leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        fields = fields_of(scope)
        name = name_for(fields.get("x-request-id"))
        wishes = {"x-request-id": name}
        same = standing(scope)
        started_at = scope.get(STARTED_AT) or time.perf_counter()
        status: int | None = None
        offered = scope.get("extensions", {}).get(self.offer)
        write_at_once: WriteAtOnce | None = offered(send) if offered else None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _joined(message["headers"], same.headers | wishes)
                if self.leaving():
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        def answer_at_once(response: Response) -> bool:
            nonlocal status
            if write_at_once is None or self.leaving():
                return False
            fields = _joined(response.raw_headers, wishes)
            if not same.names.isdisjoint([name for name, _ in fields]):
                return False
            body = bytes(response.body)
            lines = sound_lines(fields, body)
            if lines is None or not write_at_once(response.status_code, lines + same.lines, body):
                return False
            status = response.status_code
            return True

        scope.setdefault("state", {}).update(
            request_id=name,
            answer_headers=wishes,
            standing=same,
            answer_at_once=answer_at_once,
        )
        refusal = _refusal(scope, fields)
        app = self.app if refusal is None else problem(HTTPConnection(scope), refusal)
        named = request_id.set(name)
        try:
            await app(scope, receive, send_with_headers)
        finally:
            if status is not None:
                tell(scope, status, started_at)
            request_id.reset(named)


def _refusal(scope: Scope, fields: Fields) -> AllimError | None:
    """Return why no route handles this request, or None."""
    if not fields.one_host():
        return BadRequest("Host: must be one host, with or without a port, of at most 255 characters.")
    # A route's pattern ends with `$`, behind which a line end may still stand: `/metrics%0a` would be `/metrics`,
    # which nginx guards under that name alone.
    return None if scope["path"].isprintable() else NotFound("There is nothing at this path.")


def name_for(asked: str | None) -> str:
    """A request's ID: what a proxy asked for, when it is one, or a new one."""
    return asked if asked and _REQUEST_ID.match(asked) else f"{random.getrandbits(64):016x}"


def tell(scope: Scope, status: int, started_at: float) -> None:
    """Log how a request ended, unless it is counted instead. Units: `started_at` by `time.perf_counter`."""
    path = get_route_path(scope)
    if path in _QUIET:
        return
    counted = status < 300 and path in _COUNTED
    if counted and not _root.isEnabledFor(logging.DEBUG):
        return  # a question that costs less than a line that is not written
    write = log.debug if counted else log.info
    client = scope.get("client")
    write(
        "request",
        method=scope["method"],
        path=scope["path"],
        status=status,
        duration_ms=round((time.perf_counter() - started_at) * 1000, 2),
        client=client[0] if client else None,
    )


def standing(scope: Scope) -> Standing:
    """The headers that every answer to this request has."""
    return _SECURE if scope["scheme"] == "https" else _PLAIN


def sound_lines(fields: Sequence[RawField], body: bytes) -> bytes | None:
    """An answer's fields as they are sent, without the length of its body, which who writes them tells.

    None for fields that do not tell the true length, or tell more of where the answer ends, or that cannot stand in a
    line. Shape: their names are tokens in lower case.
    """
    length = (b"content-length", b"%d" % len(body))
    others = [field for field in fields if field != length]
    lines = b"".join([b"%b: %b\r\n" % field for field in others])
    framed = any(name in lines for name in _FRAMING)  # or in a value, which the usual way bears as well
    ends = len(lines) - len(lines.translate(None, _CONTROL))
    return None if len(others) == len(fields) or framed or ends > 2 * len(others) else lines


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
