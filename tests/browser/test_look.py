"""The page at different widths and text sizes, in dark mode and forced colours, with the keyboard, checked by axe."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from harness.replicas import ROOT, Replica, publish, replica
from playwright.sync_api import Browser, FloatRect, Locator, Page, expect

WAIT_MS = 30_000
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
EMAIL = "augusta.ada.king@the.analytical.engine.example"
ADA = {"email": EMAIL, "name": "Augusta Ada King, Countess of Lovelace", "password": "correct horse battery"}
LARGE_TEXT = "document.documentElement.style.fontSize = '200%'"


@pytest.fixture(scope="module")
def served() -> Iterator[Replica]:
    with replica(heartbeat_s=1, drain_s=1, streams_per_user=1, sign_in_tries_per_min=100) as running:
        assert httpx.post(f"{running.url}/api/accounts", json=ADA).status_code == 201
        yield running


@contextmanager
def opened(browser: Browser, width: int = 1280, height: int = 900, **options: Any) -> Iterator[Page]:
    """A page in a profile of its own, with reduced motion."""
    context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
    context.set_default_timeout(WAIT_MS)
    yield context.new_page()
    context.close()


def sign_in(page: Page, served: Replica) -> str:
    """Sign in without the form; the user, once the stream is open."""
    answer = page.request.post(f"{served.url}/api/session", data={key: ADA[key] for key in ("email", "password")})
    assert answer.status == 200, answer.text()
    page.goto(served.url)
    until_open(page)
    return str(answer.json()["account"]["id"])


def until_open(page: Page) -> None:
    expect(page.get_by_test_id("line-state")).to_have_attribute("data-state", "open", timeout=WAIT_MS)


def fill(form: Locator, **values: str) -> None:
    for name, value in values.items():
        form.locator(f"input[name={name}]").fill(value)


def faults(page: Page) -> list[str]:
    """All that axe finds, by all of its rules."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run()")
    return [f"{rule['id']}: {node['html']}" for rule in found["violations"] for node in rule["nodes"]]


# -- Screen readers, contrast -----------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (320, "dark")])
def test_axe_finds_nothing_in_any_state_of_the_page(
    browser: Browser, served: Replica, width: int, scheme: str
) -> None:
    found: dict[str, list[str]] = {}
    with opened(browser, width, color_scheme=scheme) as page:
        page.route("**/api/accounts/me", lambda route: route.abort())
        page.goto(served.url)
        expect(page.get_by_text("The page keeps trying.")).to_be_visible(timeout=WAIT_MS)
        found["allim cannot be reached"] = faults(page)
        page.unroute("**/api/accounts/me")

        page.goto(served.url)
        form = page.get_by_test_id("signup-form")
        expect(form).to_be_visible(timeout=WAIT_MS)
        found["signed out"] = faults(page)
        fill(form, email="x@example.org", name="x", password="short")
        form.locator("button[type=submit]").click()
        expect(page.get_by_test_id("error-password")).to_be_visible(timeout=WAIT_MS)
        found["a refused field"] = faults(page)

        page.goto(f"{served.url}/?sign_in=failed")
        fill(page.get_by_test_id("signin-form"), email=EMAIL, password="not the password")
        page.locator("button[type=submit]").click()
        expect(page.get_by_test_id("form-error")).to_be_visible(timeout=WAIT_MS)
        found["a refused sign-in"] = faults(page)

        sign_in(page, served)
        expect(page.get_by_test_id("event-row").first).to_be_visible(timeout=WAIT_MS)
        found["signed in"] = faults(page)

        page.get_by_test_id("request-snapshot").click()
        expect(page.get_by_test_id("worker-compared").first).to_be_visible(timeout=WAIT_MS)
        page.get_by_test_id("snapshot-open").first.click()
        expect(page.get_by_test_id("snapshot-content")).to_be_visible(timeout=WAIT_MS)
        found["with events and a snapshot"] = faults(page)
        page.get_by_test_id("type-form").locator("input").press("Enter")
        expect(page.get_by_test_id("error-type")).to_be_visible()
        found["a refused type"] = faults(page)

        served.pause()
        try:
            page.get_by_test_id("request-snapshot").click()
            expect(page.get_by_test_id("request-wait")).to_contain_text("Waiting", timeout=WAIT_MS)
            found["waiting"] = faults(page)
        finally:
            served.resume()
        expect(page.get_by_test_id("request-snapshot")).to_have_attribute("aria-disabled", "false", timeout=WAIT_MS)

        page.context.set_offline(True)
        page.get_by_test_id("request-snapshot").click()
        page.get_by_test_id("sign-out").click()
        expect(page.get_by_test_id("sign-out-error")).to_be_visible(timeout=WAIT_MS)
        expect(page.get_by_test_id("request-error")).to_be_visible(timeout=WAIT_MS)
        found["errors"] = faults(page)
        page.context.set_offline(False)

        other = page.context.new_page()
        other.goto(served.url)
        expect(page.get_by_test_id("reopen")).to_be_visible(timeout=WAIT_MS)
        found["replaced by another page"] = faults(page)

    assert {state: found for state, found in found.items() if found} == {}


