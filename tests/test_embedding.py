"""allim inside another application: found, mounted, its lifespan joined, published from the same process."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from harness.replicas import ROOT, SECRET, bearer, token
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route

import allim
from allim.app import create_app
from allim.embedding import NotRunning
from allim.errors import Conflict, Invalid, TooLarge
from allim.server import run
from allim.settings import load_settings

pytestmark = pytest.mark.anyio


@pytest.fixture
def app(tmp_path: Path) -> Starlette:
    environ = {"ALLIM_DATA_DIR": str(tmp_path), "ALLIM_SECRET_KEY": SECRET, "ALLIM_MAX_EVENT_BYTES": "1024"}
    return create_app(load_settings(environ))


@pytest.fixture
async def hub(app: Starlette) -> AsyncIterator[Any]:
    async with app.router.lifespan_context(app):
        yield allim.of(app)


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def test_import_allim_loads_nothing_else() -> None:
    heavy = ("allim.", "pydantic", "starlette")
    program = f"import sys, allim; sys.exit(any(name.startswith({heavy}) for name in sys.modules))"

    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        allim.nothing  # noqa: B018


# Publishing --------------------------------------------------------------------------------------------------------


async def test_an_event_is_published_with_the_data_that_the_client_takes(hub: Any) -> None:
    data = {"at": datetime(2026, 11, 30, tzinfo=UTC), "price": Decimal("12.50")}

    stored = await hub.publish("user:42", "orders.shipped", data)

    assert len(stored.ids) == 1
    assert stored.durability == "memory"


async def test_one_key_stands_for_one_event(hub: Any) -> None:
    first = await hub.publish("user:42", "orders.shipped", {"orderId": 7}, key="order-7")

    assert await hub.publish("user:42", "orders.shipped", {"orderId": 7}, key="order-7") == first
    with pytest.raises(Conflict):
        await hub.publish("user:42", "orders.shipped", {"orderId": 8}, key="order-7")


@pytest.mark.parametrize(
    ("field", "error", "arguments"),
    [
        ("topic", Invalid, {"topic": "no topic"}),
        ("type", Invalid, {"type": "Shipped!"}),
        ("type", Invalid, {"type": "stream.open"}),
        ("data", Invalid, {"data": float("nan")}),
        ("data", Invalid, {"data": object()}),
        ("data", TooLarge, {"data": "x" * 2000}),
        ("key", Invalid, {"key": "two words"}),
    ],
)
async def test_a_wrong_field_is_named(
    hub: Any, field: str, error: type[Invalid | TooLarge], arguments: dict[str, Any]
) -> None:
    event = {"topic": "user:42", "type": "orders.shipped", "data": None, **arguments}

    with pytest.raises(error) as caught:
        await hub.publish(**event)
    assert [fault.field for fault in caught.value.fields] == [field]


async def test_data_of_a_declared_type_is_checked_by_the_catalogue(hub: Any) -> None:
    with pytest.raises(Invalid) as caught:
        await hub.publish("user:42", "snapshots.generated", {"snapshotId": 7})
    assert all(fault.field.startswith("data") for fault in caught.value.fields)


async def test_a_batch_is_stored_as_a_whole_or_not_at_all(hub: Any) -> None:
    assert len((await hub.publish_batch([("news", "news.posted", {"n": n}) for n in range(3)])).ids) == 3
    with pytest.raises(Invalid) as caught:
        await hub.publish_batch([("news", "news.posted", None), ("no topic", "news.posted", None)])
    assert [fault.field for fault in caught.value.fields] == ["[1].topic"]
    with pytest.raises(Invalid, match="at least 1 event"):
        await hub.publish_batch([])


async def test_a_kick_ends_the_sessions_of_a_user(app: Starlette, hub: Any) -> None:
    async with client_of(app) as client:
        assert (await client.head("/events", headers=bearer(token("42")))).status_code == 200
        session = bearer(token("42"))

        await hub.kick("42")

        assert (await client.get("/api/session", headers=session)).status_code == 401


# Mounted -----------------------------------------------------------------------------------------------------------


async def test_the_lifespan_of_the_parent_goes_on_inside_that_of_allim(app: Starlette) -> None:
    order: list[str] = []

    @asynccontextmanager
    async def own(parent: FastAPI) -> AsyncIterator[dict[str, str]]:
        await allim.of(parent).publish("system", "shop.started")
        order.append("began")
        yield {"kept": "state"}
        await allim.of(parent).publish("system", "shop.ends")
        order.append("ended")

    parent = FastAPI(lifespan=own)
    allim.mount(parent, "/notify", app)
    parent.include_router(APIRouter())

    async with parent.router.lifespan_context(parent) as state, client_of(parent) as client:
        assert state == {"kept": "state"}
        assert (await client.get("/notify/healthz")).status_code == 200
    assert order == ["began", "ended"]


@pytest.mark.parametrize("kind", [FastAPI, Starlette])
async def test_a_lifespan_may_be_given_to_the_parent_instead(app: Starlette, kind: type[Starlette]) -> None:
    parent = kind(lifespan=allim.lifespan(app), middleware=[Middleware(CORSMiddleware)])
    parent.mount("/a/b", app)

    async with parent.router.lifespan_context(parent), client_of(parent) as client:
        assert (await client.get("/a/b/healthz")).status_code == 200
        await allim.of(parent).publish("news", "news.posted")


async def test_without_its_lifespan_the_first_request_names_the_remedy(app: Starlette) -> None:
    parent = FastAPI()
    parent.mount("/notify", app)

    async with parent.router.lifespan_context(parent), client_of(parent) as client:
        with pytest.raises(NotRunning, match=r"allim\.mount\(parent, path, app\)"):
            await client.get("/notify/events")
    with pytest.raises(NotRunning):
        await allim.of(parent).publish("news", "news.posted")
    with pytest.raises(NotRunning):
        await allim.of(parent).kick("42")


def test_allim_is_found_behind_mounts_and_middleware(app: Starlette) -> None:
    inner = Starlette(routes=[Mount("/notify", CORSMiddleware(app))])

    assert allim.of(CORSMiddleware(FastAPI(routes=[Mount("/deep", inner)]))) is allim.of(app)


@pytest.mark.parametrize("parent", [FastAPI(), Starlette(routes=[Route("/", print)]), object()])
def test_an_application_without_allim_is_refused(parent: Any) -> None:
    for use in (allim.of, run):
        with pytest.raises(ValueError, match="no allim in this application"):
            use(parent)


@pytest.mark.parametrize("path", ["", "/", "notify", "/notify/", "/a//b", "/{name}"])
def test_a_malformed_path_is_refused(app: Starlette, path: str) -> None:
    with pytest.raises(ValueError, match="path: "):
        allim.mount(FastAPI(), path, app)


@pytest.mark.parametrize(("prefix", "path"), [("/notify", "/notify"), ("", "/")])
async def test_the_cookie_is_kept_for_the_paths_of_allim(app: Starlette, prefix: str, path: str) -> None:
    parent = FastAPI()
    if prefix:
        allim.mount(parent, prefix, app)
    served = parent if prefix else app
    account = {"email": "min@example.org", "name": "Min", "password": "a good password"}

    async with served.router.lifespan_context(served), client_of(served) as client:
        answer = await client.post(f"{prefix}/api/accounts", json=account)
        assert f"; Path={path};" in answer.headers["set-cookie"]
        assert (await client.get(f"{prefix}/api/session")).status_code == 200
        document = (await client.get(f"{prefix}/api/openapi.json")).json()
        assert document.get("servers") == ([{"url": prefix}] if prefix else None)
        out = await client.delete(f"{prefix}/api/session")
        assert f"; Path={path};" in out.headers["set-cookie"]
        assert (await client.get(f"{prefix}/api/session")).status_code == 401


async def test_the_application_that_the_page_shows_publishes_to_its_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALLIM_DATA_DIR", str(tmp_path))
    code = (ROOT / "docs" / "embedding.md").read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {"__name__": "shown"}
    exec(code, names)
    parent = names["app"]

    async with parent.router.lifespan_context(parent), client_of(parent) as client:
        assert (await client.post("/orders/7", params={"user": "42"})).status_code == 200
        assert (await client.head("/notify/events", headers={"x-user": "42"})).status_code == 200
        assert (await client.head("/notify/events")).status_code == 401
