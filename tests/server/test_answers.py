"""An answer that is written at once is, byte for byte, the one that takes the server's own way."""

import re

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from allim.errors import NotFound
from allim.http.origins import Origins
from allim.http.problems import UnexpectedErrors, handlers
from allim.http.requests import Requests
from allim.http.routing import Paths, exact_paths, route
from allim.server.protocol import HandoverProtocol
from tests.server.served import ended, served

pytestmark = pytest.mark.anyio

LISTED = "https://app.example.org"


def answer_of(kind: str) -> Response:
    match kind:
        case "text":
            return PlainTextResponse("here")
        case "json":
            return JSONResponse({"here": "ä"}, 201, headers={"Location": "/x"})
        case "empty":
            return Response()
        case "nothing":
            return Response(status_code=204)
        case "cookies":
            response = Response("here")
            response.set_cookie("a", "1", httponly=True)
            response.set_cookie("b", "2")
            return response
        case "own":
            return Response("here", headers={"content-security-policy": "default-src 'self'", "x-request-id": "mine"})
        case "vary":
            return Response("here", headers={"Vary": "Accept-Encoding"})
        case "close":
            return Response("here", headers={"Connection": "close"})
        case "chunked":
            return Response("here", headers={"Transfer-Encoding": "chunked"})
        case "words":
            return Response("here", headers={"x-name": "no transfer-encoding: chunked"})
        case "latin":
            return Response("here", headers={"x-name": "Zoë\t1"})
        case "split":
            return Response("here", headers={"x-name": "a\r\nx-smuggled: 1"})
        case "wrong":
            return Response("here", headers={"content-length": "3"})
        case "background":
            return Response("here", background=BackgroundTask(lambda: None))
        case "parts":
            return StreamingResponse(iter(["he", "re"]))
    raise NotFound("There is no such kind.")


async def show(request: Request) -> Response:
    return answer_of(request.query_params["kind"])


RESOURCES = [route("/", get=show, post=show)]
ROUTED = Paths(Starlette(routes=RESOURCES, exception_handlers=handlers), exact_paths(RESOURCES))
APP = Requests(UnexpectedErrors(Origins(ROUTED, listed=[LISTED])))
KINDS = (
    *("text", "json", "empty", "nothing", "cookies", "own", "vary", "close", "latin", "wrong", "background", "parts"),
    *("chunked", "words", "unknown"),
)
PLAIN = frozenset({"text", "json", "empty", "cookies", "vary", "latin"})
REQUESTS = {
    "GET": "GET /?kind={} HTTP/1.1\r\n",
    "POST": "POST /?kind={} HTTP/1.1\r\nContent-Length: 2\r\n",
    "HEAD": "HEAD /?kind={} HTTP/1.1\r\n",
    "HTTP/1.0": "GET /?kind={} HTTP/1.0\r\n",
    "a listed page": f"GET /?kind={{}} HTTP/1.1\r\nOrigin: {LISTED}\r\n",
    "another page": "POST /?kind={} HTTP/1.1\r\nOrigin: https://elsewhere\r\nContent-Length: 2\r\n",
    "a secure one": "GET /?kind={} HTTP/1.1\r\nX-Forwarded-Proto: https\r\n",
}


async def answers(form: str, *kinds: str, app: ASGIApp = APP) -> dict[str, bytes]:
    """To two requests in a row on one connection, the second one the last."""
    got = {}
    async with served(app) as connect:
        for kind in kinds:
            head = REQUESTS[form].format(kind) + "Host: x\r\nX-Request-ID: r1\r\n"
            body = "hi" if "Content-Length" in head else ""
            reader, writer = await connect()
            writer.write(f"{head}\r\n{body}{head}Connection: close\r\n\r\n{body}".encode())
            got[kind] = await ended(reader)
    return got


def sorted_heads(answer: bytes) -> list[list[bytes]]:
    """The order of fields with different names means nothing."""
    dateless = re.sub(rb"\r\ndate: [^\r]+", b"", answer)
    return [sorted(part.split(b"\r\n")) for part in dateless.split(b"\r\n\r\n")]


@pytest.mark.parametrize("form", REQUESTS)
async def test_it_is_the_same_answer(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = await answers(form, *KINDS)
    monkeypatch.setattr(HandoverProtocol, "answer_at_once", lambda *_: False)
    usual = await answers(form, *KINDS)

    assert {kind: sorted_heads(at_once[kind]) for kind in KINDS} == {
        kind: sorted_heads(usual[kind]) for kind in KINDS
    }
    assert all(answer.startswith(b"HTTP/1.") for answer in at_once.values())


async def test_a_layer_outside_sees_what_is_sent() -> None:
    async def outside(scope: Scope, receive: Receive, send: Send) -> None:
        async def sign(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-signed", b"1")]
            await send(message)

        await APP(scope, receive, sign)

    got = await answers("GET", *PLAIN, app=outside)

    assert {kind: answer.count(b"\r\nx-signed: 1\r\n") for kind, answer in got.items()} == dict.fromkeys(PLAIN, 2)


async def test_a_field_that_would_split_an_answer_ends_it() -> None:
    assert await answers("GET", "split") == {"split": b""}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_plain_answer_is_one_write_and_no_other_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    answer_at_once = HandoverProtocol.answer_at_once

    def tell(*args: object) -> bool:
        told.append(answer_at_once(*args))  # type: ignore[arg-type]
        return told[-1]

    monkeypatch.setattr(HandoverProtocol, "answer_at_once", tell)
    await answers("GET", kind)

    # The second of the two ends its connection, which the server's own way says.
    assert told == [True, False] if kind in PLAIN else not any(told)
