"""Requests whose end two readers could see in different places: what is hidden in one is never carried out."""

import json

import pytest
from harness.replicas import PUBLISH_KEY, token
from harness.sse_parser import Strict

from tests.hostile.conftest import Target
from tests.hostile.test_frames import event, publish
from tests.hostile.wire import Said, connected, read, request, say

HIDDEN = request(
    "POST",
    "/api/publish",
    {"Authorization": f"Bearer {PUBLISH_KEY}", "Content-Type": "application/json"},
    b'{"topic":"user:hidden","type":"t","data":"smuggled"}',
)
CHUNK = b"%x\r\n%b\r\n" % (len(HIDDEN), HIDDEN)
START = b"POST /api/session HTTP/1.1\r\nHost: allim.test\r\nContent-Type: application/json\r\n"

AMBIGUOUS = {
    "both lengths": START + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "both, the other way round": START + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + HIDDEN,
    "two lengths": START + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
    "two lengths in one": START + b"Content-Length: 0, %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
    "the same length twice": START + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}" + HIDDEN,
    "a folded length": START + b"Content-Length:\r\n 0\r\n\r\n" + HIDDEN,
    "a folded coding": START + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a space before the colon": START + b"Content-Length : %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
    "a coding with a space": START + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "an unknown coding": START + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "two codings": START + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HIDDEN,
    "two coding lines": START + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a coding with a tab": START + b"Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a coding behind a VT": START + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "a quoted coding": START + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n' + HIDDEN,
    "a name with a line": START + b"Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "plus": START + b"Content-Length: +%d\r\n\r\n" % len(HIDDEN) + HIDDEN,
    "minus": START + b"Content-Length: -1\r\n\r\n" + HIDDEN,
    "hexadecimal": START + b"Content-Length: 0x%x\r\n\r\n" % len(HIDDEN) + HIDDEN,
    "beyond 64 bits": START + b"Content-Length: 18446744073709551616\r\n\r\n" + HIDDEN,
    "empty": START + b"Content-Length: \r\n\r\n" + HIDDEN,
    "bare LF": START.replace(b"\r\n", b"\n") + b"Content-Length: 0\nX: y\r\n\n" + HIDDEN,
    "bare CR": START + b"X: y\rContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
    "a header behind NUL": START + b"X: y\0\r\nContent-Length: 0\r\n\r\n" + HIDDEN,
    "a chunk too short": START + b"Transfer-Encoding: chunked\r\n\r\n1\r\n" + HIDDEN,
    "a chunk of minus": START + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + HIDDEN,
    "a chunk of 2^64": START + b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n" + HIDDEN,
    "a chunk of nothing": START + b"Transfer-Encoding: chunked\r\n\r\n\r\n" + HIDDEN,
    "a chunk ended by LF": START + b"Transfer-Encoding: chunked\r\n\r\n0\n\n" + HIDDEN,
    "a chunk with an extension": START + b"Transfer-Encoding: chunked\r\n\r\n0;a=\n\r\n" + HIDDEN,
    "a trailer": START + b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 9\r\n\n" + HIDDEN,
    "hidden in a chunk": START + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
    "a body of GET": b"GET /api/accounts/me HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
    "hidden in a header": START.removesuffix(b"\r\n") + b"\rX: " + HIDDEN.replace(b"\r\n", b"\r"),
    "an old version": START.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
}  # fmt: skip
# Two requests, to every reader: what follows the first one's end is a request of its own, and may be carried out.
IN_FULL_SIGHT = {
    "the same length twice",
    "a chunk ended by LF",
    "a folded length",
    "a name with a line",
    "a space before the colon",
    "a coding with a tab",
    "a coding with a space",
    "bare LF",
    "empty",
}


def smuggled(target: Target, since: str) -> bool:
    """Whether the hidden request was carried out since then."""
    headers = {"Authorization": f"Bearer {token('hidden')}", "Last-Event-ID": since}
    (answer,) = say(target.port, request("GET", "/events", headers), quiet_s=0.25).answers
    heard = Strict().take([answer.body])
    assert json.loads(heard[0].data)["resume"] == "complete"
    return any(one.data == '"smuggled"' for one in heard)


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_no_request_hides_in_another(either: Target, name: str) -> None:
    since = publish(either, event(name, topic="user:hidden")).json()["id"]

    said = say(either.port, AMBIGUOUS[name], end=True)

    assert said.closed or said.answers
    assert all(answer.status < 500 or answer.status == 501 for answer in said.answers), said
    if name not in IN_FULL_SIGHT:
        assert len(said.answers) <= 1, said
        assert not smuggled(either, since)


@pytest.mark.parametrize("together", [True, False], ids=["in one piece", "a moment later"])
def test_what_follows_a_stream_is_not_carried_out(either: Target, together: bool) -> None:
    since = publish(either, event("before", topic="user:hidden")).json()["id"]
    opening = request("GET", "/events", {"Authorization": f"Bearer {token('piped')}"})

    with connected(either.port) as connection:
        connection.sendall(opening + HIDDEN if together else opening)
        if not together:
            assert b"stream.open" in read(connection)[0]
            connection.sendall(HIDDEN)
        raw, closed = read(connection)

    assert b"202 Accepted" not in raw
    assert closed or b"event: heartbeat" in raw or b"stream.open" in raw or not raw
    assert not smuggled(either, since)


def test_answers_to_a_pipeline_come_in_order_and_go_to_who_asked(either: Target) -> None:
    asks = [
        request("GET", f"/nothing/{n}", {"X-Request-ID": f"piped-{n}", "Connection": "keep-alive"}) for n in range(20)
    ]

    said = say(either.port, b"".join(asks))

    assert [answer.headers["x-request-id"] for answer in said.answers] == [f"piped-{n}" for n in range(20)]


def test_users_behind_one_nginx_get_their_own_answers(front: Target) -> None:
    """Many users over the same connections from nginx to its replicas, half of them with a refused request before."""
    for number in range(40):
        who = f"mixed-{number}"
        if number % 2:
            say(front.port, START + b"Content-Length: 5\r\n\r\n{}", end=True)
        answer: Said = say(
            front.port, request("GET", "/events", {"Authorization": f"Bearer {token(who)}"}), quiet_s=0.02
        )
        assert answer.only.status == 200
