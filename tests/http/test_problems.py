from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message
from structlog.testing import capture_logs

from allim.errors import (
    AllimError,
    Conflict,
    FieldError,
    Forbidden,
    Invalid,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from allim.exchange import exchange_of
from allim.http import problems
from allim.http.routing import route
from tests.http.apps import assert_problem, client_of

pytestmark = pytest.mark.anyio


async def answer_to(error: Exception) -> httpx.Response:
    async def fail(_request: Request) -> Response:
        raise error

    async with client_of([Route("/", fail)]) as client:
        return await client.get("/")


@pytest.mark.parametrize(
    ("error", "status", "code", "retryable"),
    [
        (Invalid("no"), 422, "invalid", False),
        (TooLarge("no"), 413, "too_large", False),
        (Unauthenticated("no"), 401, "unauthenticated", False),
        (Forbidden("no"), 403, "forbidden", False),
        (NotFound("no"), 404, "not_found", False),
        (Conflict("no"), 409, "conflict", False),
        (problems.UnsupportedMediaType("no"), 415, "unsupported_media_type", False),
        (Unavailable("no"), 503, "unavailable", True),
        (AllimError("no"), 500, "internal", False),
    ],
)
async def test_each_error_has_its_status(error: AllimError, status: int, code: str, retryable: bool) -> None:
    response = await answer_to(error)

    assert_problem(response, status, code)
    assert response.json()["retryable"] is retryable
    assert response.json()["detail"] == "no"


async def test_fields_are_named() -> None:
    response = await answer_to(Invalid("two", [FieldError("email", "is odd"), FieldError("[3].topic", "too")]))

    assert_problem(response, 422, "invalid", "email", "[3].topic")
    assert response.json()["errors"][0] == {"field": "email", "message": "is odd"}


async def test_401_says_how_to_sign_in_and_503_when_to_come_back() -> None:
    assert (await answer_to(Unauthenticated("no"))).headers["www-authenticate"] == "Bearer"
    assert (await answer_to(Unavailable("no", retry_after_s=7))).headers["retry-after"] == "7"


async def test_unknown_paths_and_methods_are_problems_too() -> None:
    async def ok(_request: Request) -> Response:
        return Response()

    async with client_of([route("/known", get=ok, delete=ok)]) as client:
        assert_problem(await client.get("/unknown"), 404, "not_found")
        refused = await client.post("/known")

    assert_problem(refused, 405, "method_not_allowed")
    assert set(refused.headers["allow"].split(", ")) == {"GET", "HEAD", "DELETE"}


async def test_the_unexpected_is_logged_in_full_and_not_told() -> None:
    with capture_logs() as logs:
        response = await answer_to(RuntimeError("password=hunter2"))

    assert_problem(response, 500, "internal")
    assert "hunter2" not in response.text
    assert [(entry["event"], entry["exc_info"]) for entry in logs] == [("unexpected error", True)]


async def test_a_reader_who_left_is_no_error() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    async def leave(_request: Request) -> Response:
        raise ClientDisconnect

    app = Starlette(routes=[Route("/", leave)], middleware=[Middleware(problems.UnexpectedErrors)])
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"", "root_path": ""}
    with capture_logs() as logs:
        await app(scope, receive, send)

    assert logs == []


async def test_an_answer_torn_half_way_stays_torn() -> None:
    async def half(_request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"half"
            raise RuntimeError("torn")

        return StreamingResponse(chunks())

    async with client_of([Route("/", half)]) as client:
        with pytest.raises(RuntimeError, match="torn"):
            await client.get("/")


async def test_the_request_id_is_repeated() -> None:
    async def fail(request: Request) -> Response:
        exchange_of(request.scope).request_id = "r-1"
        raise NotFound("no")

    async with client_of([Route("/", fail)]) as client:
        assert (await client.get("/")).json()["request_id"] == "r-1"
