"""A real Starlette app around a few routes, and a client for it."""

from collections.abc import Sequence

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from allim.http import problems


def client_of(routes: Sequence[BaseRoute], base_url: str = "http://test") -> httpx.AsyncClient:
    app = Starlette(
        routes=routes,
        middleware=[Middleware(problems.UnexpectedErrors)],
        exception_handlers=problems.handlers,
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base_url)


def assert_problem(response: httpx.Response, status: int, code: str, *fields: str) -> None:
    """It is a problem of this status and code, and names exactly these fields."""
    assert response.headers["content-type"] == "application/problem+json"
    content = response.json()
    assert (response.status_code, content["status"], content["code"]) == (status, status, code), content
    assert content["type"] == f"urn:allim:problem:{code}"
    assert content["title"]
    assert content["detail"]
    assert [error["field"] for error in content.get("errors", [])] == list(fields), content
