"""The page in a real browser where allim is mounted under a path of another application."""

from collections.abc import Iterator

import pytest
from harness.replicas import Replica, replica
from playwright.sync_api import Page, Response, expect

WAIT_MS = 15_000


@pytest.fixture(scope="module")
def embedded() -> Iterator[Replica]:
    with replica(mounted=True, program="tests.contracts.embedded") as running:
        yield running


@pytest.fixture
def answers(page: Page) -> list[Response]:
    """Every answer that the page gets."""
    seen: list[Response] = []
    page.on("response", lambda answer: seen.append(answer))
    return seen


def assert_all_found_below(answers: list[Response], root: str) -> None:
    assert answers
    for answer in answers:
        assert answer.url.startswith(f"{root}/"), answer.url
        assert answer.status < 400 or answer.url == f"{root}/api/accounts/me", (answer.status, answer.url)


def test_the_page_with_its_calls_and_its_stream_follows_the_path(
    page: Page, embedded: Replica, answers: list[Response]
) -> None:
    page.goto(f"{embedded.url}/")
    form = page.get_by_test_id("signup-form")
    for name, value in {"email": "min@example.org", "name": "Min", "password": "a good password"}.items():
        form.locator(f"input[name={name}]").fill(value)
    form.locator("button[type=submit]").click()
    expect(page.get_by_test_id("line-state")).to_have_attribute("data-state", "open", timeout=WAIT_MS)

    page.get_by_test_id("request-snapshot").click()

    heard = page.locator("[data-testid=event-row][data-type='snapshots.generated']")
    expect(heard.first).to_be_visible(timeout=WAIT_MS)
    assert_all_found_below(answers, embedded.url)
    assert {cookie["path"] for cookie in page.context.cookies() if cookie["name"] == "allim_session"} == {"/notify"}
    page.reload()
    expect(page.get_by_test_id("line-state")).to_have_attribute("data-state", "open", timeout=WAIT_MS)


def test_the_descriptions_follow_the_path(page: Page, embedded: Replica, answers: list[Response]) -> None:
    page.goto(f"{embedded.url}/api/docs")
    expect(page.locator(".opblock").first).to_be_visible(timeout=WAIT_MS)
    expect(page.locator(".servers")).to_contain_text("/notify")
    page.goto(f"{embedded.url}/api/catalogue")
    expect(page.get_by_test_id("type-card").first).to_be_visible(timeout=WAIT_MS)
    expect(page.get_by_test_id("type-card").first).to_contain_text('new EventSource("/notify/events')

    assert_all_found_below(answers, embedded.url)
