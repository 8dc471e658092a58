"""The event catalogue over HTTP: as JSON and as AsyncAPI."""

import json
from functools import cache
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from allim.catalogue import Catalogue
from allim.catalogue.asyncapi import asyncapi
from allim.http.bodies import Body
from allim.http.routing import Answer, Resource, operation, route

_HEADERS = {"Cache-Control": "no-cache"}


class DeclaredType(Body):
    """A declared type of events.

    `topic` is the form of its topics: `system`, `user:{id}`. It is null for a control event, which allim itself sends
    on every stream. `data` is the JSON Schema 2020-12 of its data.
    """

    type: str
    topic: str | None
    control: bool
    summary: str
    description: str
    data: dict[str, Any] | bool
    example: Any


class DeclaredTypes(Body):
    """The event catalogue."""

    types: list[DeclaredType]


def routes(catalogue: Catalogue) -> list[Resource]:
    """Return the routes of the catalogue."""

    @cache
    def as_json() -> bytes:
        return json.dumps(catalogue.document(), ensure_ascii=False).encode()

    @cache
    def as_asyncapi() -> bytes:
        return json.dumps(asyncapi(catalogue), ensure_ascii=False).encode()

    @operation(answers={200: Answer("The declared types.", DeclaredTypes)})
    async def event_catalogue(_: Request) -> Response:
        """List the declared types of events.

        Data and topic of an event of a declared type are checked when it is published. Types that are not declared
        may be published as well.
        """
        return Response(as_json(), media_type="application/json", headers=_HEADERS)

    @operation(answers={200: Answer("An AsyncAPI 3.0 document.", dict[str, Any])})
    async def describe_events(_: Request) -> Response:
        """Describe all declared events."""
        return Response(as_asyncapi(), media_type="application/json", headers=_HEADERS)

    return [
        route("/api/catalogue.json", tag="Description", get=event_catalogue),
        route("/api/asyncapi.json", tag="Description", get=describe_events),
    ]
