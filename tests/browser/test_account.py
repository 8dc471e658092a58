"""Accounts and sessions in a real browser: several tabs, several accounts, and the dialog of one's own account."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from harness.providers import CLIENT_ID, CLIENT_SECRET, JIWOO, ProviderDouble, provider_double
from harness.replicas import SECRET, Replica, bearer, replica
from harness.servers import lasting_port
from harness.waiting import until_sync
from playwright.sync_api import Browser, BrowserContext, Page, Response, expect

from allim.access.tokens import Tokens

WAIT_MS = 20_000
PASSWORD = "correct horse battery"
LIFETIME_S = 86_400
STREAM_LIFETIME_S = 4  # so that a page soon opens its next stream, with the cookie of that moment
PROVIDER = "/api/session/providers/google"
NAME = str(JIWOO["name"])  # whom the provider knows


@dataclass
class Site:
    """A replica with its page, and a provider to sign in over."""

    served: Replica
    double: ProviderDouble

    @property
    def url(self) -> str:
        return self.served.url

    def register(self, name: str) -> dict[str, Any]:
        """Make an account from elsewhere; its body with the token."""
        account = {"email": f"{name}@example.org", "name": name, "password": PASSWORD}
        answer = httpx.post(f"{self.url}/api/accounts", json=account)
        assert answer.status_code == 201, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def snapshots(self, token: str) -> int:
        answer = httpx.get(f"{self.url}/api/accounts/me/snapshots", headers=bearer(token))
        return len(answer.json()["items"])


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    port = lasting_port()
    with (
        provider_double() as double,
        replica(
            port=port,
            public_url=f"http://127.0.0.1:{port}",
            google_client_id=CLIENT_ID,
            google_client_secret=CLIENT_SECRET,
            google_issuer=double.issuer,
            stream_lifetime_s=STREAM_LIFETIME_S,
            retry_ms=100,
            heartbeat_s=1,
        ) as served,
    ):
        yield Site(served, double)


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    context.set_default_timeout(WAIT_MS)
    yield context
    context.close()


def use(context: BrowserContext, site: Site, token: str) -> None:
    """Sign the browser in, as a sign-in of another tab does that tells the pages nothing."""
    context.add_cookies([{"name": "allim_session", "value": token, "url": site.url, "httpOnly": True}])


def opened(context: BrowserContext, site: Site, token: str) -> Page:
    use(context, site, token)
    page = context.new_page()
    page.goto(site.url)
    expect(page.get_by_test_id("line-state")).to_have_attribute("data-state", "open", timeout=WAIT_MS)
    return page


def cookie_names(context: BrowserContext) -> list[str]:
    return [str(cookie.get("name")) for cookie in context.cookies()]


def shows(page: Page, name: str) -> None:
    expect(page.get_by_test_id("account")).to_contain_text(name, timeout=WAIT_MS)


# Several tabs ---------------------------------------------------------------------------------------------------


def test_two_tabs_sign_in_over_a_provider_at_the_same_time(context: BrowserContext, site: Site) -> None:
    tabs = [context.new_page() for _ in range(2)]
    begun = [context.request.get(f"{site.url}{PROVIDER}", max_redirects=0).headers["location"] for _ in tabs]

    for tab, address in zip(tabs, begun, strict=True):
        tab.goto(address)
        shows(tab, NAME)
        assert tab.url == f"{site.url}/"
    assert cookie_names(context) == ["allim_session"]


def test_a_stale_answer_of_a_provider_signs_nobody_out(context: BrowserContext, site: Site) -> None:
    ada = site.register("stale")
    page = opened(context, site, ada["token"])

    page.goto(f"{site.url}{PROVIDER}/callback?code=x&state=of-long-ago")

    shows(page, "stale")
    assert page.url == f"{site.url}/"


def test_a_tab_shows_the_account_that_another_tab_has_signed_in_to(context: BrowserContext, site: Site) -> None:
    first = opened(context, site, site.register("first")["token"])
    shows(first, "first")

    second = context.new_page()
    second.goto(f"{site.url}{PROVIDER}")

    shows(second, NAME)
    shows(first, NAME)


def test_a_tab_whose_next_stream_is_another_users_shows_that_user(context: BrowserContext, site: Site) -> None:
    page = opened(context, site, site.register("streamer")["token"])
    use(context, site, site.register("successor")["token"])

    shows(page, "successor")
    expect(page.get_by_test_id("line-state")).to_have_attribute("data-resume", "new", timeout=WAIT_MS)


def test_what_is_pressed_in_a_page_of_one_account_is_not_done_in_another(context: BrowserContext, site: Site) -> None:
    ada, ben = site.register("presser"), site.register("bystander")
    page = opened(context, site, ada["token"])
    until_sync(lambda: site.snapshots(ben["token"]) == 1, what="the first snapshot")
    button = page.get_by_test_id("request-snapshot")
    expect(button).to_have_attribute("aria-disabled", "false")
    use(context, site, ben["token"])
    with page.expect_response(lambda answer: answer.request.method == "POST") as answered:
        button.click()

    assert answered.value.status == 409
    assert answered.value.json()["code"] == "other_user"
    shows(page, "bystander")
    assert (site.snapshots(ada["token"]), site.snapshots(ben["token"])) == (1, 1)


# Renewal --------------------------------------------------------------------------------------------------------


def of_age(token: str, age_s: float) -> str:
    """A token of the same session, issued so long ago."""
    now = time.time()
    then = Tokens([SECRET], LIFETIME_S, now=lambda: now - age_s)
    identity = Tokens([SECRET], LIFETIME_S)._claims_as_written(token)
    assert identity
    return then.issue(str(identity["sub"]), session=str(identity["sid"]), after_kick=0.0)


def is_renewal(answer: Response) -> bool:
    return answer.url.endswith("/api/session/renew")


def cookie(context: BrowserContext) -> str:
    return next(str(cookie.get("value")) for cookie in context.cookies() if cookie.get("name") == "allim_session")


def test_a_session_past_half_of_its_life_is_renewed_when_a_page_opens(context: BrowserContext, site: Site) -> None:
    old = of_age(site.register("opener")["token"], LIFETIME_S / 2 + 60)
    use(context, site, old)
    page = context.new_page()
    with page.expect_response(is_renewal) as renewed:
        page.goto(site.url)

    assert renewed.value.status == 200
    until_sync(lambda: cookie(context) != old, what="the new cookie")
    life = httpx.get(f"{site.url}/api/session", headers=bearer(cookie(context))).json()
    assert life["expiresInS"] > LIFETIME_S - 120
    assert life["renewalDue"] is False


def test_a_session_past_half_of_its_life_is_renewed_when_a_page_is_seen_again(
    context: BrowserContext, site: Site
) -> None:
    account = site.register("seer")
    use(context, site, account["token"])
    page = context.new_page()
    page.clock.install()
    with page.expect_response(lambda answer: answer.url.endswith("/api/session")) as asked:
        page.goto(site.url)
    assert asked.value.json()["renewalDue"] is False
    use(context, site, of_age(account["token"], LIFETIME_S / 2 + 60))
    page.clock.fast_forward(60_000)

    with page.expect_response(is_renewal) as renewed:
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

    assert renewed.value.status == 200


# The dialog -----------------------------------------------------------------------------------------------------


def test_the_dialog_ends_sessions_changes_the_password_and_deletes_the_account(
    context: BrowserContext, site: Site
) -> None:
    account = site.register("owner")
    agent = {"user-agent": "curl/8.5.0"}
    credentials = {"email": "owner@example.org", "password": PASSWORD}
    other = httpx.post(f"{site.url}/api/session", json=credentials, headers=agent).json()["token"]
    page = opened(context, site, account["token"])
    page.get_by_test_id("open-account").click()
    rows = page.get_by_test_id("session-row")
    expect(rows).to_have_count(2)
    expect(rows.filter(has=page.get_by_test_id("current-session"))).to_have_count(1)

    rows.filter(has_text="curl").get_by_test_id("end-session").click()
    expect(rows).to_have_count(1)
    assert httpx.get(f"{site.url}/api/accounts/me", headers=bearer(other)).json()["code"] == "signed_out"

    form = page.get_by_test_id("password-form")
    form.locator("input[name=currentPassword]").fill("wrong")
    form.locator("input[name=newPassword]").fill("battery staple horse")
    form.locator("button").click()
    expect(page.get_by_test_id("error-currentPassword")).to_have_text("is wrong")
    form.locator("input[name=currentPassword]").fill(PASSWORD)
    form.locator("button").click()
    expect(page.get_by_test_id("password-changed")).to_contain_text("changed")
    assert httpx.post(f"{site.url}/api/session", json=credentials).status_code == 401
    expect(page.get_by_test_id("line-state")).to_have_attribute("data-state", "open", timeout=WAIT_MS)

    page.get_by_test_id("ask-deletion").click()
    form = page.get_by_test_id("deletion-form")
    form.locator("input[name=password]").fill("battery staple horse")
    form.locator("button[type=submit]").click()
    expect(page.get_by_test_id("notice")).to_have_text("Your account is deleted.")
    assert cookie_names(context) == []
    credentials["password"] = "battery staple horse"
    assert httpx.post(f"{site.url}/api/session", json=credentials).status_code == 401


def test_an_account_of_a_provider_is_deleted_without_a_password(context: BrowserContext, site: Site) -> None:
    site.double.person = {"sub": "leaving-1", "name": "Leaving"}
    page = context.new_page()
    page.goto(f"{site.url}{PROVIDER}")
    shows(page, "Leaving")
    page.get_by_test_id("open-account").click()
    expect(page.get_by_test_id("no-password")).to_be_visible()
    expect(page.get_by_test_id("password-form")).to_have_count(0)

    page.get_by_test_id("ask-deletion").click()
    page.get_by_test_id("deletion-form").locator("button[type=submit]").click()

    expect(page.get_by_test_id("notice")).to_have_text("Your account is deleted.")
    site.double.reset()
