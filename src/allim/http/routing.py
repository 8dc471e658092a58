"""One route per path, so that a refused method is told all the methods the path knows; and what each operation
takes, answers and refuses, declared beside its handler.

`openapi` makes the document of the declarations. They change nothing at run time.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal, NamedTuple, Self

from starlette._utils import get_route_path
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from allim.errors import AllimError
from allim.http.fields import Fields, fields_of
from allim.http.shortcuts import OUTCOME, Shortcut

Handler = Callable[[Request], Awaitable[Response]]


class Caller(Enum):
    """Who may call an operation."""

    ANYONE = auto()
    VISITOR = auto()  # anyone; a user is recognised
    USER = auto()
    READER = auto()  # a user, also by ticket
    OPERATOR = auto()
    PUBLISHER = auto()


class Parameter(NamedTuple):
    """What a request says beside its body. In the query a list is one value with commas."""

    place: Literal["query", "path", "header"]
    name: str
    type: Any
    description: str


class Answer(NamedTuple):
    """One way in which an operation succeeds, or fails without a problem.

    Shape: `content` is the type of what is sent, None for nothing; `headers` are named in `openapi.HEADERS`.
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

    Shape: `body` is any type pydantic knows; with `| None` it may be left out. `fails` are the errors that do not
    follow from the rest (see `openapi`).
    """

    def declare(handler: Handler) -> Operation:
        return Operation(handler, caller, body, parameters, answers, fails)

    return declare


_NO_QUESTION = QueryParams()


class Call(Request):
    """A request, whose fields are found at once."""

    @property
    def query_params(self) -> QueryParams:
        return super().query_params if self.scope["query_string"] else _NO_QUESTION

    @property
    def headers(self) -> Fields:
        return fields_of(self.scope)


class Resource(Route):
    """A path and what its methods do. `tag` groups it with others in the document.

    Shape: `handlers` and `shortcuts` by method.
    """

    def __init__(self, path: str, handlers: Mapping[str, Handler], tag: str) -> None:
        super().__init__(path, self.serve, methods=list(handlers))
        self.app = self.serve  # Starlette's own way would catch errors a second time, inside the router's
        self.handlers = handlers
        self.tag = tag
        self.shortcuts: dict[str, Shortcut] = {}

    def with_shortcuts(self, **shortcuts: Shortcut) -> Self:
        """Beside their handlers: `route("/x", post=change).with_shortcuts(post=change_at_once)`."""
        self.shortcuts = {method.upper(): shortcut for method, shortcut in shortcuts.items()}
        return self

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application, for a method it knows."""
        if OUTCOME not in scope:
            response = await self.handlers[scope["method"]](Call(scope, receive, send))
        else:
            scope["state"]["answer_headers"].update(scope[OUTCOME].headers)
            response = scope.pop(OUTCOME).response()
        answer_at_once = scope.get("state", {}).get("answer_at_once")
        whole = type(response).__call__ is Response.__call__ and response.background is None
        if not (whole and answer_at_once and answer_at_once(response)):
            await response(scope, receive, send)


class Paths:
    """ASGI middleware inside all others: a resource whose path holds no parameter is found by that path at once.

    Everything else goes on to the router: patterns, a method that the path does not know, and a path nobody knows.
    """

    def __init__(self, app: ASGIApp, resources: Sequence[Resource]) -> None:
        self.app = app
        self._exact = {
            (method, resource.path): resource
            for resource in resources
            if not resource.param_convertors
            for method in resource.handlers
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http":
            resource = self._exact.get((scope["method"], get_route_path(scope)))
            if resource is not None:
                app = resource.serve
        await app(scope, receive, send)


def route(path: str, *, tag: str = "", get: Handler | None = None, **others: Handler) -> Resource:
    """A route with a handler per method: `route("/x", get=show, post=change)`. GET answers HEAD too."""
    handlers = {method.upper(): handler for method, handler in others.items()}
    if get is not None:
        handlers |= {"GET": get, "HEAD": get}
    return Resource(path, handlers, tag)
