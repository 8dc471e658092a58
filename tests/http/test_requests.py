import errno
import io
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from allim.exchange import exchange_of
from allim.http import requests as requests_module
from allim.http.problems import UnexpectedErrors
from allim.http.requests import SECURITY_HEADERS, Requests
from allim.telemetry import configure_logging

pytestmark = pytest.mark.anyio


class Logged:
    """What stood on standard error until now."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capture.readouterr().err
        return self._text


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Logged]:
    """What an operator sees, byte for byte; everything is put back afterwards."""
    root = logging.getLogger()
    handlers, level, config = list(root.handlers), root.level, structlog.get_config()
    chatty = ("uvicorn.error", "uvicorn.access", "httpx", "httpcore", "alembic")
    levels = {name: logging.getLogger(name).level for name in chatty}
    configure_logging("replica-1")
    structlog.configure(cache_logger_on_first_use=False)
    monkeypatch.setattr(requests_module, "log", structlog.get_logger())  # the module's own may be set up already
    yield Logged(capsys)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.configure(**config)


class Full(io.StringIO):
    """Standard error on a disk that is full."""

    def write(self, _: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_line_says_when_it_was_written_to_the_microsecond(
    logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment_ns in (1_700_000_000_000_000_000, 1_700_000_000_000_009_999, 1_700_000_059_999_999_999):
        monkeypatch.setattr(time, "time_ns", lambda moment_ns=moment_ns: moment_ns)
        structlog.get_logger().warning("x")

    assert [json.loads(line)["timestamp"] for line in logged.getvalue().splitlines()] == [
        "2023-11-14T22:13:20.000000Z",
        "2023-11-14T22:13:20.000009Z",
        "2023-11-14T22:14:19.999999Z",
    ]


async def test_a_line_that_cannot_be_written_ends_nothing(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", Full())
        structlog.get_logger().warning("lost")
    structlog.get_logger().warning("heard")

    assert [json.loads(line)["event"] for line in logged.getvalue().splitlines()] == ["heard"]


async def answer(request: Request) -> Response:
    return PlainTextResponse(exchange_of(request.scope).request_id, 200 if request.url.path != "/wrong" else 404)


async def fail(_: Request) -> Response:
    raise RuntimeError("a bug")


async def wish(request: Request) -> Response:
    """It has headers of its own, and wishes for more."""
    exchange_of(request.scope).extra_headers.update({"vary": "Origin", "x-mine": "wished", "x-other": "wished"})
    policy = {"Content-Security-Policy": "default-src 'self'", "Vary": "Cookie", "X-Mine": "said"}
    return PlainTextResponse("", headers=policy)


async def get(path: str = "/ok", base_url: str = "http://test", **headers: str) -> httpx.Response:
    routes = [Route("/fail", fail), Route("/wish", wish), Route("/{path:path}", answer)]
    app = Starlette(routes=routes, middleware=[Middleware(Requests), Middleware(UnexpectedErrors)])
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=("10.0.0.7", 1))
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
        return await client.get(path, headers=raw)


def requests(out: Logged) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    return [line for line in lines if line["event"] == "request"]


@pytest.mark.parametrize("request_id", ["a", "b7c1-22_x.y~z", "A" * 64])
async def test_a_proxys_request_id_is_kept(request_id: str) -> None:
    response = await get(x_request_id=request_id)

    assert (response.text, response.headers["x-request-id"]) == (request_id, request_id)


@pytest.mark.parametrize("request_id", ["", "a b", "a/b", "a" * 65, '"}', "\x1b[2J", "a\tb", "\xe9"])
async def test_anything_else_gets_a_new_one(request_id: str) -> None:
    response = await get(x_request_id=request_id)

    assert response.text != request_id
    assert len(response.text) == 16
    assert response.headers["x-request-id"] == response.text


async def test_every_request_has_another() -> None:
    assert (await get()).text != (await get()).text


async def test_a_request_is_one_line_with_how_it_ended(logged: Logged) -> None:
    response = await get("/wrong?last_event_id=secret", x_request_id="r1")

    [line] = requests(logged)
    assert response.status_code == 404
    assert {name: line[name] for name in ("method", "path", "status", "client", "request_id", "server_id")} == {
        "method": "GET",
        "path": "/wrong",
        "status": 404,
        "client": "10.0.0.7",
        "request_id": "r1",
        "server_id": "replica-1",
    }
    assert line["duration_ms"] >= 0
    assert "secret" not in logged.getvalue()


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_probes_are_not_logged(logged: Logged, path: str) -> None:
    await get(path)

    assert requests(logged) == []


@pytest.mark.parametrize(("level", "lines"), [("info", 0), ("debug", 1)])
async def test_an_accepted_publish_is_counted_and_its_line_is_for_debugging(
    logged: Logged, level: str, lines: int
) -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        cache_logger_on_first_use=False,
    )
    logging.getLogger().setLevel(level.upper())

    await get("/api/publish")

    assert len(requests(logged)) == lines


async def test_a_refused_publish_is_logged(logged: Logged) -> None:
    app = Requests(PlainTextResponse("", 422))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        await client.post("/api/publish")

    assert [line["status"] for line in requests(logged)] == [422]


async def test_a_failure_is_logged_with_its_status(logged: Logged) -> None:
    response = await get("/fail")

    assert response.status_code == 500
    assert [line["status"] for line in requests(logged)] == [500]
    assert response.headers["x-request-id"] == response.json()["request_id"] == requests(logged)[0]["request_id"]


@pytest.mark.parametrize(
    "path",
    [
        "/a%0A%7B%22event%22%3A%22forged%22%7D",
        "/a%0D%0Aforged",
        "/a%22%2C%22status%22%3A200%2C%22x%22%3A%22",
        "/a%00b",
        "/a%1B%5B2J",
        "/a%E2%80%A8b",
    ],
)
async def test_no_path_makes_a_line_or_a_field_of_its_own(logged: Logged, path: str) -> None:
    await get(path)

    text = logged.getvalue()
    assert text.count("\n") == 1
    assert not any(ord(c) < 32 for c in text.removesuffix("\n"))
    assert json.loads(text)["path"].startswith("/a")


async def test_a_long_path_is_a_short_line(logged: Logged) -> None:
    await get("/" + "x" * 5000)

    assert len(requests(logged)[0]["path"]) == 1001


async def test_a_request_id_does_not_stay_for_the_next(logged: Logged) -> None:
    await get(x_request_id="r1")
    structlog.get_logger().info("between")

    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    assert "request_id" not in next(line for line in lines if line["event"] == "between")


# -- The headers of every answer --------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/ok", "/wrong", "/fail"])
async def test_every_answer_tells_the_browser_to_be_strict(path: str) -> None:
    headers = (await get(path)).headers

    assert {name: headers.get_list(name) for name in SECURITY_HEADERS} == {
        name: [value] for name, value in SECURITY_HEADERS.items()
    }
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(("base_url", "times"), [("http://test", 0), ("https://test", 1)])
async def test_only_a_secure_answer_asks_for_secure_ones(base_url: str, times: int) -> None:
    headers = (await get(base_url=base_url)).headers

    assert headers.get_list("strict-transport-security") == ["max-age=31536000"] * times


async def test_what_is_wished_for_is_added_and_what_an_answer_says_itself_stays() -> None:
    headers = (await get("/wish")).headers

    assert headers["x-other"] == "wished"
    assert headers.get_list("x-mine") == ["said"]
    assert headers.get_list("content-security-policy") == ["default-src 'self'"]
    assert headers.get_list("vary") == ["Cookie, Origin"]


async def test_wishes_do_not_stay_for_the_next() -> None:
    await get("/wish")

    assert "x-other" not in (await get()).headers


async def test_other_kinds_of_connection_pass_untouched() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    async def nothing(*_: Any) -> Any: ...

    scope = {"type": "lifespan"}
    await Requests(app)(scope, nothing, nothing)

    assert seen == [({"type": "lifespan"}, nothing, nothing)]


GOOD_HOSTS = ("test", "test:8000", "a.b-c_d.example", "127.0.0.1:80", "[::1]", "[::1]:8000", "a" * 255, "")
BAD_HOSTS = ("a" * 256, "a" * 7000, "a b", "a/b", "user@a", "[::1", "a:b", "a:123456", "ä", "a,b", "<a>")


@pytest.mark.parametrize("host", GOOD_HOSTS)
async def test_a_host_is_let_through(host: str) -> None:
    assert (await get(host=host)).status_code == 200


@pytest.mark.parametrize("host", BAD_HOSTS)
async def test_what_is_no_host_or_too_long_is_a_bad_request(host: str) -> None:
    response = await get(host=host)

    assert (response.status_code, response.json()["code"]) == (400, "bad_request")
    assert host[:40] not in response.text


async def test_two_hosts_are_a_bad_request() -> None:
    app = Starlette(routes=[Route("/", answer)], middleware=[Middleware(Requests)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        response = await client.get("/", headers=[("host", "test"), ("host", "test")])

    assert response.status_code == 400
