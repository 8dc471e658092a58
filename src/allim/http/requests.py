"""ASGI middleware for every request: a request ID, a line in the access log, and the headers of every response.

Streams pass through untouched. The query string is never logged, because it may hold a last event ID or a ticket.
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

from allim.errors import AllimError, BadRequest, NotFound
from allim.exchange import Fields, FixedHeaders, exchange_of, fields_of
from allim.http.problems import problem
from allim.telemetry import request_id

log = structlog.get_logger(__name__)
_root = logging.getLogger()

_REQUEST_ID = re.compile(r"[A-Za-z0-9._~-]{1,64}\Z", re.ASCII)
WRITE_AT_ONCE = "allim.write_at_once"  # the scope extension with which a server offers it
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
_COUNTED = frozenset({"/api/publish"})  # successful ones are only counted: a log line costs as much as a publish

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",  # for data; a page sets its own policy
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",  # browsers do not apply it to CORS requests, which list origins
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",  # for browsers that do not know `frame-ancestors`
}
"""nginx sets the same headers on its own responses: nginx/nginx.conf.template."""

RawField = tuple[bytes, bytes]

WriteAtOnce = Callable[[int, bytes, bytes], bool]
"""Writes a complete response in one call: status, header lines from `sound_lines`, body. Returns False, having
written nothing, if the regular path must send it."""

_FRAMING = (b"connection: ", b"content-length: ", b"transfer-encoding: ")
_CONTROL = bytes(code for code in (*range(32), 127) if code != ord("\t"))


_PLAIN = FixedHeaders(SECURITY_HEADERS)
_SECURE = FixedHeaders({**SECURITY_HEADERS, "strict-transport-security": "max-age=31536000"})
"""For a year, without subdomains, which may belong to other services. Over http, browsers must ignore it."""


class Requests:
    """Gives every request an ID, adds it to the response and every log line, and logs the end of the request.

    While the replica is `leaving`, each response closes its connection, so that a proxy keeps no connection that is
    about to end.

    A well-formed `X-Request-ID` of a proxy is kept; otherwise a new ID is made. A request whose connection is handed
    over starts no response here: the hub logs when its stream opens and closes.

    Fills in the request's `Exchange`; its `extra_headers` hold the request ID from the start. A server provides
    `answer_at_once` in the scope extension `WRITE_AT_ONCE`: called with the connection's own `send`, it returns a
    `WriteAtOnce`.
    """

    def __init__(self, app: ASGIApp, leaving: Callable[[], bool] = lambda: False) -> None:
        self.app = app
        self.leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange, fields = exchange_of(scope), fields_of(scope)
        name = exchange.request_id = name_for(fields.get("x-request-id"))
        extra_headers = exchange.extra_headers = {"x-request-id": name}
        fixed = exchange.fixed_headers = fixed_headers(scope)
        started_at = exchange.started_at or time.perf_counter()
        status: int | None = None
        offered = scope.get("extensions", {}).get(WRITE_AT_ONCE)
        write_at_once: WriteAtOnce | None = offered(send) if offered else None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _joined(message["headers"], fixed.headers | extra_headers)
                if self.leaving():
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        def answer_at_once(response: Response) -> bool:
            nonlocal status
            if write_at_once is None or self.leaving():
                return False
            fields = _joined(response.raw_headers, extra_headers)
            if not fixed.names.isdisjoint([name for name, _ in fields]):
                return False
            body = bytes(response.body)
            lines = sound_lines(fields, body)
            if lines is None or not write_at_once(response.status_code, lines + fixed.lines, body):
                return False
            status = response.status_code
            return True

        exchange.answer_at_once = answer_at_once
        refusal = _refusal(scope, fields)
        app = self.app if refusal is None else problem(HTTPConnection(scope), refusal)
        named = request_id.set(name)
        try:
            await app(scope, receive, send_with_headers)
        finally:
            if status is not None:
                log_request(scope, status, started_at)
            request_id.reset(named)


def _refusal(scope: Scope, fields: Fields) -> AllimError | None:
    """Return why no route handles this request, or None."""
    if not fields.one_host():
        return BadRequest("Host: must be one host, with or without a port, of at most 255 characters.")
    # A route's pattern ends with `$`, which also matches before a line end: `/metrics%0a` would match `/metrics`,
    # which nginx protects under that name alone.
    return None if scope["path"].isprintable() else NotFound("There is nothing at this path.")


def name_for(asked: str | None) -> str:
    """Return the ID that a proxy asked for if it is well-formed, else a new one."""
    return asked if asked and _REQUEST_ID.match(asked) else f"{random.getrandbits(64):016x}"


def log_request(scope: Scope, status: int, started_at: float) -> None:
    """Log the end of a request, unless it is only counted. Units: `started_at` by `time.perf_counter`."""
    path = get_route_path(scope)
    if path in _QUIET:
        return
    counted = status < 300 and path in _COUNTED
    if counted and not _root.isEnabledFor(logging.DEBUG):
        return  # cheaper than making a line that the logger drops
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


def fixed_headers(scope: Scope) -> FixedHeaders:
    """Return the headers that every response to this request has."""
    return _SECURE if scope["scheme"] == "https" else _PLAIN


def sound_lines(fields: Sequence[RawField], body: bytes) -> bytes | None:
    """Return a response's header lines without the length of its body, which the writer adds.

    None if the headers do not state the true length, if others define the end of the body, or if one contains a
    control character. Shape: the names are lower-case tokens.
    """
    length = (b"content-length", b"%d" % len(body))
    others = [field for field in fields if field != length]
    lines = b"".join([b"%b: %b\r\n" % field for field in others])
    framed = any(name in lines for name in _FRAMING)  # also if it is part of a value: the regular path handles it
    ends = len(lines) - len(lines.translate(None, _CONTROL))
    return None if len(others) == len(fields) or framed or ends > 2 * len(others) else lines


def _joined(said: Sequence[RawField], extra_headers: Mapping[str, str]) -> list[RawField]:
    """Return a response's own headers together with the further ones."""
    joined = list(said)
    names = [name for name, _ in said]
    for name, value in extra_headers.items():
        raw = name.encode("latin-1")
        if raw not in names:
            joined.append((raw, value.encode("latin-1")))
        elif name == "vary":
            MutableHeaders(raw=joined).add_vary_header(value)
    return joined
