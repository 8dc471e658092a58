"""examples/orders: a domain in a package of its own, installed from its wheel."""

import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness.replicas import ROOT, Reader, bearer
from harness.servers import free_port
from harness.waiting import START_S, until_sync
from playwright.sync_api import Page

from tests.browser.conftest import browser as browser
from tests.browser.conftest import page as page
from tests.examples.conftest import commands_under, run, running

pytestmark = pytest.mark.anyio

SOURCE = ROOT / "examples" / "orders"
README = (SOURCE / "README.md").read_text()
ALL = "accounts,keys,snapshots,page,orders"
WAIT_MS = 60_000
SIGN_UP = """async () => {
    const body = JSON.stringify({email: "min@example.org", name: "Min", password: "correct horse battery"});
    const headers = {"content-type": "application/json"};
    return (await fetch("/api/accounts", {method: "POST", body, headers})).status;
}"""


@dataclass(frozen=True)
class Running:
    """allim with orders, from an environment of its own."""

    folder: Path
    url: str
    programs: Path

    def token(self, subject: str, *options: str) -> str:
        return run(self.folder, " ".join(["allim", "token", subject, *options]), self.programs).strip()

    def place(self, who: str, item: str) -> str:
        """Place an order and return its ID."""
        answer = httpx.post(f"{self.url}/api/orders", json={"item": item}, headers=bearer(who))
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def ship(self, who: str, order_id: str) -> int:
        return httpx.post(f"{self.url}/api/orders/{order_id}/shipment", headers=bearer(who)).status_code

    def orders(self, who: str) -> list[dict[str, Any]]:
        orders: list[dict[str, Any]] = httpx.get(f"{self.url}/api/orders", headers=bearer(who)).json()
        return orders


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheels of allim and of the example in an environment that is empty but for allim's dependencies.

    Those are found in the environment of this test: the one path that a `.pth` file adds, behind the own packages.
    """
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-index", "--no-deps"]
    subprocess.run([*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", folder, ROOT, SOURCE], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", *offline, *folder.glob("*.whl")], check=True)
    [own] = folder.glob("venv/lib/python*/site-packages")
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


@contextmanager
def started(folder: Path, programs: Path, command: str) -> Iterator[Running]:
    """A command that runs allim, ready."""
    url = f"http://127.0.0.1:{free_port()}"
    with running(folder, f"{command} --port {url.rpartition(':')[2]}", "allim", programs) as (process, output):

        def ready() -> bool:
            assert process.poll() is None, output.read_text()
            try:
                return httpx.get(f"{url}/readyz").status_code == 200
            except httpx.TransportError:
                return False

        until_sync(ready, START_S, what=f"allim with orders: {output.read_text()}")
        yield Running(folder, url, programs)


@pytest.fixture(scope="module")
def up(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The example as its README starts it."""
    _, command, _ = commands_under(README, "Run it")
    assert command == f"ALLIM_DOMAINS={ALL} allim up\n"
    with started(tmp_path_factory.mktemp("up"), programs, command.strip()) as one:
        yield one


