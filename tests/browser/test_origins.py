"""Pages of this origin and of others, in a real browser, in front of the whole system."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from harness.cluster import Cluster, cluster
from harness.replicas import publish, token
from harness.waiting import until_sync
from playwright.sync_api import ConsoleMessage, Page, expect

from allim.http.origins import PAGE_POLICY
from allim.http.requests import SECURITY_HEADERS

WAIT_MS = 30_000


@contextmanager
def origin() -> Iterator[str]:
    """Another origin of the same site, whose requests carry the cookie: an empty page at another port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), EmptyPage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class EmptyPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Not a word of it."""


@pytest.fixture(scope="module")
def listed() -> Iterator[str]:
    with origin() as listed:
        yield listed


@pytest.fixture(scope="module")
def other() -> Iterator[str]:
    with origin() as other:
        yield other


@pytest.fixture(scope="module")
def system(listed: str) -> Iterator[Cluster]:
    wildcard = listed.replace("127.0.0.1", "*.pages.example.test")
    with cluster(replicas=2, cors_origins=f"https://app.example.org,{listed},{wildcard}") as started:
        yield started


# -- The page under its policy ----------------------------------------------------------------------------


def test_the_page_breaks_no_rule_of_its_policy(page: Page, system: Cluster) -> None:
    said: list[str] = []

    def note(message: ConsoleMessage) -> None:
        said.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.add_init_script("addEventListener('securitypolicyviolation', e => console.error(e.violatedDirective))")
    answer = page.goto(system.url)
    assert answer is not None
    assert answer.headers["content-security-policy"] == PAGE_POLICY
    form = page.get_by_test_id("signup-form")
    for name, value in {"email": "policy@example.org", "name": "Ada", "password": "correct horse battery"}.items():
        form.locator(f"input[name={name}]").fill(value)
    form.locator("button[type=submit]").click()
    expect(page.get_by_test_id("line-state")).to_have_attribute("data-state", "open", timeout=WAIT_MS)
    page.get_by_test_id("request-snapshot").click()
    expect(page.locator("[data-testid=event-row][data-type='snapshots.generated']").first).to_be_visible()

    assert [line for line in said if "401" not in line] == []  # nobody was signed in at first


def test_what_the_policy_forbids_is_refused(page: Page, system: Cluster) -> None:
    page.goto(system.url)

    ran = page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
        return window.ran === true;
    }""")

    assert not ran


# -- Pages of other origins -------------------------------------------------------------------------------

SIGN_UP = """async (url) => {
    const body = JSON.stringify({email: "cross@example.org", name: "Ada", password: "correct horse battery"});
    const headers = {"content-type": "application/json"};
    const answer = await fetch(`${url}/api/accounts`, {method: "POST", body, headers, credentials: "include"});
    return [answer.status, answer.headers.get("x-request-id") !== null, (await answer.json()).account.id];
}"""
TRACED = """async ([url, token]) => {
    const tracing = {traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "sentry-trace": "1-2"};
    const headers = {authorization: `Bearer ${token}`, baggage: "a=b", tracestate: "a=b", ...tracing};
    const answer = await fetch(`${url}/api/tickets`, {method: "POST", headers});
    const ticket = (await answer.json()).ticket;
    return await new Promise((resolve, reject) => {
        const source = new EventSource(`${url}/events?ticket=${ticket}`);
        source.addEventListener("stream.open", message => resolve(JSON.parse(message.data).resume));
        source.addEventListener("error", () => reject(new Error("refused")));
    });
}"""
LISTEN = """(url) => {
    window.opened = []; window.heard = []; window.failures = 0;
    window.source = new EventSource(`${url}/events`, {withCredentials: true});
    source.addEventListener("stream.open", message => opened.push(JSON.parse(message.data).resume));
    source.addEventListener("t", message => heard.push(JSON.parse(message.data)));
    source.addEventListener("error", () => failures++);
}"""


def test_a_listed_page_keeps_its_stream_over_an_absence_of_every_replica(
    page: Page, system: Cluster, listed: str
) -> None:
    page.goto(listed)
    status, told_its_id, account_id = page.evaluate(SIGN_UP, system.url)
    assert (status, told_its_id) == (201, True)
    page.evaluate(LISTEN, system.url)
    page.wait_for_function("opened.length === 1")

    with ExitStack() as stack:
        for member in system.members:
            stack.enter_context(member.down())
        page.wait_for_function("failures >= 3", timeout=WAIT_MS)  # it came back to find nobody, and comes again
        assert page.evaluate("source.readyState") != 2, "the browser has given up"
    system.until_whole()
    publish(system.url, {"topic": f"user:{account_id}", "type": "t", "data": "after"})
    page.wait_for_function("heard.length === 1", timeout=WAIT_MS)

    opened, heard = page.evaluate("[opened, heard]")
    assert (opened[0], set(opened[1:]), heard) == ("new", {"complete"}, ["after"])


