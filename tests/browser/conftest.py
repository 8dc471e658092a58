"""A real browser in front of a real cluster."""

import shutil
from collections.abc import Iterator

import pytest
from harness.cluster import Cluster, cluster
from playwright.sync_api import Browser, Page, sync_playwright

_QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP *.example.test 127.0.0.1",
]  # fmt: skip


@pytest.fixture(scope="module")
def system() -> Iterator[Cluster]:
    with cluster(replicas=3) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "chromium is missing: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page in a profile of its own: no cookies of earlier tests."""
    context = browser.new_context()
    yield context.new_page()
    context.close()
