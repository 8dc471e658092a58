"""examples/fastapi-shop: a shop with its own users, and allim beside it or inside."""

import json
from pathlib import Path

import httpx
import pytest
from harness.replicas import Reader, bearer
from harness.waiting import PATIENCE_S, until_sync
from starlette.requests import HTTPConnection

from allim.app import create_app
from allim.identity import Identity
from allim.settings import load_settings
from tests.examples.conftest import SOURCE, Shop, commands_under

pytestmark = pytest.mark.anyio

MIN, JAE = ("min@example.org", "a good password"), ("jae@example.org", "another password")


def test_the_example_is_short() -> None:
    for form in ("sidecar.py", "mounted.py"):
        assert sum(len((SOURCE / name).read_text().splitlines()) for name in ("shop.py", form)) < 120
    assert len((SOURCE / "README.md").read_text().splitlines()) < 80


def test_the_commands_of_the_readme_show_an_order(shop: Shop) -> None:
    [commands] = commands_under(shop.readme, "See it")

    printed = shop.run(commands)

    order = json.loads(printed[printed.index('{"orderId"') :].splitlines()[0].partition("}")[0] + "}")
    assert f"event: orders.placed\ndata: {json.dumps(order, separators=(',', ':'))}" in printed


async def test_an_order_reaches_the_streams_of_its_user_alone(shop: Shop) -> None:
    min_, jae = shop.sign_in(*MIN), shop.sign_in(*JAE)
    async with (
        await Reader.open(shop.notify, "", cookie=min_) as of_min,
        await Reader.open(shop.notify, "", cookie=jae) as of_jae,
    ):
        assert (await of_min.next("stream.open")).data["user"] == "42"
        assert (await of_jae.next("stream.open")).data["user"] == "43"

        ordered = [shop.order(cookie).json() for cookie in (min_, jae)]

        assert [(await stream.next("orders.placed")).data for stream in (of_min, of_jae)] == ordered


async def test_a_killed_replica_costs_no_event(sidecar: Shop) -> None:
    assert sidecar.cluster is not None
    sidecar.cluster.until_whole()
    cookie = sidecar.sign_in(*MIN)
    assert len(sidecar.cluster.members) == 3
    first = await Reader.open(sidecar.notify, "", cookie=cookie)
    opened = await first.next("stream.open")

    with sidecar.cluster.member(opened.data["replica"]).down():
        await first.rest()
        first.abort()
        ordered = until_sync(lambda: _accepted(sidecar.order(cookie)), PATIENCE_S, what="an order")
        async with await Reader.open(sidecar.notify, "", cookie=cookie, last_event_id=opened.id) as second:
            again = await second.next("stream.open")
            assert (again.data["resume"], again.data["replica"] != opened.data["replica"]) == ("complete", True)
            assert (await second.next("orders.placed")).data == ordered


def _accepted(answer: httpx.Response) -> object:
    return answer.json() if answer.status_code == 201 else None


def test_a_token_that_allim_signed_is_a_stranger_to_the_shop(shop: Shop) -> None:
    token = shop.run("allim token 42").strip()

    assert httpx.head(f"{shop.notify}/events", headers=bearer(token)).status_code == 200
    assert shop.order(f"shop_session={token}").status_code == 401
    assert shop.order(shop.sign_in(*MIN)).status_code == 201


async def test_a_user_that_allim_has_never_seen_is_one_all_the_same(shop: Shop) -> None:
    cookie = f"shop_session={shop.token('guest|김')}"

    async with await Reader.open(shop.notify, "", cookie=cookie) as stream:
        assert (await stream.next("stream.open")).data["user"] == "guest|김"
    for refused in (shop.token("42", iss="https://other.example.org"), shop.token("42", exp=1), "nothing"):
        answer = httpx.head(f"{shop.notify}/events", headers={"cookie": f"shop_session={refused}"})
        assert answer.status_code == 401
        assert shop.order(f"shop_session={refused}").status_code == 401


def test_the_hub_alone_has_no_session_to_renew_and_no_database(shop: Shop) -> None:
    answer = httpx.post(f"{shop.notify}/api/session/renew", headers={"cookie": shop.sign_in(*MIN)})

    assert answer.status_code == 404
    assert not list(shop.folder.rglob("*.db"))


@pytest.mark.parametrize("form", ["issuers", "authenticate"])
async def test_with_accounts_too_allim_renews_no_token_of_the_shop(mounted: Shop, tmp_path: Path, form: str) -> None:
    environ = {"ALLIM_DATA_DIR": str(tmp_path), "ALLIM_COOKIE_NAME": "shop_session"}
    if form == "issuers":
        environ["ALLIM_ISSUERS"] = str(mounted.folder / "issuers.json")

    def authenticate(connection: HTTPConnection) -> Identity | None:
        return Identity.of("42", session="s1") if "shop_session" in connection.cookies else None

    app = create_app(load_settings(environ), authenticate=authenticate if form == "authenticate" else None)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    async with app.router.lifespan_context(app), client:
        cookie = {"cookie": f"shop_session={mounted.token('42')}"}

        assert (await client.get("/api/session", headers=cookie)).json()["user"] == "42"
        answer = await client.post("/api/session/renew", headers=cookie)
        assert answer.status_code == {"issuers": 422, "authenticate": 401}[form]
        assert "set-cookie" not in answer.headers