def test_a_page_under_a_listed_wildcard_sends_its_tracing_headers_and_opens_a_stream(
    page: Page, system: Cluster, listed: str
) -> None:
    page.goto(listed.replace("127.0.0.1", "tenant.pages.example.test"))

    assert page.evaluate(TRACED, [system.url, token()]) == "new"


def test_a_page_that_is_not_listed_reads_no_stream_and_no_answer(page: Page, system: Cluster, other: str) -> None:
    page.goto(other)
    page.evaluate(LISTEN, system.url)
    page.wait_for_function("source.readyState === 2")  # for good

    read = page.evaluate("url => fetch(`${url}/healthz`).then(() => true, () => false)", system.url)

    assert (page.evaluate("opened"), read) == ([], False)


def test_a_form_of_another_origin_signs_nobody_in(page: Page, system: Cluster, other: str) -> None:
    """A form needs no permission to be sent, and its text may look like JSON."""
    account = {"email": "victim@example.org", "name": "Ada", "password": "correct horse battery"}
    assert httpx.post(f"{system.url}/api/accounts", json=account).status_code == 201
    page.goto(other)

    with page.expect_response(f"{system.url}/api/session") as answered:
        page.evaluate(
            """([url, text]) => {
                const [name, value] = text.split("=");
                const form = Object.assign(document.createElement("form"),
                    {method: "post", action: `${url}/api/session`, enctype: "text/plain"});
                form.append(Object.assign(document.createElement("input"), {name, value}));
                document.body.append(form);
                form.submit();
            }""",
            [system.url, json.dumps({**account, "name": "="})],
        )

    assert answered.value.status == 403
    assert "set-cookie" not in answered.value.headers


# -- Every answer, whoever gives it -----------------------------------------------------------------------


def strict(headers: httpx.Headers, page: bool = False) -> bool:
    wanted = {**SECURITY_HEADERS, **({"content-security-policy": PAGE_POLICY} if page else {})}
    once = all(len(headers.get_list(name)) == 1 for name in ("x-request-id", "content-type"))
    varies = headers.get_list("vary")  # nginx adds its own to answers that it may compress
    once = once and sorted(varies) in (["Origin"], ["Accept-Encoding", "Origin"])
    return once and all(headers.get_list(name) == [value] for name, value in wanted.items())


def test_each_header_comes_once_whoever_answers(system: Cluster, listed: str) -> None:
    with httpx.Client(base_url=system.url, headers={"origin": listed, "accept-encoding": "identity"}) as client:
        assert strict(client.get("/").headers, page=True)
        for path, status in (
            ("/api/accounts/me", 401),
            ("/nothing", 404),
            ("/.own/problem", 404),
            ("/readyz", 200),
        ):
            answer = client.get(path)
            assert (answer.status_code, answer.headers.get_list("access-control-allow-origin")) == (status, [listed])
            assert strict(answer.headers), (path, answer.headers)
        too_long, too_large = client.get("/" + "a" * 20_000), client.post("/api/publish", content=bytes(4 << 20))
        assert (too_long.status_code, too_large.status_code) == (414, 413)
        assert strict(too_long.headers)
        assert strict(too_large.headers)
        with client.stream("GET", "/events", headers={"authorization": f"Bearer {token()}"}) as stream:
            assert strict(stream.headers), stream.headers
            assert stream.headers.get_list("access-control-allow-origin") == [listed]


def test_nginx_overwrites_what_a_client_says_about_itself(system: Cluster) -> None:
    forged = {"X-Forwarded-For": "6.6.6.6", "Forwarded": "for=6.6.6.6", "X-Real-IP": "6.6.6.6"}
    answer = httpx.get(f"{system.url}/api/accounts/me", headers={**forged, "X-Request-ID": "forged-1"})

    assert answer.status_code == 401
    until_sync(lambda: '"request_id": "forged-1"' in system.said(), what="the request's line")
    assert "6.6.6.6" not in system.said()
