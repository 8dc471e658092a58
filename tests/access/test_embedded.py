"""`create_app(authenticate=…, authorize=…)`: functions of an application sign in and decide on topics."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from harness.replicas import SECRET, bearer, token
from starlette.applications import Starlette
from starlette.requests import HTTPConnection

from allim.access.authenticate import authenticated
from allim.app import create_app
from allim.identity import Identity
from allim.settings import SettingsError, load_settings
from tests.http.apps import assert_problem

pytestmark = pytest.mark.anyio

SESSIONS = {"min-s1": "auth0|min", "op-s1": "op"}
MIN, OPERATOR = {"cookie": "shop_session=min-s1"}, {"cookie": "shop_session=op-s1"}
EXPIRES_AT: dict[str, float] = {}
asked: list[tuple[str, list[str]]] = []


async def authenticate(connection: httpx.Request) -> Identity | None:
    session = connection.cookies.get("shop_session", "")  # type: ignore[attr-defined]
    if session not in SESSIONS:
        return None
    role = "operator" if session == "op-s1" else "user"
    return Identity.of(SESSIONS[session], session=session, role=role, expires_at=EXPIRES_AT.get(session))


def authorize(identity: Identity, topics: list[str]) -> list[str]:
    asked.append((identity.subject, topics))
    return [topic for topic in topics if (identity.subject, topic) == ("auth0|min", "room:1")]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    asked.clear()
    settings = load_settings({"ALLIM_DATA_DIR": str(tmp_path), "ALLIM_SECRET_KEY": SECRET})
    app: Starlette = create_app(settings, authenticate=authenticate, authorize=authorize)  # type: ignore[arg-type]
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    async with app.router.lifespan_context(app), client:
        yield client


async def test_streams_and_calls_know_the_applications_user(client: httpx.AsyncClient) -> None:
    session = (await client.get("/api/session", headers=MIN)).json()

    assert (session["user"], session["renewalDue"]) == ("auth0|min", False)
    assert (await client.head("/events", headers=MIN)).status_code == 200
    assert (await client.head("/events", params={"topics": "room:1"}, headers=MIN)).status_code == 200
    assert (await client.head("/events", params={"topics": "room:1"}, headers=OPERATOR)).status_code == 403
    assert_problem(await client.post("/api/session/renew", headers=MIN), 401, "unauthenticated")
    assert asked == [("auth0|min", ["room:1"]), ("op", ["room:1"])]


async def test_a_request_that_the_application_does_not_know_may_have_a_token(client: httpx.AsyncClient) -> None:
    with_token = await client.get("/api/session", headers=bearer(token("42")))
    both = await client.get("/api/session", headers={**MIN, **bearer(token("42"))})
    renewal = await client.post("/api/session/renew", headers={**MIN, **bearer(token("42"))})

    assert (with_token.json()["user"], both.json()["user"]) == ("42", "auth0|min")
    assert_problem(renewal, 422, "invalid", "token")
    assert_problem(await client.get("/api/session"), 401, "unauthenticated")


async def test_a_ticket_is_made_for_the_applications_user_and_decided_on_anew(client: httpx.AsyncClient) -> None:
    made = await client.post("/api/tickets", json={"topics": ["room:1"]}, headers=MIN)

    assert made.status_code == 201
    assert (await client.head("/events", params={"ticket": made.json()["ticket"]})).status_code == 200
    assert_problem(
        await client.post("/api/tickets", json={"topics": ["room:2"]}, headers=MIN), 403, "forbidden", "topics"
    )


async def test_an_operator_of_the_application_kicks_and_a_sign_out_ends_the_named_session(
    client: httpx.AsyncClient,
) -> None:
    path = "/api/users/auth0%7Cmin/streams"
    assert_problem(await client.delete(path, headers=MIN), 403, "forbidden")
    assert (await client.delete(path, headers=OPERATOR)).status_code == 204
    assert (await client.get("/api/session", headers=MIN)).status_code == 200  # the application vouches again

    assert (await client.delete("/api/session", headers=MIN)).status_code == 204
    assert_problem(await client.get("/api/session", headers=MIN), 401, "signed_out")


@pytest.mark.parametrize("path", ["/api/session", "/events"])
async def test_an_identity_of_the_application_that_has_expired_is_refused(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setitem(EXPIRES_AT, "min-s1", time.time() - 1)

    assert_problem(await client.get(path, headers=MIN), 401, "unauthenticated")
    assert (await client.delete("/api/session", headers=MIN)).status_code == 204  # it may still be ended


@pytest.mark.parametrize("expires_at", ["2026-01-01", float("nan"), float("inf"), True])
async def test_an_expiry_that_is_no_moment_is_named(expires_at: object) -> None:
    odd = Identity.of("42", expires_at=expires_at)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="authenticate: expires_at must be a moment in Unix seconds"):
        await authenticated(lambda _: odd, HTTPConnection({"type": "http"}))


def test_a_function_and_a_webhook_do_not_both_decide(tmp_path: Path) -> None:
    environ = {"ALLIM_AUTHORIZE_URL": "http://app.test/", "ALLIM_AUTHORIZE_SECRET": "s" * 32}
    settings = load_settings({"ALLIM_DATA_DIR": str(tmp_path), "ALLIM_SECRET_KEY": SECRET, **environ})

    with pytest.raises(SettingsError, match="ALLIM_AUTHORIZE_URL: "):
        create_app(settings, authorize=authorize)  # type: ignore[arg-type]
