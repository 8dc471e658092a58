"""Two builds of the page: a rolling deployment behind nginx, and an open page whose replica gets another one."""

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from harness.deployment import Nginx
from harness.replicas import ROOT, Replica, launch_replica
from harness.servers import lasting_port
from playwright.sync_api import Browser, Page, expect

from allim.up import private_folder

VISITS = 20
SEEN = 6  # in a browser
WAIT_MS = 30_000


@dataclass(frozen=True)
class Build:
    """An installation of the package with a built page inside, as the wheel has it."""

    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.folder)}

    @property
    def page(self) -> Path:
        return self.folder / "allim" / "web"

    def assets(self) -> set[str]:
        return {f"/assets/{path.name}" for path in (self.page / "assets").iterdir()}


def install(folder: Path) -> Build:
    build = Build(folder)
    shutil.copytree(ROOT / "src" / "allim", folder / "allim", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "web" / "dist", build.page)
    return build


def change(build: Build) -> None:
    """Give every asset another hash, as a build of changed sources does."""
    names = [path.name for path in (build.page / "assets").iterdir()]
    others = {name: re.sub(r"-(.{8})\.", lambda found: f"-{found[1][::-1]}.", name) for name in names}
    assert not set(names) & set(others.values())
    for path in [*build.page.glob("*.html"), *build.page.glob("assets/*")]:
        text = path.read_text()
        for name, other in others.items():
            text = text.replace(name, other)
        path.write_text(text)
    for name, other in others.items():
        (build.page / "assets" / name).rename(build.page / "assets" / other)


@pytest.fixture
def folder() -> Iterator[Path]:
    with private_folder() as folder:
        yield folder


def launch(stack: ExitStack, build: Build) -> Replica:
    running = launch_replica(build.folder, environ=build.environ, heartbeat_s=1, drain_s=1)
    stack.callback(running.end)
    return running


def test_every_visit_during_a_rolling_deployment_shows_the_page(browser: Browser, folder: Path) -> None:
    builds = [install(folder / "old"), install(folder / "new")]
    change(builds[1])
    with ExitStack() as stack:
        replicas = [launch(stack, build) for build in builds]
        front = Nginx(lasting_port(), folder / "nginx", folder / "nginx.log")
        front.configure(*(replica.port for replica in replicas))
        front.start()
        stack.callback(front.end)
        for replica in replicas:
            replica.until_ready()

        with httpx.Client(base_url=front.url) as client:
            visits = [visit(client, path) for _ in range(VISITS) for path in ("/", "/api/docs")]
        for _ in range(SEEN):
            context = browser.new_context()
            page = context.new_page()
            page.goto(front.url)
            expect(page.get_by_test_id("signup-form")).to_be_visible(timeout=WAIT_MS)
            context.close()

    for build in builds:
        assert any(build.assets() & set(names) for names in visits), "only the other build was visited"


def visit(client: httpx.Client, path: str) -> list[str]:
    """Fetch a page and all files that it names."""
    names = re.findall(r"/(?:assets/|favicon)[^\"]+", client.get(path).text)
    answers = [client.get(name) for name in names]
    assert answers
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    return names


def test_an_open_page_goes_on_when_its_replica_has_another_build(page: Page, folder: Path) -> None:
    build = install(folder / "app")
    failed: list[str] = []
    page.on("response", lambda answer: failed.append(answer.url) if answer.status == 404 else None)
    page.on("pageerror", lambda error: failed.append(str(error)))
    with ExitStack() as stack:
        replica = launch(stack, build)
        replica.until_ready()
        page.goto(replica.url)
        form = page.get_by_test_id("signup-form")
        for name, value in {"email": "open@example.org", "name": "Ada", "password": "correct horse battery"}.items():
            form.locator(f"input[name={name}]").fill(value)
        form.locator("button[type=submit]").click()
        expect(page.get_by_test_id("line-state")).to_have_attribute("data-state", "open", timeout=WAIT_MS)

        assert replica.drain(30) == 0
        change(build)
        replica.start()
        replica.until_ready()

        expect(page.get_by_test_id("line-state")).to_have_attribute("data-state", "open", timeout=60_000)
        page.get_by_test_id("request-snapshot").click()
        expect(page.get_by_test_id("worker").first).to_be_visible(timeout=WAIT_MS)
        page.get_by_test_id("snapshot-open").first.click()
        expect(page.get_by_test_id("snapshot-content")).to_be_visible(timeout=WAIT_MS)
        page.get_by_test_id("sign-out").click()
        expect(page.get_by_test_id("signin-form")).to_be_visible(timeout=WAIT_MS)

    assert failed == []


def test_caches_keep_what_never_changes_and_ask_for_all_else(folder: Path) -> None:
    build = install(folder / "app")
    with ExitStack() as stack:
        replica = launch(stack, build)
        replica.until_ready()
        with httpx.Client(base_url=replica.url) as client:
            assets = [client.get(path) for path in sorted(build.assets())]
            again = client.get(assets[0].url.path, headers={"If-None-Match": assets[0].headers["etag"]})
            pages = [client.get(path) for path in ("/", "/api/docs", "/favicon.svg")]
            missing = [client.get("/assets/index-gone.js"), client.post("/assets/index-gone.js")]

    for answer in [*assets, again]:
        assert answer.headers.get_list("cache-control") == ["public, max-age=31536000, immutable"]
    assert again.status_code == 304
    assert [answer.headers["cache-control"] for answer in pages] == ["no-cache"] * 3
    assert [answer.headers["cache-control"] for answer in missing] == ["no-store"] * 2
