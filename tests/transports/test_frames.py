import pytest
from hypothesis import given
from hypothesis import strategies as st

from allim.client import Parser
from allim.hub import CloseReason, Opening, Position
from allim.hub.resume import Reset, Verdict
from allim.transports.sse import frames

NEW = Opening(Verdict("new", (), None), Position(12, 3), 0)
RESET = Opening(
    Verdict("reset", (Reset("user:42", "trimmed"), Reset("a", "trimmed")), Position(1, 0)), Position(1, 0), 7
)


@pytest.mark.parametrize(
    ("opening", "heartbeat_s", "wire"),
    [
        (
            NEW,
            15.0,
            b'retry: 2000\nid: 12-3\nevent: stream.open\ndata: {"stream":"s1","user":"42","replica":"r1",'
            b'"resume":"new","replayed":0,"resets":[],"heartbeat_s":15}\n\n',
        ),
        (
            RESET,
            1.5,
            b'retry: 2000\nid: 1-0\nevent: stream.open\ndata: {"stream":"s1","user":"42","replica":"r1",'
            b'"resume":"reset","replayed":7,"resets":[{"topic":"user:42","reason":"trimmed"},{"topic":"a","reason":"trimmed"}],'
            b'"heartbeat_s":1.5}\n\n',
        ),
    ],
    ids=["new", "reset"],
)
def test_the_opening_byte_for_byte(opening: Opening, heartbeat_s: float, wire: bytes) -> None:
    assert frames.opening("s1", "42", "r1", opening, heartbeat_s, 2000) == wire


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        (frames.heartbeat(None), b"event: heartbeat\ndata: {}\n\n"),
        (frames.heartbeat(Position(12, 3)), b"id: 12-3\nevent: heartbeat\ndata: {}\n\n"),
        (frames.gap(["a"], "origin"), b'event: stream.gap\ndata: {"topics":["a"],"reason":"origin"}\n\n'),
        (
            frames.gap(("a", "user:1"), "trimmed"),
            b'event: stream.gap\ndata: {"topics":["a","user:1"],"reason":"trimmed"}\n\n',
        ),
        (
            frames.close(CloseReason.DRAIN, 1500),
            b'retry: 1500\nevent: stream.close\ndata: {"reason":"drain","reconnect":true}\n\n',
        ),
        (
            frames.close(CloseReason.SIGNED_OUT, 1),
            b'retry: 1\nevent: stream.close\ndata: {"reason":"signed_out","reconnect":false}\n\n',
        ),
    ],
)
def test_frames_byte_for_byte(wire: bytes, expected: bytes) -> None:
    assert wire == expected


def test_a_gap_and_a_close_leave_the_last_event_id_alone() -> None:
    parser = Parser("9-9")

    messages = parser.feed(frames.gap(["a"], "origin") + frames.close(CloseReason.ROTATE, 5))

    assert [message.id for message in messages] == ["9-9", "9-9"]
    assert parser.retry_ms == 5


def test_the_head_byte_for_byte() -> None:
    assert frames.head({"x-request-id": "r1", "date": "now"}) == (
        b"HTTP/1.1 200 OK\r\n"
        b"content-type: text/event-stream\r\n"
        b"cache-control: no-store\r\n"
        b"x-accel-buffering: no\r\n"
        b"connection: close\r\n"
        b"x-request-id: r1\r\n"
        b"date: now\r\n"
        b"\r\n"
    )


def test_the_head_says_nothing_twice() -> None:
    assert frames.head({"cache-control": "max-age=9", "connection": "keep-alive"}) == frames.head({})


@pytest.mark.parametrize("bad", ["a\r\nset-cookie: x=1", "a\n", "\r", "a\0b", "\x1b[2J", "\x7f"])
@pytest.mark.parametrize("where", ["name", "value"])
def test_the_head_refuses_what_would_end_its_line(bad: str, where: str) -> None:
    headers = {bad: "x"} if where == "name" else {"x-request-id": bad}

    with pytest.raises(ValueError, match="control character"):
        frames.head(headers)


@given(st.text(st.characters(max_codepoint=255)))
def test_no_header_value_makes_another_line(value: str) -> None:
    try:
        head = frames.head({"x": value})
    except ValueError:
        return
    assert head.count(b"\r\n") == 7
    assert head.count(b"\n") == head.count(b"\r") == 7


def test_a_proof_stands_behind_each_id_of_joined_frames_and_nowhere_in_data() -> None:
    one, two = b'id: 1-0\nevent: t\ndata: "id: 9-9"\n\n', b"id: 2-0\nevent: t\ndata: 2\n\n"

    wire = frames.with_proof(b"retry: 5\n" + one + b"event: heartbeat\ndata: {}\n\n" + two, b"~p")

    assert wire == (
        b'retry: 5\nid: 1-0~p\nevent: t\ndata: "id: 9-9"\n\n'
        b"event: heartbeat\ndata: {}\n\n"
        b"id: 2-0~p\nevent: t\ndata: 2\n\n"
    )
