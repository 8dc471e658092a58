"""The page of the description in a real browser: all of it from here, under its policy, and ready to be tried out."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from harness.replicas import Replica, replica
from playwright.sync_api import Locator, Page, expect

WAIT_MS = 15_000
ADA = {"email": "ada@example.org", "name": "Ada", "password": "correct horse battery"}
REPORT_VIOLATIONS = "addEventListener('securitypolicyviolation', (e) => console.error('policy', e.blockedURI))"


@pytest.fixture(scope="module")
def served() -> Iterator[Replica]:
    with replica() as running:
        yield running


def open_docs(page: Page, served: Replica) -> None:
    page.goto(f"{served.url}/api/docs")
    expect(page.locator(".opblock").first).to_be_visible(timeout=WAIT_MS)


def block(page: Page, name: str) -> Locator:
    """An operation by its name in the document, opened."""
    found = page.locator(f".opblock[id$='-{name}']")
    found.locator(".opblock-summary-control").click()
    return found


def test_every_operation_is_shown_without_a_word_to_anybody_else(page: Page, served: Replica) -> None:
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.add_init_script(REPORT_VIOLATIONS)
    open_docs(page, served)
    block(page, "register").locator(".try-out__btn").click()  # its schemas and icons too

    paths = httpx.get(f"{served.url}/api/openapi.json").json()["paths"]
    names = {operation["operationId"] for item in paths.values() for operation in item.values()}
    shown = page.locator(".opblock").evaluate_all("blocks => blocks.map(block => block.id.split('-').pop())")
    assert sorted(shown) == sorted(names)
    assert {urlsplit(url).netloc for url in asked if not url.startswith("data:")} == {urlsplit(served.url).netloc}
    assert complaints == []


def test_an_operation_is_tried_out_as_the_user_who_is_signed_in(page: Page, served: Replica) -> None:
    assert page.request.post(f"{served.url}/api/accounts", data=ADA).status == 201
    open_docs(page, served)
    me = block(page, "me")
    me.locator(".try-out__btn").click()
    me.locator(".execute").click()

    answer = me.locator(".live-responses-table")
    expect(answer.locator(".response-col_status").last).to_contain_text("200", timeout=WAIT_MS)
    expect(answer).to_contain_text(ADA["email"])


def test_a_stream_is_shown_but_not_tried_out(page: Page, served: Replica) -> None:
    open_docs(page, served)
    events = block(page, "events")

    expect(events).to_contain_text("stream.open")
    expect(events.locator(".try-out__btn")).to_have_count(0)


def test_the_page_itself_does_not_load_it(page: Page, served: Replica) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(urlsplit(request.url).path))
    page.goto(served.url)
    expect(page.get_by_test_id("signup-form")).to_be_visible(timeout=WAIT_MS)

    assert [path for path in asked if "docs" in path] == []
