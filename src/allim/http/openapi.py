"""The description of the routes, made of their declarations (`routing`).

All that follows from a declaration is derived here alone: the problems an operation may answer, and the headers of
its answers. Knows no domain.
Source: OpenAPI 3.2.0, JSON Schema 2020-12.
"""

import inspect
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.alias_generators import to_camel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from allim import __version__
from allim.access.gate import COOKIE
from allim.catalogue import Catalogue
from allim.catalogue.event_type import Untitled
from allim.catalogue.json_schema import hoisted
from allim.errors import (
    AllimError,
    Forbidden,
    Invalid,
    TooLarge,
    TooMany,
    Unauthenticated,
    Unavailable,
)
from allim.http import problems
from allim.http.problems import UnsupportedMediaType
from allim.http.routing import Answer, Caller, Operation, Parameter, Resource, operation, route

HEADERS: dict[str, tuple[str, Any]] = {
    "Location": ("Where it is, or where to go on.", str),
    "Set-Cookie": ("The session's cookie, or the end of it.", str),
    "WWW-Authenticate": ("The scheme of credentials.", Literal["Bearer"]),
    "Retry-After": ("Seconds after which it makes sense to try again.", Annotated[int, Field(ge=1)]),
    "RateLimit-Policy": ("The limits that the call counts for.", str),
    "RateLimit": ("Remaining calls, and seconds until the limit is whole again.", str),
    "X-Request-ID": ("Names the request in the logs.", str),
}
"""Descriptions and types of response headers."""

EVENT_STREAM = "text/event-stream"
NO_TYPES = Catalogue([])
_SCHEMAS = "#/components/schemas/"
_ALWAYS = ["X-Request-ID"]
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_ABOUT = """\
Events to browsers and services while they happen, over any number of replicas.

Bodies are JSON in UTF-8; unknown members and parameters are refused. Times are RFC 3339 in UTC. Every error is a
`Problem` (RFC 9457). Beside the answers that are listed, any call may answer 500, and a user's call with the header
`Allim-User` 409 when it names another user than the signed-in one.
"""
_IN_BROWSER = "A user in a browser, signed in."
_SECURITY_SCHEMES = {
    "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "A user."},
    "ticket": {"type": "apiKey", "in": "query", "name": "ticket", "description": "A user, for one stream."},
    "publishKey": {"type": "http", "scheme": "bearer", "description": "A service that publishes."},
}
_SECURITY: dict[Caller, list[dict[str, list[str]]]] = {
    Caller.ANYONE: [],
    Caller.VISITOR: [{}, {"session": []}, {"token": []}],
    Caller.USER: [{"session": []}, {"token": []}],
    Caller.READER: [{"session": []}, {"token": []}, {"ticket": []}],
    Caller.OPERATOR: [{"session": ["operator"]}, {"token": ["operator"]}],
    Caller.PUBLISHER: [{"publishKey": []}],
}

_Fails = Sequence[type[AllimError]]
_REFUSALS: dict[Caller, _Fails] = {
    Caller.ANYONE: [],
    Caller.VISITOR: [],
    Caller.USER: [Unauthenticated],
    Caller.READER: [Unauthenticated],
    Caller.OPERATOR: [Unauthenticated, Forbidden],
    Caller.PUBLISHER: [Unauthenticated, Forbidden],
}
_HEADERS_OF: dict[type[AllimError], list[str]] = {
    Unauthenticated: ["WWW-Authenticate"],
    TooMany: ["Retry-After", "RateLimit-Policy", "RateLimit"],
    Unavailable: ["Retry-After"],
}


class FieldProblem(BaseModel):
    """One thing wrong with one field; `field` is a path as the sender wrote it, such as `[3].topic`."""

    model_config = ConfigDict(extra="forbid")

    field: str
    message: str


class Problem(BaseModel):
    """An error (RFC 9457).

    `code` is for programs, `retryable` says whether the same request may succeed later, and `errors` is there when
    fields are at fault.
    """

    model_config = ConfigDict(extra="forbid")

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    errors: list[FieldProblem] = Field(default_factory=list)
    request_id: str = Field(default_factory=str)


def routes(described: Sequence[BaseRoute], catalogue: Catalogue = NO_TYPES, cookie: str = COOKIE) -> list[Resource]:
    """Return `/api/openapi.json` for these routes and its own.

    Shape: `catalogue` has the types of events on streams; `cookie` is the name of the session's cookie.
    """

    @operation(answers={200: Answer("An OpenAPI 3.2 document.", dict[str, Any])})
    async def openapi(request: Request) -> Response:
        """Describe all operations."""
        return Response(
            content(request.scope.get("root_path", "")),
            media_type="application/json",
            headers={"Cache-Control": "no-cache"},
        )

    own = [route("/api/openapi.json", tag="Description", get=openapi)]

    @lru_cache(maxsize=1)  # it is mounted in one place
    def content(root: str) -> bytes:
        return json.dumps(document([*described, *own], root, catalogue, cookie), ensure_ascii=False).encode()

    return own


def document(
    described: Iterable[BaseRoute], root: str = "", catalogue: Catalogue = NO_TYPES, cookie: str = COOKIE
) -> dict[str, Any]:
    """Return the OpenAPI document of all operations that are declared, whose paths are seen from `root`."""
    schemas = _Schemas(catalogue)
    paths = {
        resource.path_format: {
            method.lower(): _operation(schemas, resource, method, declared)
            for method, declared in operations(resource)
        }
        for resource in described
        if isinstance(resource, Resource)
    }
    return {
        "openapi": "3.2.0",
        "info": {"title": "allim", "version": __version__, "description": _ABOUT},
        **({"servers": [{"url": root}]} if root else {}),
        "paths": {path: item for path, item in paths.items() if item},
        "components": {
            "securitySchemes": {
                "session": {"type": "apiKey", "in": "cookie", "name": cookie, "description": _IN_BROWSER},
                **_SECURITY_SCHEMES,
            },
            "headers": {
                name: {"description": description, "schema": schemas.of(type_, "serialization")}
                for name, (description, type_) in HEADERS.items()
            },
            "responses": {error.__name__: _failure(schemas, error) for error in problems.KNOWN},
            "schemas": schemas.settle(),
        },
    }


