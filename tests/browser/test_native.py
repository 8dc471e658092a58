"""A native EventSource that nobody helps: no page, no client library, only what the browser does by itself."""

import time
from contextlib import ExitStack

from harness.cluster import Cluster
from harness.replicas import publish
from playwright.sync_api import Page

ABSENCE_S = 8  # long enough for several attempts: nginx says 1.0 to 4.8 s
WAIT_MS = 30_000

SIGN_UP = """async () => {
    const body = JSON.stringify({email: "native@example.org", name: "Ada", password: "correct horse battery"});
    const headers = {"content-type": "application/json"};
    const answer = await fetch("/api/accounts", {method: "POST", body, headers});
    return (await answer.json()).account.id;
}"""
LISTEN = """() => {
    window.opened = []; window.heard = []; window.failures = 0;
    window.source = new EventSource("/events");
    source.addEventListener("stream.open", message => opened.push(JSON.parse(message.data).resume));
    source.addEventListener("t", message => heard.push(JSON.parse(message.data)));
    source.addEventListener("error", () => failures++);
}"""


def test_it_comes_back_complete_after_a_while_without_any_replica(page: Page, system: Cluster) -> None:
    page.goto(system.url)  # any page of this origin whose policy lets it ask
    topic = f"user:{page.evaluate(SIGN_UP)}"
    page.evaluate(LISTEN)
    page.wait_for_function("() => opened.length === 1")
    publish(system.url, {"topic": topic, "type": "t", "data": "before"})
    page.wait_for_function("() => heard.length === 1")

    with ExitStack() as stack:
        for member in system.members:
            stack.enter_context(member.down())
        page.wait_for_function("() => failures > 0")
        time.sleep(ABSENCE_S)
        assert page.evaluate("source.readyState") != 2, "the browser has given up"
        failures = page.evaluate("failures")
    system.until_whole()
    began = time.monotonic()
    publish(system.url, {"topic": topic, "type": "t", "data": "after"})
    page.wait_for_function("() => heard.length === 2", timeout=WAIT_MS)

    print(f"{failures} failures, back {time.monotonic() - began:.1f} s after the replicas")  # noqa: T201
    assert failures >= 2, "it was told to come back while there was nobody"
    opened, heard = page.evaluate("[opened, heard]")
    assert (opened[0], set(opened[1:]), heard) == ("new", {"complete"}, ["before", "after"])
