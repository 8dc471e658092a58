"""The page of examples/fastapi-shop in a real browser: the shop's own cookie opens the stream."""

from playwright.sync_api import Page, expect

from tests.browser.conftest import browser as browser
from tests.browser.conftest import page as page
from tests.examples.conftest import Shop

WAIT_MS = 15_000


def test_an_order_appears_on_the_page(shop: Shop, page: Page) -> None:
    page.goto(shop.url)
    page.locator("#sign-in").click()
    expect(page.locator("#log")).to_contain_text('"user":"42"', timeout=WAIT_MS)

    with page.expect_response(f"{shop.url}/orders") as answered:
        page.locator("#order").click()

    expect(page.locator("#log")).to_contain_text(answered.value.json()["orderId"], timeout=WAIT_MS)
