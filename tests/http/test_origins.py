import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from allim.exchange import exchange_of
from allim.http import problems
from allim.http.origins import Origins
from allim.http.requests import Requests
from tests.http.apps import assert_problem

pytestmark = pytest.mark.anyio

HOST = "allim.example:8443"
HERE = f"https://{HOST}"
LISTED = "https://app.example.org"
EVIL = "https://evil.example"
EXTENSION = "chrome-extension://" + "abcdefghijklmnop" * 2
PATTERNS = ("https://*.pages.example.com", "http://*.dev.example.com:3000", "capacitor://localhost", EXTENSION)
COVERED = (
    "https://tenant.pages.example.com",
    "https://pr-17.pages.example.com",
    "https://a_b.pages.example.com",
    "http://tenant.dev.example.com:3000",
    "capacitor://localhost",
    EXTENSION,
)
NOT_COVERED = (
    "https://pages.example.com",
    "https://a.b.pages.example.com",
    "https://.pages.example.com",
    "https://*.pages.example.com",
    "http://tenant.pages.example.com",
    "https://tenant.pages.example.com:8443",
    "https://tenant.pages.example.com.evil.example",
    "https://tenantXpages.example.com",
    "https://evil.example/.pages.example.com",
    "https://evil.example#.pages.example.com",
    "https://tenant@evil.pages.example.com",
    "https://tenant.pages.example.com\n",
    "http://tenant.dev.example.com",
    "https://tenant.dev.example.com:3000",
    "capacitor://localhost.evil",
    "CAPACITOR://localhost",
    "chrome-extension://" + "b" * 32,
    "moz-extension://" + "abcdefghijklmnop" * 2,
    "null",
)
CORS = ("access-control-allow-origin", "access-control-allow-credentials", "access-control-expose-headers")


class Asked:
    """Counts what got through to the route."""

    times = 0


@pytest.fixture
def asked() -> Asked:
    return Asked()


def client_of(asked: Asked, listed: tuple[str, ...], request_headers: tuple[str, ...]) -> httpx.AsyncClient:
    async def answer(_: Request) -> Response:
        asked.times += 1
        return PlainTextResponse("done")

    async def vary(_: Request) -> Response:
        return PlainTextResponse("", headers={"vary": "accept-encoding"})

    async def past(request: Request) -> Response:
        """What a handed-over stream would take along, writing its head itself."""
        return PlainTextResponse("\n".join(exchange_of(request.scope).extra_headers))

    app = Starlette(
        routes=[
            Route("/x", answer, methods=["GET", "POST", "PUT", "DELETE"]),
            Route("/vary", vary),
            Route("/past", past),
        ],
        middleware=[
            Middleware(Requests),
            Middleware(problems.UnexpectedErrors),
            Middleware(Origins, listed=listed, headers=request_headers),
        ],
        exception_handlers=problems.handlers,
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://inside", headers={"host": HOST})


async def sent(
    asked: Asked,
    method: str = "POST",
    path: str = "/x",
    *,
    listed: tuple[str, ...] = (LISTED,),
    request_headers: tuple[str, ...] = (),
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    async with client_of(asked, listed, request_headers) as client:
        return await client.request(method, path, headers=headers)


# -- Who may change something -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        {},  # no browser
        {"sec-fetch-site": "same-origin", "origin": HERE},
        {"sec-fetch-site": "none"},  # the visitor's own act
        {"sec-fetch-site": "same-origin", "origin": "http://behind-a-proxy.example"},
        {"origin": HERE},
        {"origin": f"http://{HOST}"},  # TLS may end before us
        {"sec-fetch-site": "cross-site", "origin": LISTED},
        {"sec-fetch-site": "same-site", "origin": LISTED, "authorization": "Bearer x"},
        {"origin": LISTED},
    ],
)
async def test_our_own_page_a_listed_one_and_programs_may(asked: Asked, method: str, headers: dict[str, str]) -> None:
    assert (await sent(asked, method, headers=headers)).text == "done"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site", "origin": EVIL},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "https://other.example.org"},
        {"sec-fetch-site": "cross-site", "origin": HERE},
        {"sec-fetch-site": "cross-site", "origin": EVIL, "authorization": "Bearer x"},
        {"sec-fetch-site": "cross-site", "origin": EVIL, "cookie": "allim_session=x"},
        {"sec-fetch-site": "odd"},
        {"sec-fetch-site": ""},
        {"origin": EVIL},
        {"origin": "null"},
        {"origin": "null", "host": "null"},
        {"origin": "null", "host": ""},
        {"origin": ""},
        {"origin": HOST},
        {"origin": "https://allim.example"},  # another port
        {"origin": f"{HERE}.evil.example"},
        {"origin": f"{EVIL}://{HOST}"},
        {"origin": f"{LISTED}.evil.example"},
        {"origin": LISTED.replace("https", "http")},
        {"origin": LISTED.upper()},
    ],
)
async def test_the_page_of_another_origin_may_not(asked: Asked, method: str, headers: dict[str, str]) -> None:
    answer = await sent(asked, method, headers=headers)

    assert_problem(answer, 403, "forbidden")
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert asked.times == 0
    assert answer.headers.keys().isdisjoint(CORS)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_everybody_may_ask_and_whether_the_page_may_read_is_the_browsers_to_judge(
    asked: Asked, method: str
) -> None:
    answer = await sent(asked, method, headers={"sec-fetch-site": "cross-site", "origin": EVIL})

    assert answer.status_code == 200
    assert answer.headers.keys().isdisjoint(CORS)


# -- Who may read the answers -----------------------------------------------------------------------------


