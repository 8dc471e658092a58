"""Which web pages may speak to this application: its own, and those of the listed origins.

Two sides of one question. A page that is neither may change nothing, not even by a form, with cookies or without
(signing a visitor in to another account is a change). A page of a listed origin may, and may read the answers.

Source: Fetch, 3.2 (CORS) and Fetch Metadata; the order of the checks is that of Go's `http.CrossOriginProtection`.
"""

import re
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from allim.errors import Forbidden
from allim.exchange import exchange_of, fields_of
from allim.http.problems import problem

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS = ("GET", "HEAD", "POST", "DELETE")
_REQUEST_HEADERS = (
    "Allim-User",
    "Authorization",
    "Idempotency-Key",
    "Last-Event-ID",
    "X-Request-ID",
)  # besides the safe ones
_ANSWER_HEADERS = ("Location", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-ID")
_PREFLIGHT_AGE_S = 600

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""The `content-security-policy` of the page: everything from its own origin, nothing inline."""


class Origins(CORSMiddleware):
    """ASGI middleware inside `Requests`: refuses changes by pages of other origins, and lets listed origins in.

    A client that sends neither `Sec-Fetch-Site` nor `Origin` is no browser, and has no visitor's cookies.

    Shape: `listed` are origins as browsers write them, such as `https://app.example.org`, and patterns such as
    `https://*.example.org`; never `*`. `headers` are names of request headers that pages may send beside the usual.
    """

    def __init__(self, app: ASGIApp, listed: Sequence[str] = (), headers: Sequence[str] = ()) -> None:
        self.listed = listed
        super().__init__(
            app,
            allow_origins=[origin for origin in listed if "*" not in origin],
            allow_origin_regex=_wildcards(listed),
            allow_methods=_METHODS,
            allow_headers=(*_REQUEST_HEADERS, *headers),
            allow_credentials=True,
            expose_headers=_ANSWER_HEADERS,
            max_age=_PREFLIGHT_AGE_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = fields_of(scope)
        origin = headers.get("origin")
        if origin is not None and self.is_allowed_origin(origin):
            await super().__call__(scope, receive, send)
        elif scope["method"] in _SAFE_METHODS or _from_here(headers, origin):
            self._wish(scope, origin)
            await self.app(scope, receive, send)
        else:
            refusal = Forbidden("A page of another origin may not change anything here.")
            await problem(HTTPConnection(scope), refusal)(scope, receive, send)

    async def simple_response(self, scope: Scope, receive: Receive, send: Send, request_headers: Headers) -> None:
        """Diverges from Starlette's, which wraps `send`: a stream that is handed over never calls it."""
        self._wish(scope, request_headers.get("origin"))
        await self.app(scope, receive, send)

    def _wish(self, scope: Scope, origin: str | None) -> None:
        if self.listed:
            exchange_of(scope).extra_headers.update(self._answer_headers(origin))

    def _answer_headers(self, origin: str | None) -> dict[str, str]:
        if origin is None or not self.is_allowed_origin(origin):
            return headers_without_origin(self.listed)
        return {
            "vary": "Origin",
            "access-control-allow-origin": origin,
            **{name.lower(): value for name, value in self.simple_headers.items()},
        }


def _wildcards(listed: Sequence[str]) -> str | None:
    """The pattern of every origin that a `*` in the list covers. A `*` is one label, as in a certificate.

    nginx has the same rule for its own answers: the map of `$cors_origin` in nginx.conf.template.
    """
    patterns = [re.escape(origin).replace(r"\*", "[a-z0-9_-]+") for origin in listed if "*" in origin]
    return "|".join(patterns) or None


def headers_without_origin(listed: Collection[str]) -> dict[str, str]:
    """Return the headers of answers to pages that are not listed: a cache must not give these to a listed page."""
    return {"vary": "Origin"} if listed else {}


def _from_here(headers: Headers, origin: str | None) -> bool:
    """Whether our own page sends this, or no page at all.

    Without `Sec-Fetch-Site` (older browsers, plain http) hosts are compared and schemes are not, for TLS may end
    before us. `Origin: null`, of a page that hides where it comes from, is no host's.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    if origin is None:
        return True
    host = headers.get("host")
    return bool(host and origin.partition("://")[2] == host)