# -- Widths, large text -----------------------------------------------------------------------------------


def test_nothing_is_cut_off_between_320_and_1600_px_and_with_large_text(browser: Browser, served: Replica) -> None:
    overflowing = []
    with opened(browser) as page:
        page.goto(served.url)
        expect(page.get_by_test_id("signup-form")).to_be_visible(timeout=WAIT_MS)
        for state in ("out", "in"):
            if state == "in":
                sign_in(page, served)
                page.get_by_test_id("request-snapshot").click()
                expect(page.get_by_test_id("worker-compared").first).to_be_visible(timeout=WAIT_MS)
                page.get_by_test_id("snapshot-open").first.click()
                expect(page.get_by_test_id("snapshot-content")).to_be_visible(timeout=WAIT_MS)
            for text in (100, 200):
                page.evaluate("text => document.documentElement.style.fontSize = `${text}%`", text)
                for width in (320, 360, 400, 480, 540, 600, 700, 768, 900, 928, 1024, 1280, 1440, 1600):
                    page.set_viewport_size({"width": width, "height": 900})
                    overflowing += [
                        (state, text, width, box)
                        for box in page.evaluate(BEYOND_THEIR_BOX)
                        if text == 100 or width > 400
                    ]

    assert overflowing == []


BEYOND_THEIR_BOX = """() => [document.documentElement, ...document.querySelectorAll('.card, .header, .button')]
    .filter((box) => box.scrollWidth > box.clientWidth + 1)
    .map((box) => box.className || box.tagName)"""


def test_the_header_keeps_its_order_at_every_width(browser: Browser, served: Replica) -> None:
    broken = []
    with opened(browser) as page:
        sign_in(page, served)
        for width in (480, 520, 560, 600, 640, 680, 700, 768, 900, 930, 1024, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            brand, button = (box(page.locator(name)) for name in (".header .brand", "[data-testid=sign-out]"))
            in_one_line = abs(brand["y"] + brand["height"] / 2 - button["y"] - button["height"] / 2) < 3
            lines = page.locator(".account-email").evaluate(LINES)
            if not in_one_line or lines != 1:
                broken.append((width, in_one_line, lines))

    assert broken == []


LINES = """(place) => {
    const range = document.createRange();
    range.selectNodeContents(place);
    return new Set([...range.getClientRects()].map((line) => line.top)).size;
}"""


def box(locator: Locator) -> FloatRect:
    found = locator.bounding_box()
    assert found
    return found


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (1024, 600), (480, 800)])
def test_at_200_percent_text_the_log_shows_some_rows(
    browser: Browser, served: Replica, width: int, height: int
) -> None:
    with opened(browser, width, height) as page:
        user = sign_in(page, served)
        page.evaluate(LARGE_TEXT)
        rows = page.locator("[data-testid=event-row][data-type='snapshots.progress']")
        for _ in range(10):
            event = {
                "topic": f"user:{user}",
                "type": "snapshots.progress",
                "data": {"snapshotId": "x", "step": 1, "of": 2},
            }
            assert publish(served.url, event).status_code == 202
        expect(rows).to_have_count(10, timeout=WAIT_MS)
        seen = page.get_by_role("log").evaluate("log => log.clientHeight")
        row = box(rows.first)["height"]

    assert seen >= 3 * row


# -- Forced colours, motion -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_forced_colours_what_is_drawn_is_still_seen(browser: Browser, served: Replica, scheme: str) -> None:
    with opened(browser, forced_colors="active", color_scheme=scheme) as page:
        page.goto(served.url)
        expect(page.get_by_test_id("signup-form")).to_be_visible(timeout=WAIT_MS)
        welcome = colours(page, ".wire-line", beside=4)
        sign_in(page, served)
        page.get_by_test_id("request-snapshot").click()
        expect(page.get_by_test_id("worker-compared").first).to_be_visible(timeout=WAIT_MS)
        is_open = colours(page, ".wire-line", beside=4)
        dot = colours(page, ".dot[data-status=generated] >> nth=0")
        other = page.context.new_page()
        other.goto(served.url)
        expect(page.get_by_test_id("reopen")).to_be_visible(timeout=WAIT_MS)
        ended = colours(page, ".wire-line", beside=4)
        page.locator(".dot").first.evaluate("dot => dot.dataset.status = 'pending'")
        pending = colours(page, ".dot >> nth=0")
        page.locator(".snapshot-worker").first.evaluate(
            "place => place.innerHTML = '<progress value=1 max=2></progress>'"
        )
        progress = colours(page, "progress")

    assert min(len(welcome), len(is_open), len(ended), len(dot), len(progress)) >= 2
    assert dot[0] != pending[0]  # the most frequent: filled or not


