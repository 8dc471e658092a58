"""Routes with declared operations. Each path has one route, so a 405 names all its methods in `Allow`.

A declaration lists an operation's parameters, answers and errors, for `openapi`. It changes nothing at run time.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal, NamedTuple, Self

from starlette._utils import get_route_path
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from allim.errors import AllimError
from allim.exchange import Fields, exchange_of, fields_of
from allim.http.fast_path import FastHandler

Handler = Callable[[Request], Awaitable[Response]]


class Caller(Enum):
    """The kind of caller that an operation requires."""

    ANYONE = auto()
    VISITOR = auto()  # anyone; a user is recognised
    USER = auto()
    READER = auto()  # a user, also by ticket
    OPERATOR = auto()
    PUBLISHER = auto()


class Parameter(NamedTuple):
    """A parameter of a request. In the query a list is one value with commas."""

    place: Literal["query", "path", "header"]
    name: str
    type: Any
    description: str


class Answer(NamedTuple):
    """An answer of an operation that is not a problem.

    Shape: `content` is the type of the body, None without one; `headers` are names in `openapi.HEADERS`.
    """

    description: str
    content: Any = None
    headers: Sequence[str] = ()
    media_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Operation:
    """A handler with its declaration."""

    handler: Handler
    caller: Caller
    body: Any
    parameters: Sequence[Parameter]
    answers: Mapping[int, Answer]
    fails: Sequence[type[AllimError]]

    def __call__(self, request: Request) -> Awaitable[Response]:
        return self.handler(request)


def operation(
    *,
    answers: Mapping[int, Answer],
    caller: Caller = Caller.ANYONE,
    body: Any = None,
    parameters: Sequence[Parameter] = (),
    fails: Sequence[type[AllimError]] = (),
) -> Callable[[Handler], Operation]:
    """Declare a handler. Its docstring is the documentation: one line of summary, then the description.

    Shape: `body` is a type for pydantic; with `| None` the body is optional. `fails` are the errors that do not
    follow from the rest (see `openapi`).
    """

    def declare(handler: Handler) -> Operation:
        return Operation(handler, caller, body, parameters, answers, fails)

    return declare


_NO_QUESTION = QueryParams()


class Call(Request):
    """A request with an index of its headers."""

    @property
    def query_params(self) -> QueryParams:
        return super().query_params if self.scope["query_string"] else _NO_QUESTION

    @property
    def headers(self) -> Fields:
        return fields_of(self.scope)


class Resource(Route):
    """A path with its handlers. `tag` groups it with others in the OpenAPI document.

    Shape: `handlers` and `fast_handlers` by method.
    """

    def __init__(self, path: str, handlers: Mapping[str, Handler], tag: str) -> None:
        super().__init__(path, self.serve, methods=list(handlers))
        self.app = self.serve  # Starlette would wrap it in a second error handler, inside the router's
        self.handlers = handlers
        self.tag = tag
        self.fast_handlers: dict[str, FastHandler] = {}

    def with_fast(self, **handlers: FastHandler) -> Self:
        """Add handlers for the fast path: `route("/x", post=change).with_fast(post=change_fast)`."""
        self.fast_handlers = {method.upper(): handler for method, handler in handlers.items()}
        return self

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request with one of the path's methods, as an ASGI application."""
        exchange = exchange_of(scope)
        outcome, exchange.outcome = exchange.outcome, None
        if outcome is None:
            response = await self.handlers[scope["method"]](Call(scope, receive, send))
        else:
            exchange.extra_headers.update(outcome.headers)
            response = outcome.response()
        answer_at_once = exchange.answer_at_once
        whole = type(response).__call__ is Response.__call__ and response.background is None
        if not (whole and answer_at_once and answer_at_once(response)):
            await response(scope, receive, send)


class Paths:
    """The innermost ASGI middleware: finds a resource without path parameters in a dict.

    All other requests go on to the router: paths with parameters, unknown methods, unknown paths.
    Shape: `exact` is from `exact_paths`; resources may be added to it.
    """

    def __init__(self, app: ASGIApp, exact: Mapping[tuple[str, str], Resource]) -> None:
        self.app = app
        self._exact = exact

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http":
            resource = self._exact.get((scope["method"], get_route_path(scope)))
            if resource is not None:
                app = resource.serve
        await app(scope, receive, send)


def exact_paths(routes: Iterable[BaseRoute]) -> dict[tuple[str, str], Resource]:
    """Return the resources without path parameters, by method and path."""
    return {
        (method, resource.path): resource
        for resource in routes
        if isinstance(resource, Resource) and not resource.param_convertors
        for method in resource.handlers
    }


def route(path: str, *, tag: str = "", get: Handler | None = None, **others: Handler) -> Resource:
    """Return a route with a handler per method: `route("/x", get=show, post=change)`. GET answers HEAD too."""
    handlers = {method.upper(): handler for method, handler in others.items()}
    if get is not None:
        handlers |= {"GET": get, "HEAD": get}
    return Resource(path, handlers, tag)
