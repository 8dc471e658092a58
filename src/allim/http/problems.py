"""Converts errors to responses, all in this one place.

Every error response is `application/problem+json`.
Source: RFC 9457.
"""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, cast

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, ExceptionHandler, Message, Receive, Scope, Send

from allim.errors import (
    AllimError,
    BadRequest,
    Conflict,
    FieldError,
    Forbidden,
    Invalid,
    NotFound,
    TooLarge,
    TooMany,
    Unauthenticated,
    Unavailable,
)
from allim.exchange import exchange_of

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"


class UnsupportedMediaType(AllimError):
    """The body has a media type that this route does not read."""

    code = "unsupported_media_type"


class _Kind(NamedTuple):
    status: int
    title: str


_KINDS: dict[type[AllimError], _Kind] = {
    BadRequest: _Kind(400, "Bad request"),
    Unauthenticated: _Kind(401, "Unauthenticated"),
    Forbidden: _Kind(403, "Forbidden"),
    NotFound: _Kind(404, "Not found"),
    Conflict: _Kind(409, "Conflict"),
    TooLarge: _Kind(413, "Content too large"),
    UnsupportedMediaType: _Kind(415, "Unsupported media type"),
    Invalid: _Kind(422, "Invalid request"),
    TooMany: _Kind(429, "Too many requests"),
    Unavailable: _Kind(503, "Unavailable"),
}
_UNEXPECTED = _Kind(500, "Internal error")

KNOWN = tuple(_KINDS)
"""The errors with a status of their own."""


def status_of(error: type[AllimError]) -> int:
    """Return the HTTP status of an error."""
    return _kind(error).status


def problem(connection: HTTPConnection, error: AllimError) -> Response:
    """Return the response for one of allim's errors."""
    kind = _kind(type(error))
    return _answer(
        connection, kind, error.code, error.detail, error.retryable, error.fields, headers=_headers_of(error)
    )


class UnexpectedErrors:
    """ASGI middleware: logs an unexpected error in full and answers 500 without its details.

    It is directly inside the middleware that gives request IDs, so it also answers allim's own errors that other
    middleware raises. Starlette's handler for 500 is not used, because it raises the error again and the server logs
    it a second time.

    Shape: `note` is called with each of allim's own errors that is answered here.
    """

    def __init__(self, app: ASGIApp, note: Callable[[AllimError], None] = lambda _: None) -> None:
        self.app = app
        self.note = note

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            return await self.app(scope, receive, note_start)
        except ClientDisconnect:
            return None  # the client has gone
        except Exception as error:
            if isinstance(error, AllimError) and not started:
                self.note(error)
                response = problem(HTTPConnection(scope), error)
            else:
                log.exception("unexpected error", method=scope["method"], path=scope["path"])
                if started:
                    raise  # part of the response was sent; only closing the connection can tell the client
                response = _answer(
                    HTTPConnection(scope),
                    _UNEXPECTED,
                    AllimError.code,
                    "An internal error occurred. It was logged.",
                )
        return await response(scope, receive, send)


def _kind(error: type[AllimError]) -> _Kind:
    return next((_KINDS[cls] for cls in error.__mro__ if cls in _KINDS), _UNEXPECTED)


def _on_error(request: Request, error: Exception) -> Response:
    return problem(request, cast("AllimError", error))


def _on_http_exception(request: Request, error: Exception) -> Response:
    """Convert Starlette's refusals of unknown paths and methods. Its headers, such as `Allow`, are kept."""
    error = cast("HTTPException", error)
    phrase = HTTPStatus(error.status_code).phrase
    kind = _Kind(error.status_code, phrase.capitalize())
    detail = _DETAILS.get(error.status_code, error.detail)
    return _answer(request, kind, phrase.lower().replace(" ", "_"), detail, headers=error.headers)


_DETAILS = {404: "There is nothing at this path.", 405: "This path does not know this method."}

handlers: dict[Any, ExceptionHandler] = {
    AllimError: cast("ExceptionHandler", _on_error),
    HTTPException: cast("ExceptionHandler", _on_http_exception),
}
"""For `Starlette(exception_handlers=…)`."""


def _answer(
    connection: HTTPConnection,
    kind: _Kind,
    code: str,
    detail: str,
    retryable: bool = False,
    fields: Sequence[FieldError] = (),
    headers: Any = None,
) -> Response:
    content: dict[str, object] = {
        "type": f"urn:allim:problem:{code}",
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "code": code,
        "retryable": retryable,
    }
    if fields:
        content["errors"] = [field._asdict() for field in fields]
    request_id = exchange_of(connection.scope).request_id
    if request_id is not None:
        content["request_id"] = request_id
    return JSONResponse(content, kind.status, headers, media_type=MEDIA_TYPE)


def _headers_of(error: AllimError) -> dict[str, str]:
    if isinstance(error, Unauthenticated):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, TooMany | Unavailable):
        return {"Retry-After": str(error.retry_after_s)}
    return {}