def colours(page: Page, selector: str, beside: int = 0) -> list[str]:
    """The colours of an element as it is painted, the most frequent first; `beside` are pixels above and below it."""
    area = box(page.locator(selector))
    area["y"] -= beside
    area["height"] += 2 * beside
    png = base64.b64encode(page.screenshot(clip=area)).decode()
    found: list[str] = page.evaluate(COLOURS, f"data:image/png;base64,{png}")
    return found


COLOURS = """async (url) => {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
    canvas.drawImage(image, 0, 0);
    const { data } = canvas.getImageData(0, 0, image.width, image.height);
    const counts = new Map();
    for (let at = 0; at < data.length; at += 4) {
        const colour = data.slice(at, at + 3).join();
        counts.set(colour, (counts.get(colour) ?? 0) + 1);
    }
    return [...counts].sort((a, b) => b[1] - a[1]).map(([colour]) => colour);
}"""


def test_nothing_moves_with_reduced_motion(browser: Browser, served: Replica) -> None:
    with opened(browser) as page:
        sign_in(page, served)
        page.get_by_test_id("request-snapshot").click()
        expect(page.get_by_test_id("worker-compared").first).to_be_visible(timeout=WAIT_MS)
        moving = page.evaluate("document.getAnimations().length")

    assert moving == 0


# -- Keyboard ---------------------------------------------------------------------------------------------


def test_with_the_keyboard_alone_the_focus_is_never_lost(browser: Browser, served: Replica) -> None:
    with opened(browser) as page:
        page.goto(f"{served.url}/?sign_in=failed")
        form = page.get_by_test_id("signin-form")
        fill(form, email=EMAIL, password=ADA["password"])
        page.keyboard.press("Enter")
        until_open(page)
        after_sign_in = focused(page)

        other = page.context.new_page()
        other.goto(served.url)
        expect(page.get_by_test_id("reopen")).to_be_visible(timeout=WAIT_MS)
        page.get_by_test_id("reopen").focus()
        page.keyboard.press("Enter")
        until_open(page)
        after_reopening = focused(page)

        page.get_by_test_id("sign-out").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_test_id("signin-form")).to_be_visible(timeout=WAIT_MS)
        after_sign_out = focused(page)

    assert (after_sign_in, after_reopening, after_sign_out) == ("H1", "H2", "H2")


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.tagName"))


def test_a_request_that_takes_long_says_what_it_waits_for_and_keeps_the_focus(
    browser: Browser, served: Replica
) -> None:
    with opened(browser) as page:
        sign_in(page, served)
        button, wait = page.get_by_test_id("request-snapshot"), page.get_by_test_id("request-wait")
        button.focus()
        served.pause()
        try:
            page.keyboard.press("Enter")
            expect(button).to_have_text("Requesting…", timeout=WAIT_MS)
            expect(button).to_have_attribute("aria-disabled", "true")
            expect(button).to_have_accessible_description("Waiting for the answer, for at most 15 s.")
            expect(wait).to_be_visible()
            expect(button).to_be_focused()
        finally:
            served.resume()

        expect(button).to_have_text("Request a snapshot", timeout=WAIT_MS)
        expect(button).to_have_attribute("aria-disabled", "false")
        expect(button).to_be_focused()
        expect(wait).to_be_empty()


# -- Words that are true ----------------------------------------------------------------------------------


def test_that_allim_cannot_be_reached_is_gone_once_it_can(browser: Browser, served: Replica) -> None:
    with opened(browser) as page:
        sign_in(page, served)
        served.kill()
        page.get_by_test_id("request-snapshot").click()
        page.get_by_test_id("sign-out").click()
        expect(page.get_by_text("cannot be reached").nth(1)).to_be_visible(timeout=WAIT_MS)

        served.start()
        served.until_ready()

        until_open(page)
        expect(page.get_by_text("cannot be reached")).to_have_count(0, timeout=WAIT_MS)
