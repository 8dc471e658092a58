"""The page in a real browser: native EventSource, cookies, forms, through nginx to three replicas."""

from typing import Any

import httpx
from harness.cluster import Cluster
from harness.replicas import publish
from playwright.sync_api import Page, expect

PRESSES = 20
WAIT_MS = 15_000


def sign_up(page: Page, system: Cluster, email: str) -> dict[str, Any]:
    """Fill in the form; the account, once the stream is open."""
    page.goto(system.url)
    form = page.get_by_test_id("signup-form")
    for name, value in {"email": email, "name": "Ada", "password": "correct horse battery"}.items():
        form.locator(f"input[name={name}]").fill(value)
    with page.expect_response(f"{system.url}/api/accounts") as answered:
        form.locator("button[type=submit]").click()
    expect(page.get_by_test_id("line-state")).to_have_attribute("data-state", "open", timeout=WAIT_MS)
    account: dict[str, Any] = answered.value.json()["account"]
    return account


def test_each_press_of_the_button_is_answered_by_an_event_whichever_replica_works(
    page: Page, system: Cluster
) -> None:
    sign_up(page, system, "presses@example.org")
    button = page.get_by_test_id("request-snapshot")
    heard = page.locator("[data-testid=event-row][data-type='snapshots.generated']")
    workers = set()

    for _ in range(PRESSES):
        expect(button).to_have_attribute("aria-disabled", "false")
        with page.expect_response(lambda answer: answer.request.method == "POST") as answered:
            button.click()
        snapshot_id = answered.value.json()["id"]
        row = page.locator(f"[data-testid=snapshot-row][data-snapshot-id='{snapshot_id}']")
        expect(heard.filter(has_text=snapshot_id)).to_have_count(1, timeout=WAIT_MS)
        expect(row).to_have_attribute("data-status", "generated")
        workers.add(row.get_by_test_id("worker").inner_text())

    assert len(workers) > 1
    assert workers <= {member.name for member in system.members}


def test_the_stream_comes_back_by_itself_when_its_replica_is_killed(page: Page, system: Cluster) -> None:
    system.until_whole()
    account = sign_up(page, system, "survivor@example.org")
    form = page.get_by_test_id("type-form").locator("input")
    form.fill("orders.shipped")
    form.press("Enter")
    holder = system.member(page.get_by_test_id("replica").inner_text())
    first = page.get_by_test_id("stream-id").inner_text()

    with holder.down():
        event = {"topic": f"user:{account['id']}", "type": "orders.shipped", "data": {"n": 1}}
        assert publish(system.others(holder.name)[0].url, event).status_code == 202

        expect(page.get_by_test_id("stream-id")).not_to_have_text(first, timeout=WAIT_MS)
        line = page.get_by_test_id("line-state")
        expect(line).to_have_attribute("data-state", "open")
        expect(line).to_have_attribute("data-resume", "complete")
        expect(page.get_by_test_id("replica")).not_to_have_text(holder.name)
        expect(page.locator("[data-testid=event-row][data-type='orders.shipped']")).to_have_count(1)


def test_a_sign_out_in_one_window_ends_the_other(page: Page, system: Cluster) -> None:
    sign_up(page, system, "windows@example.org")
    other = page.context.new_page()
    other.goto(system.url)
    expect(other.get_by_test_id("line-state")).to_have_attribute("data-state", "open", timeout=WAIT_MS)

    other.get_by_test_id("sign-out").click()

    expect(page.get_by_test_id("notice")).to_have_text("You are signed out.", timeout=WAIT_MS)
    expect(page.get_by_test_id("signin-form")).to_be_visible()


def test_how_signing_in_went_is_told_once(page: Page, system: Cluster) -> None:
    page.goto(f"{system.url}/?sign_in=cancelled")

    expect(page.get_by_test_id("notice")).to_contain_text("cancelled")
    expect(page).to_have_url(f"{system.url}/")
    page.reload()
    expect(page.get_by_test_id("signup-form")).to_be_visible()
    expect(page.get_by_test_id("notice")).to_have_count(0)


def test_the_page_works_under_its_own_security_policy(page: Page, system: Cluster) -> None:
    violations: list[str] = []
    page.on("console", lambda message: violations.append(message.text) if "Security Policy" in message.text else None)
    with page.expect_response(f"{system.url}/") as answered:
        sign_up(page, system, "policy@example.org")
    page.get_by_test_id("request-snapshot").click()
    expect(page.get_by_test_id("snapshot-row").locator("[data-testid=worker]").first).to_be_visible(timeout=WAIT_MS)

    assert "script-src 'self'" in answered.value.headers["content-security-policy"]
    assert violations == []


def test_what_is_wrong_is_shown_beside_its_field(page: Page, system: Cluster) -> None:
    taken = {"email": "taken@example.org", "name": "Ada", "password": "correct horse battery"}
    assert httpx.post(f"{system.url}/api/accounts", json=taken).status_code == 201
    page.goto(system.url)
    form = page.get_by_test_id("signup-form")
    for name, value in taken.items():
        form.locator(f"input[name={name}]").fill(value)
    form.locator("button[type=submit]").click()

    expect(page.get_by_test_id("error-email")).to_be_visible()
