"""The catalogue's page in a real browser: every type of the catalogue, under the page's policy, readable for all."""

from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

import httpx
import pytest
from harness.replicas import PUBLISH_KEY, Replica, replica
from playwright.sync_api import Browser, Page, expect

from tests.browser.test_look import faults
from tests.catalogue.test_file import ORDERS

WAIT_MS = 15_000
REPORT_VIOLATIONS = "addEventListener('securitypolicyviolation', (e) => console.error('policy', e.blockedURI))"


@pytest.fixture(scope="module")
def served() -> Iterator[Replica]:
    with replica(catalogue=ORDERS) as running:
        yield running


def open_catalogue(page: Page, served: Replica) -> None:
    page.goto(f"{served.url}/api/catalogue")
    expect(page.get_by_test_id("type-card").first).to_be_visible(timeout=WAIT_MS)


def test_every_type_is_shown_without_a_word_to_anybody_else(page: Page, served: Replica) -> None:
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.add_init_script(REPORT_VIOLATIONS)
    open_catalogue(page, served)

    types = [each["type"] for each in httpx.get(f"{served.url}/api/catalogue.json").json()["types"]]
    shown = page.get_by_test_id("type-card").evaluate_all("cards => cards.map(card => card.id)")
    assert sorted(shown) == sorted(types)
    assert {urlsplit(url).netloc for url in asked} == {urlsplit(served.url).netloc}
    assert complaints == []


def test_a_type_shows_its_topic_fields_and_example(page: Page, served: Replica) -> None:
    open_catalogue(page, served)
    card = page.locator("[id='orders.shipped']")

    expect(card).to_contain_text("orders:{orderId}")
    expect(card.get_by_role("row", name="lines[].count")).to_contain_text("whole number, ≥ 1")
    expect(card.get_by_role("row", name="total.currency")).to_contain_text('"EUR" | "KRW" | "USD"')
    expect(card).to_contain_text('"sku": "A-1"')


def test_the_command_that_is_shown_is_published_as_it_stands(page: Page, served: Replica) -> None:
    open_catalogue(page, served)
    card = page.locator("[id='notices.posted']")
    card.get_by_text("Publish and read it").click()
    command = card.locator("pre", has_text="curl").inner_text()

    body = command.split("-d '")[1].removesuffix("'")
    headers = {"authorization": f"Bearer {PUBLISH_KEY}", "content-type": "application/json"}
    assert f"{served.url}/api/publish" in command
    assert httpx.post(f"{served.url}/api/publish", content=body, headers=headers).status_code == 202


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_wrong(browser: Browser, served: Replica, scheme: Literal["light", "dark"]) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 390, "height": 900})
    page = context.new_page()
    open_catalogue(page, served)

    assert faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()