def operations(resource: Resource) -> Iterable[tuple[str, Operation]]:
    """The declared operations of a path, by method. HEAD is GET's shadow and is not listed."""
    for method, handler in resource.handlers.items():
        if isinstance(handler, Operation) and method != "HEAD":
            yield method, handler


class _Schemas:
    """Collects types, then settles them all at once, so that each model is described once."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._event_types = catalogue.event_types.values()
        self._wanted: list[tuple[Literal["validation", "serialization"], TypeAdapter[Any], dict[str, Any]]] = []

    def of(self, type_: Any, mode: Literal["validation", "serialization"]) -> dict[str, Any]:
        """The type's schema, empty until it is settled."""
        schema: dict[str, Any] = {}
        self._wanted.append((mode, TypeAdapter(type_), schema))
        return schema

    def of_events(self, frame: Any) -> dict[str, Any]:
        """Return the schema of an event on a stream: a `frame`, with the data of each declared type."""
        declared = [
            {
                "title": each.name,
                "description": each.summary,
                "properties": {
                    "event": {"const": each.name},
                    "data": {"contentSchema": {"$ref": f"{_SCHEMAS}{each.name}"}},
                },
            }
            for each in self._event_types
        ]
        names = [each.name for each in self._event_types]
        others = {"title": "any other type", "properties": {"event": {"not": {"enum": names}}}}
        schema = self.of(frame, "serialization")
        if declared:
            schema["oneOf"] = [*declared, others]
        return schema

    def settle(self) -> dict[str, Any]:
        """Fill in the promised schemas; return the models that they refer to."""
        found, definitions = TypeAdapter.json_schemas(
            [(index, mode, adapter) for index, (mode, adapter, _) in enumerate(self._wanted)],
            ref_template=_SCHEMAS + "{model}",
            schema_generator=Untitled,
        )
        for index, (mode, _, schema) in enumerate(self._wanted):
            schema.update(found[index, mode])
        events: dict[str, Any] = {}
        for each in self._event_types:
            events |= hoisted(each.name, each.schema(), _SCHEMAS)
        return {**definitions.get("$defs", {}), **events}


def _operation(schemas: _Schemas, resource: Resource, method: str, declared: Operation) -> dict[str, Any]:
    summary, _, description = (inspect.getdoc(declared.handler) or "").partition("\n")
    fails = {problems.status_of(error): error for error in _fails(resource, method, declared)}
    failures = {status: {"$ref": f"#/components/responses/{error.__name__}"} for status, error in fails.items()}
    answers = {status: _answer(schemas, answer) for status, answer in declared.answers.items()}
    described = {
        "operationId": to_camel(declared.handler.__name__),
        "summary": summary.removesuffix("."),
        "description": description.strip(),
        "tags": [resource.tag],
        "security": _SECURITY[declared.caller],
        "parameters": [_parameter(schemas, parameter) for parameter in declared.parameters],
        "requestBody": _body(schemas, declared.body),
        "responses": {str(status): answer for status, answer in sorted({**failures, **answers}.items())},
    }
    return {name: value for name, value in described.items() if value or name == "security"}


def _fails(resource: Resource, method: str, declared: Operation) -> Iterable[type[AllimError]]:
    """Return the errors of an operation: declared ones, and those that follow from the rest."""
    yield from declared.fails
    yield from _REFUSALS[declared.caller]
    if declared.body is not None:
        yield from (TooLarge, UnsupportedMediaType, Invalid)
    if any(parameter.place != "path" for parameter in declared.parameters):
        yield Invalid
    if method not in _SAFE_METHODS:
        yield Forbidden  # a page of another origin
    if resource.path.startswith("/api/") or declared.caller is not Caller.ANYONE:
        yield from (TooMany, Unavailable)


def _parameter(schemas: _Schemas, parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "required": parameter.place == "path",
        "schema": schemas.of(parameter.type, "validation"),
        **({"explode": False} if parameter.place == "query" else {}),
    }


def _body(schemas: _Schemas, body: Any) -> dict[str, Any] | None:
    if body is None:
        return None
    kinds = get_args(body) or (body,)
    required = NoneType not in kinds
    kind = body if required else Union[tuple(kind for kind in kinds if kind is not NoneType)]  # noqa: UP007
    return {"required": required, "content": {"application/json": {"schema": schemas.of(kind, "validation")}}}


def _answer(schemas: _Schemas, answer: Answer) -> dict[str, Any]:
    content: dict[str, Any]
    if answer.media_type == EVENT_STREAM:
        content = {EVENT_STREAM: {"itemSchema": schemas.of_events(answer.content)}}
    else:
        content = {answer.media_type: {"schema": schemas.of(answer.content, "serialization")}}
    return {
        "description": answer.description,
        "headers": _headers(answer.headers),
        **({} if answer.content is None else {"content": content}),
    }


def _failure(schemas: _Schemas, error: type[AllimError]) -> dict[str, Any]:
    return {
        "description": (inspect.getdoc(error) or "").partition("\n")[0],
        "headers": _headers(_HEADERS_OF.get(error, [])),
        "content": {problems.MEDIA_TYPE: {"schema": schemas.of(Problem, "serialization")}},
    }


def _headers(names: Sequence[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in [*names, *_ALWAYS]}