def test_the_example_is_short() -> None:
    assert sum(len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")) < 120
    assert len(README.splitlines()) < 80


def test_both_packages_are_those_of_their_wheels(programs: Path) -> None:
    printed = run(programs, f"{programs}/python -c 'import allim, orders; print(allim.__file__, orders.__file__)'")

    assert [Path(name).is_relative_to(programs.parent) for name in printed.split()] == [True, True]


def test_the_commands_of_the_readme_show_the_event(up: Running) -> None:
    *_, commands = commands_under(README, "Run it")

    printed = run(up.folder, commands.replace("http://127.0.0.1:8000", up.url), up.programs)

    [order] = up.orders(up.token("min"))
    assert f'event: orders.shipped\ndata: {{"orderId":"{order["id"]}"}}\n' in printed


async def test_the_event_reaches_the_customer_of_the_order_alone(up: Running) -> None:
    ada, ben, warehouse = up.token("ada"), up.token("ben"), up.token("warehouse", "--operator")
    order_id = up.place(ada, "tea")
    query = f"?topics=orders:{order_id}"
    async with (
        await Reader.open(up.url, ada, query=query) as of_ada,
        await Reader.open(up.url, ben, query=query) as refused,
        await Reader.open(up.url, ben, query=f"?topics=orders:{up.place(ben, 'milk')}") as of_ben,
    ):
        assert (of_ada.status, refused.status, of_ben.status) == (200, 403, 200)
        assert [(await stream.next()).type for stream in (of_ada, of_ben)] == ["stream.open"] * 2
        bens = up.orders(ben)[0]["id"]

        assert (up.ship(ada, order_id), up.ship(warehouse, order_id), up.ship(warehouse, order_id)) == (403, 200, 404)
        assert (await of_ada.next("orders.shipped")).data == {"orderId": order_id}
        assert up.ship(warehouse, bens) == 200
        assert (await of_ben.next("orders.shipped")).data == {"orderId": bens}


def test_an_order_is_closed_when_its_receipt_is_sent_and_shown_to_its_customer_alone(up: Running) -> None:
    eve, warehouse = up.token("eve"), up.token("warehouse", "--operator")
    tea, milk = up.place(eve, "tea"), up.place(eve, "milk")
    assert up.ship(warehouse, tea) == 200
    until_sync(lambda: up.orders(eve)[1]["state"] == "closed", what="the receipt")

    assert up.orders(eve) == [
        {"id": milk, "item": "milk", "state": "placed"},
        {"id": tea, "item": "tea", "state": "closed"},
    ]
    assert up.orders(up.token("another")) == []


def test_the_catalogue_and_the_description_list_it(up: Running) -> None:
    types = {each["type"]: each for each in httpx.get(f"{up.url}/api/catalogue.json").json()["types"]}
    paths = httpx.get(f"{up.url}/api/openapi.json").json()["paths"]

    assert types["orders.shipped"]["topic"] == "orders:{orderId}"
    assert types["orders.shipped"]["summary"] == "An order was shipped."
    assert {"/api/orders", "/api/orders/{id}/shipment"} <= paths.keys()


def test_the_event_arrives_in_a_browser(up: Running, page: Page) -> None:
    """As the README says: the page, an account, and the lines for the console."""
    console = README.partition("```js\n")[2].partition("```")[0]
    *statements, order_id = console.strip().splitlines()
    page.goto(up.url)
    assert page.evaluate(SIGN_UP) == 201

    ordered = page.evaluate(
        "async () => {" + "\n".join([*statements, "window.stream = stream;"]) + f"return {order_id} }}"
    )
    page.wait_for_function("() => stream.readyState === EventSource.OPEN", timeout=WAIT_MS)
    with page.expect_console_message(lambda message: "orderId" in message.text, timeout=WAIT_MS) as said:
        assert up.ship(up.token("warehouse", "--operator"), ordered) == 200

    assert said.value.text == f'{{"orderId":"{ordered}"}}'


def test_deleting_the_account_deletes_its_orders(up: Running) -> None:
    account = {"email": "ada@example.org", "name": "Ada", "password": "correct horse battery"}
    ada = httpx.post(f"{up.url}/api/accounts", json=account).json()
    order_id = up.place(ada["token"], "tea")
    url = f"{up.url}/api/accounts/me/deletion"

    gone = httpx.post(url, json={"password": account["password"]}, headers=bearer(ada["token"]))

    assert gone.status_code == 204
    assert up.orders(up.token(ada["account"]["id"])) == []
    assert up.ship(up.token("warehouse", "--operator"), order_id) == 404


def test_orders_outlast_restarts_also_without_the_domain(programs: Path, tmp_path: Path) -> None:
    def serving(domains: str) -> Any:
        return started(tmp_path, programs, f"ALLIM_DOMAINS={domains} allim serve")

    with serving(ALL) as one:
        ada, warehouse = one.token("ada"), one.token("warehouse", "--operator")
        kept = [{"id": one.place(ada, "tea"), "item": "tea", "state": "placed"}]
    with serving(ALL) as one:
        assert one.orders(ada) == kept
    with serving(ALL.removesuffix(",orders")) as one:
        assert httpx.get(f"{one.url}/api/orders", headers=bearer(ada)).status_code == 404
        assert httpx.get(f"{one.url}/api/session", headers=bearer(ada)).status_code == 200
    with serving(ALL) as one:
        assert one.orders(ada) == kept
        assert one.ship(warehouse, kept[0]["id"]) == 200
        until_sync(lambda: one.orders(ada)[0]["state"] == "closed", what="the receipt")