async def test_a_listed_page_may_read_and_send_cookies(asked: Asked) -> None:
    headers = (await sent(asked, "GET", headers={"origin": LISTED})).headers

    assert headers.get_list("access-control-allow-origin") == [LISTED]
    assert headers["access-control-allow-credentials"] == "true"
    assert (
        headers["access-control-expose-headers"] == "Location, RateLimit, RateLimit-Policy, Retry-After, X-Request-ID"
    )
    assert headers["vary"] == "Origin"


@pytest.mark.parametrize("path", ["/nothing", "/x"])
async def test_it_may_also_read_why_it_was_refused(asked: Asked, path: str) -> None:
    answer = await sent(asked, "PATCH", path, headers={"origin": LISTED})

    assert answer.status_code in (404, 405)
    assert answer.headers["access-control-allow-origin"] == LISTED


@pytest.mark.parametrize("headers", [{}, {"origin": EVIL}, {"origin": "null"}, {"origin": HERE}])
async def test_no_other_page_may_and_a_cache_is_told(asked: Asked, headers: dict[str, str]) -> None:
    answer = await sent(asked, "GET", headers=headers)

    assert answer.headers.keys().isdisjoint(CORS)
    assert answer.headers["vary"] == "Origin"


async def test_the_answers_own_vary_stays(asked: Asked) -> None:
    answer = await sent(asked, "GET", "/vary", headers={"origin": LISTED})

    assert answer.headers.get_list("vary") == ["accept-encoding, Origin"]


async def test_who_writes_a_head_past_the_middlewares_finds_the_same_headers(asked: Asked) -> None:
    answer = await sent(asked, "GET", "/past", headers={"origin": LISTED})

    assert {*CORS, "vary"} <= set(answer.text.splitlines())


async def test_without_a_list_there_is_no_word_of_it(asked: Asked) -> None:
    answer = await sent(asked, "GET", listed=(), headers={"origin": LISTED})

    assert answer.headers.keys().isdisjoint({*CORS, "vary"})


# -- Wildcards, apps and extensions -----------------------------------------------------------------------


@pytest.mark.parametrize("origin", COVERED)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_page_that_a_wildcard_or_an_app_entry_covers_may_change_and_read(
    asked: Asked, method: str, origin: str
) -> None:
    headers = {"origin": origin, "sec-fetch-site": "cross-site"}

    answer = await sent(asked, method, listed=PATTERNS, headers=headers)

    assert (answer.text, asked.times) == ("done", 1)
    assert answer.headers.get_list("access-control-allow-origin") == [origin]
    assert answer.headers["vary"] == "Origin"


@pytest.mark.parametrize("origin", NOT_COVERED)
async def test_a_page_that_none_of_them_covers_may_neither(asked: Asked, origin: str) -> None:
    """httpx sends a line feed in a value as it is; a server refuses it, and the pattern must not let it through."""
    changed = await sent(asked, "POST", listed=PATTERNS, headers={"origin": origin})
    read = await sent(asked, "GET", listed=PATTERNS, headers={"origin": origin})

    assert_problem(changed, 403, "forbidden")
    assert read.headers.keys().isdisjoint(CORS)


@pytest.mark.parametrize("origin", COVERED)
async def test_a_covered_page_is_told_what_it_may_send(asked: Asked, origin: str) -> None:
    answer = await sent(asked, "OPTIONS", listed=PATTERNS, headers=preflight(origin, headers="authorization"))

    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)


# -- What a browser asks before ---------------------------------------------------------------------------


def preflight(origin: str, method: str = "POST", headers: str = "content-type") -> dict[str, str]:
    return {
        "origin": origin,
        "sec-fetch-site": "cross-site",
        "access-control-request-method": method,
        "access-control-request-headers": headers,
    }


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_listed_page_is_told_what_it_may_send(asked: Asked, method: str) -> None:
    wanted = "allim-user,authorization,content-type,idempotency-key,last-event-id,x-request-id"
    answer = await sent(asked, "OPTIONS", headers=preflight(LISTED, method, wanted))

    assert answer.status_code == 200
    assert asked.times == 0
    assert answer.headers["access-control-allow-origin"] == LISTED
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST, DELETE"
    assert answer.headers["access-control-max-age"] == "600"
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize(("method", "header"), [("PUT", "content-type"), ("POST", "x-odd")])
async def test_and_what_it_may_not(asked: Asked, method: str, header: str) -> None:
    assert (await sent(asked, "OPTIONS", headers=preflight(LISTED, method, header))).status_code == 400


async def test_further_headers_may_be_sent_beside_the_usual(asked: Asked) -> None:
    asked_for = preflight(LISTED, headers="authorization, sentry-trace,traceparent")

    answer = await sent(asked, "OPTIONS", request_headers=("traceparent", "Sentry-Trace"), headers=asked_for)

    assert answer.status_code == 200
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert {"authorization", "sentry-trace", "traceparent", "last-event-id"} <= set(allowed)


@pytest.mark.parametrize("listed", [(), (LISTED,)])
async def test_any_other_page_is_told_nothing(asked: Asked, listed: tuple[str, ...]) -> None:
    answer = await sent(asked, "OPTIONS", listed=listed, headers=preflight(EVIL))

    assert_problem(answer, 405, "method_not_allowed")
    assert not [name for name in answer.headers if name.startswith("access-control-")]


async def test_other_kinds_of_connection_pass_untouched() -> None:
    seen: list[object] = []

    async def app(scope: object, receive: object, send: object) -> None:
        seen.append(scope)

    async def nothing(*_: object) -> object: ...

    await Origins(app)({"type": "lifespan"}, nothing, nothing)  # type: ignore[arg-type]

    assert seen == [{"type": "lifespan"}]
