"""A page of another origin with nothing but a ticket's URL: what its native EventSource does by itself."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from harness.deployment import Deployment, deployment
from harness.proxy import FaultProxy, fault_proxy
from harness.replicas import ticket, token
from harness.servers import Redis
from playwright.sync_api import Page

from tests.browser.test_origins import origin

LISTEN = """url => {
    window.opened = []; window.heard = []; window.ids = []; window.failures = 0;
    window.source = new EventSource(url);
    source.addEventListener("stream.open", message => opened.push(JSON.parse(message.data)));
    source.addEventListener("t", message => { heard.push(JSON.parse(message.data)); ids.push(message.lastEventId); });
    source.addEventListener("error", () => failures++);
}"""


class Place(NamedTuple):
    """browser → way → nginx → two replicas; `page` is the address of a page elsewhere."""

    system: Deployment
    way: FaultProxy
    page: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.way.port}"


@pytest.fixture(scope="module")
def place(redis: Redis) -> Iterator[Place]:
    with origin() as page:
        settings: dict[str, Any] = {"redis_prefix": "tickets", "cors_origins": page, "retry_ms": 200, "drain_s": 0}
        with deployment(2, redis=redis, proxied=False, **settings) as system:
            assert system.nginx is not None
            with fault_proxy(system.nginx.port) as way:
                yield Place(system, way, page)


def test_after_each_cut_the_browser_resumes_by_itself_with_the_spent_ticket(page: Page, place: Place) -> None:
    system, way = place.system, place.way
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    url = f"{place.url}/events?ticket={ticket(system.url, token('afar', topics=['board']), 'board')}"
    page.goto(place.page)
    page.evaluate(LISTEN, url)
    page.wait_for_function("opened.length === 1")

    def kill_its_replica() -> None:
        holder = page.evaluate("opened.at(-1).replica")
        next(replica for replica in system.replicas if holder == f"replica-{replica.port}").kill()

    for round_, fault in enumerate((way.cut, way.reset, kill_its_replica), 1):
        fault()
        alive = next(replica for replica in system.replicas if replica.process.poll() is None)
        alive.publish(("board", "t", [round_, "away"]), ("user:afar", "t", [round_, "too"]))
        page.wait_for_function(f"heard.length === {2 * round_} && opened.length === {round_ + 1}", timeout=30_000)

    opened, heard, ids, failures = page.evaluate("[opened, heard, ids, failures]")
    assert [opening["resume"] for opening in opened] == ["new", "complete", "complete", "complete"]
    assert heard == [[round_, word] for round_ in (1, 2, 3) for word in ("away", "too")]
    assert failures >= 3
    assert len({id_.partition("~")[2] for id_ in ids}) == 1
    assert {address for address in asked if "/events" in address} == {url}
    system.heal()


def test_a_new_eventsource_cannot_use_a_spent_ticket(page: Page, place: Place) -> None:
    url = f"{place.url}/events?ticket={ticket(place.system.url, token('spent'))}"
    page.goto(place.page)
    page.evaluate(LISTEN, url)
    page.wait_for_function("opened.length === 1")
    page.evaluate("source.close()")

    page.evaluate(LISTEN, url)

    page.wait_for_function("source.readyState === 2")  # for good
    assert page.evaluate("opened") == []
