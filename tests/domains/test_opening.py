"""Domains inside an application: examples/orders, and faults while one is opened."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from harness.replicas import replica
from harness.waiting import START_S
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse

import orders
from allim.access.tokens import Tokens
from allim.app import create_app
from allim.domains.choice import chosen
from allim.domains.domain import Domain, Host, Opened
from allim.errors import Unavailable, Unusable
from allim.identity import OPERATOR, Identity
from allim.settings import SettingsError, load_settings

pytestmark = pytest.mark.anyio

SECRET = "0123456789abcdef0123456789abcdef"
TOKENS = Tokens([SECRET], lifetime_s=3600)


def app_of(folder: Path, *domains: Domain, database_url: str = "") -> Starlette:
    environ = {"ALLIM_DATA_DIR": str(folder), "ALLIM_DATABASE_URL": database_url, "ALLIM_SECRET_KEY": SECRET}
    return create_app(load_settings(environ), domains=domains)


def client_of(app: Starlette) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {TOKENS.issue('ada')}"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers)


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client


async def test_a_domain_has_a_route_a_table_an_event_a_rule_a_job_and_a_check(
    tmp_path: Path, database_url: str
) -> None:
    warehouse = {"authorization": f"Bearer {TOKENS.issue('warehouse', role=OPERATOR)}"}
    app = app_of(tmp_path, orders.DOMAIN, Domain("scales", weighing), database_url=database_url)
    async with serving(app) as client:
        placed = await client.post("/api/orders", json={"item": "tea"})
        assert placed.status_code == 201, placed.text
        order = placed.json()
        shipped = await client.post(f"/api/orders/{order['id']}/shipment", headers=warehouse)
        assert shipped.json() == {**order, "state": "shipped"}
        async with asyncio.timeout(START_S):
            while (await client.get("/api/orders")).json() != [{**order, "state": "closed"}]:
                await asyncio.sleep(0.05)
        described = (await client.get("/api/openapi.json")).json()["paths"]
        declared = (await client.get("/api/catalogue.json")).json()["types"]
        ready = (await client.get("/readyz")).json()["checks"]
        ticket = await client.post("/api/tickets", json={"topics": [f"orders:{order['id']}"]})
        refused = await client.post("/api/tickets", json={"topics": ["orders:7"]})

    assert "/api/orders" in described
    assert "/api/accounts" not in described
    assert "orders.shipped" in [each["type"] for each in declared]
    assert ready["scales"] == "ok"
    assert (ticket.status_code, refused.status_code) == (201, 403)


@asynccontextmanager
async def weighing(_: Host[None]) -> AsyncIterator[Opened]:
    yield Opened(checks={"scales": well})


async def test_routes_that_were_added_to_the_application_stay(tmp_path: Path) -> None:
    app = app_of(tmp_path, Domain("scales", weighing))
    app.add_route("/added", lambda _: PlainTextResponse("added"))

    async with serving(app) as client:
        answers = [await client.get(path) for path in ("/added", "/healthz")]

    assert [answer.status_code for answer in answers] == [200, 200]


async def test_domains_are_closed_in_the_opposite_order(tmp_path: Path) -> None:
    life: list[str] = []

    def noting(name: str, *needs: str) -> Domain:
        @asynccontextmanager
        async def open_(host: Host[None]) -> AsyncIterator[Opened]:
            life.append(f"{name} opened with {dict(host.needs)}")
            yield Opened(door=name.upper())
            life.append(f"{name} closed")

        return Domain(name, open_, needs)

    async with serving(app_of(tmp_path, noting("second", "first"), noting("first"))):
        assert life == ["first opened with {}", "second opened with {'first': 'FIRST'}"]

    assert life[2:] == ["second closed", "first closed"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Unusable("its file is missing", "make it"), "broken cannot be opened: its file is missing"),
        (Unavailable("The shop does not answer."), "broken cannot be opened: The shop does not answer."),
        (KeyError("x"), "broken cannot be opened: 'x'"),
    ],
)
async def test_a_domain_that_cannot_be_opened_names_itself(tmp_path: Path, error: Exception, said: str) -> None:
    closed: list[str] = []

    @asynccontextmanager
    async def fine(_: Host[None]) -> AsyncIterator[Opened]:
        try:
            yield Opened()
        finally:
            closed.append("fine")

    @asynccontextmanager
    async def broken(_: Host[None]) -> AsyncIterator[Opened]:
        raise error
        yield Opened()

    with pytest.raises(SettingsError) as caught:
        async with serving(app_of(tmp_path, Domain("fine", fine), Domain("broken", broken))):
            pass

    assert str(caught.value) == f"ALLIM_DOMAINS: {said}"
    assert caught.value.advice == getattr(error, "advice", "")
    assert closed == ["fine"]


async def may(_: Identity, __: str) -> bool:
    return True


async def well() -> None: ...


@pytest.mark.parametrize(
    ("opened", "said"),
    [
        (Opened(rules={"orders": may}), "topics of the kind 'orders' have a rule already"),
        (Opened(checks={"hub": well}), "there is a readiness check 'hub' already"),
    ],
)
async def test_two_domains_cannot_have_the_same_thing(tmp_path: Path, opened: Opened, said: str) -> None:
    @asynccontextmanager
    async def second(_: Host[None]) -> AsyncIterator[Opened]:
        yield opened

    with pytest.raises(SettingsError, match=f"second cannot be opened: {said}"):
        async with serving(app_of(tmp_path, orders.DOMAIN, Domain("second", second))):
            pass


async def test_a_domain_without_migrations_gets_no_database(tmp_path: Path) -> None:
    @asynccontextmanager
    async def stores(host: Host[None]) -> AsyncIterator[Opened]:
        await host.engine.dispose()
        yield Opened()

    with pytest.raises(SettingsError, match="stores cannot be opened: a domain that stores something or has jobs"):
        async with serving(app_of(tmp_path, Domain("stores", stores))):
            pass
    assert not (tmp_path / "allim.db").exists()


@pytest.mark.parametrize(
    "names", [("accounts",), ("accounts", "keys"), ("accounts", "snapshots"), ("keys",), ("page",)]
)
async def test_domains_serve_without_the_others(tmp_path: Path, names: tuple[str, ...]) -> None:
    account = {"email": "ada@example.org", "name": "Ada", "password": "a good password"}
    async with serving(app_of(tmp_path, *chosen(names))) as client:
        made = await client.post("/api/accounts", json=account)
        paths = (await client.get("/api/openapi.json")).json()["paths"]
        if made.status_code == 201:
            gone = await client.post(
                "/api/accounts/me/deletion",
                json={"password": account["password"]},
                headers={"authorization": f"Bearer {made.json()['token']}"},
            )
            assert gone.status_code == 204

    assert made.status_code == (201 if "accounts" in names else 404)
    assert ("/api/keys" in paths) == ("keys" in names)
    assert ("/api/docs" in paths) == ("page" in names)
    assert ("/api/accounts/me/snapshots" in paths) == ("snapshots" in names)


# -- Real replicas -------------------------------------------------------------------------------------------------


def test_the_hub_alone_makes_no_file_and_describes_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with replica(domains="", data_dir=str(folder), publish_keys="shop:a-secret-of-twenty-chars") as running:
        paths = httpx.get(f"{running.url}/api/openapi.json").json()["paths"]
        ready = httpx.get(f"{running.url}/readyz").json()
        missing = [
            httpx.get(running.url + path).status_code for path in ("/", "/api/docs", "/api/keys", "/api/session")
        ]
        published = httpx.post(
            f"{running.url}/api/publish",
            json={"topic": "system", "type": "shop.open", "data": None},
            headers={"authorization": "Bearer a-secret-of-twenty-chars"},
        )

    assert sorted(paths) == [
        *("/api/asyncapi.json", "/api/catalogue.json", "/api/openapi.json", "/api/publish", "/api/tickets"),
        *("/api/users/{id}/streams", "/events", "/healthz", "/metrics", "/readyz"),
    ]
    assert ready == {"status": "ready", "checks": {"hub": "ok"}}
    assert missing == [404, 404, 404, 404]
    assert published.status_code == 202, published.text
    assert not folder.exists()


def test_the_hub_alone_imports_no_domain() -> None:
    program = (
        "import sys; from allim.app import create_app; from allim.settings import warnings\n"
        "create_app(); assert not warnings()\n"
        "print(sorted(name for name in sys.modules if name == 'argon2' or name.startswith('allim.domains.')))"
    )
    environ = {"ALLIM_DOMAINS": "", "ALLIM_SECRET_KEY": SECRET, "PYTHONPATH": "src"}

    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)

    of_contract = ("builtin", "choice", "domain", "settings", "signals")
    assert done.stdout == f"{[f'allim.domains.{name}' for name in of_contract]}\n"
