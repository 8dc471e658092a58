import asyncio
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from allim.app import create_app
from allim.errors import Conflict, NotFound
from allim.http import openapi, problems
from allim.http.bodies import Body, read_model
from allim.http.openapi import Problem, document, operations
from allim.http.routing import Answer, Caller, Operation, Parameter, Resource, operation, route
from allim.settings import load_settings
from tests.http.apps import client_of

pytestmark = pytest.mark.anyio


class Thing(Body):
    """Something."""

    long_name: str


def declared(**declaration: Any) -> Operation:
    @operation(**{"answers": {200: Answer("Done.", Thing)}, **declaration})
    async def do_it(request: Request) -> Response:
        """Do it.

        At once, or never.
        """
        return JSONResponse((await read_model(request, Thing)).model_dump())

    return do_it


def described(method: str = "get", path: str = "/api/things", **declaration: Any) -> dict[str, Any]:
    """What the document says of one operation."""
    found = document([route(path, tag="Things", **{method: declared(**declaration)})])
    return dict(found["paths"][path][method])


def statuses(method: str = "get", path: str = "/api/things", **declaration: Any) -> set[int]:
    return {int(status) for status in described(method, path, **declaration)["responses"]}


def inside(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a document."""
    if isinstance(value, dict):
        yield value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from inside(child)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Starlette:
    app = create_app(load_settings({"ALLIM_DATA_DIR": str(tmp_path_factory.mktemp("data"))}))

    async def start() -> None:
        async with app.router.lifespan_context(app):
            pass

    asyncio.run(start())
    return app


@pytest.fixture(scope="module")
def whole(app: Starlette) -> dict[str, Any]:
    return document(app.routes)


def test_every_method_of_every_rest_route_is_declared(app: Starlette) -> None:
    rest = [item for item in app.routes if isinstance(item, Route) and item.path.startswith("/api/")]

    assert len(rest) > 5
    for item in rest:
        assert isinstance(item, Resource), item.path
        assert {method for method, _ in operations(item)} == item.methods - {"HEAD"}, item.path  # type: ignore[operator]


def test_the_document_is_openapi_3_2_and_its_schemas_are_json_schema(whole: dict[str, Any]) -> None:
    assert whole["openapi"] == "3.2.0"
    schemathesis.openapi.from_dict(whole).validate()
    for schema in whole["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)


def test_every_reference_leads_somewhere(whole: dict[str, Any]) -> None:
    references = {part["$ref"] for part in inside(whole) if "$ref" in part}

    assert len(references) > 10
    for reference in references:
        place: Any = whole
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]


def test_every_operation_has_its_own_name_a_summary_and_a_tag(whole: dict[str, Any]) -> None:
    found = [each for item in whole["paths"].values() for each in item.values()]

    assert len({each["operationId"] for each in found}) == len(found)
    assert all(each["summary"] and each["tags"][0] for each in found)


def test_the_parameters_of_a_path_are_the_described_ones(app: Starlette) -> None:
    for resource in (item for item in app.routes if isinstance(item, Resource)):
        for _, each in operations(resource):
            named = {parameter.name for parameter in each.parameters if parameter.place == "path"}
            assert named == set(resource.param_convertors), resource.path


def test_the_docstring_is_the_documentation() -> None:
    found = described()

    assert (found["operationId"], found["summary"], found["tags"]) == ("doIt", "Do it", ["Things"])
    assert found["description"] == "At once, or never."


@pytest.mark.parametrize(
    ("declaration", "expected"),
    [
        ({}, {200, 429, 503}),
        ({"path": "/healthz"}, {200}),
        ({"path": "/events", "caller": Caller.USER}, {200, 401, 429, 503}),
        ({"caller": Caller.VISITOR}, {200, 429, 503}),
        ({"caller": Caller.READER}, {200, 401, 429, 503}),
        ({"caller": Caller.OPERATOR}, {200, 401, 403, 429, 503}),
        ({"caller": Caller.PUBLISHER}, {200, 401, 403, 429, 503}),
        ({"method": "delete", "fails": [NotFound]}, {200, 403, 404, 429, 503}),
        ({"method": "post", "body": Thing}, {200, 403, 413, 415, 422, 429, 503}),
        ({"parameters": [Parameter("query", "limit", int, "")]}, {200, 422, 429, 503}),
        ({"path": "/api/things/{id}", "parameters": [Parameter("path", "id", str, "")]}, {200, 429, 503}),
    ],
)
def test_what_follows_from_a_declaration_need_not_be_declared(declaration: Any, expected: set[int]) -> None:
    assert statuses(**declaration) == expected


def test_an_answer_with_the_status_of_a_problem_takes_its_place() -> None:
    found = described(answers={503: Answer("Not ready.", Thing)})["responses"]["503"]

    assert found["description"] == "Not ready."


def test_a_refusal_is_a_problem_with_its_headers(whole: dict[str, Any]) -> None:
    unavailable = whole["components"]["responses"]["Unavailable"]

    assert list(unavailable["content"]) == [problems.MEDIA_TYPE]
    assert set(unavailable["headers"]) == {"Retry-After", "X-Request-ID"}


def test_a_body_may_be_left_out_when_it_may_be_none() -> None:
    needed = described("post", body=Thing)["requestBody"]
    optional = described("post", body=Thing | None)["requestBody"]

    assert (needed["required"], optional["required"]) == (True, False)
    assert optional["content"] == needed["content"]


def test_names_are_those_on_the_wire() -> None:
    found = document([route("/api/things", post=declared(body=Thing))])

    assert list(found["components"]["schemas"]["Thing"]["properties"]) == ["longName"]


async def test_a_real_problem_is_a_described_one() -> None:
    async def refuse(_: Request) -> Response:
        raise Conflict("no")

    async with client_of([route("/api/things", get=refuse, post=declared())]) as client:
        plain = await client.get("/api/things")
        named = await client.post("/api/things", json={})

    for answer in (plain, named):
        Problem.model_validate(answer.json(), strict=True)


async def test_the_document_is_served_and_describes_itself() -> None:
    resources = [route("/api/things", get=declared())]
    async with client_of([*resources, *openapi.routes(resources)]) as client:
        answer = await client.get("/api/openapi.json")

    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()["paths"]) == ["/api/things", "/api/openapi.json"]


async def test_the_document_names_the_place_where_the_application_is_mounted() -> None:
    async with client_of([Mount("/notify", routes=openapi.routes([]))]) as client:
        answer = await client.get("/notify/api/openapi.json")

    assert answer.json()["servers"] == [{"url": "/notify"}]
