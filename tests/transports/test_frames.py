import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allim.client import Parser
from allim.hub import ZERO, CloseReason, Event, Opening, Position, Run
from allim.hub.resume import Reset, Verdict
from allim.transports.sse import frames
from allim.transports.sse.handover import HandoverStream

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


@pytest.mark.parametrize(("chunked", "framing"), [(True, b"transfer-encoding: chunked\r\n"), (False, b"")])
def test_the_head_byte_for_byte(chunked: bool, framing: bytes) -> None:
    assert frames.head({"x-request-id": "r1", "date": "now"}, chunked=chunked) == (
        b"HTTP/1.1 200 OK\r\n"
        b"content-type: text/event-stream\r\n"
        b"cache-control: no-store, no-transform\r\n"
        b"x-accel-buffering: no\r\n"
        b"connection: close\r\n" + framing + b"x-request-id: r1\r\n"
        b"date: now\r\n"
        b"\r\n"
    )


@pytest.mark.parametrize("chunked", [True, False])
def test_the_head_says_nothing_twice(chunked: bool) -> None:
    said = {"cache-control": "max-age=9", "connection": "keep-alive", "transfer-encoding": "gzip"}

    assert frames.head(said, chunked=chunked) == frames.head({}, chunked=chunked)


@pytest.mark.parametrize("bad", ["a\r\nset-cookie: x=1", "a\n", "\r", "a\0b", "\x1b[2J", "\x7f"])
@pytest.mark.parametrize("where", ["name", "value"])
def test_the_head_refuses_what_would_end_its_line(bad: str, where: str) -> None:
    headers = {bad: "x"} if where == "name" else {"x-request-id": bad}

    with pytest.raises(ValueError, match="control character"):
        frames.head(headers, chunked=True)


@given(st.text(st.characters(max_codepoint=255)))
def test_no_header_value_makes_another_line(value: str) -> None:
    try:
        head = frames.head({"x": value}, chunked=True)
    except ValueError:
        return
    assert head.count(b"\r\n") == 8
    assert head.count(b"\n") == head.count(b"\r") == 8


@pytest.mark.parametrize(("wire", "size"), [(b"x" * 9, b"9"), (b"x" * 255, b"ff"), (b"x" * 70_008, b"11178")])
def test_frames_are_one_chunk(wire: bytes, size: bytes) -> None:
    assert frames.chunk(wire) == size + b"\r\n" + wire + b"\r\n"


class Written(asyncio.Transport):
    """A connection that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert isinstance(data, bytes)
        self.pieces.append(data)


def writing(*, chunked: bool) -> tuple[HandoverStream, list[bytes]]:
    """A stream that is live, and what it writes."""
    stream, transport = HandoverStream.__new__(HandoverStream), Written()
    stream.transport, stream.head, stream.close_reason, stream.proof = transport, b"", None, b""
    stream.framing = frames.chunked if chunked else frames.plain
    return stream, transport.pieces


def test_streams_that_write_the_same_frames_share_the_bytes() -> None:
    (one, to_one), (two, to_two), (old, to_old) = (writing(chunked=chunked) for chunked in (True, True, False))
    events = [Event("a", Position(ms, 0), ZERO, b"event: t\ndata: %d\n\n" % ms) for ms in range(1, 4)]
    wire = [b"id: %d-0\nevent: t\ndata: %d\n\n" % (ms, ms) for ms in range(1, 4)]
    runs = [Run(events[:1]), Run(events[1:])]

    for run in runs:
        for stream in (one, old, two):
            stream.write(run)

    assert to_old == [wire[0], wire[1] + wire[2]]
    assert to_one == [frames.chunk(frame) for frame in to_old]
    assert all(mine is yours for mine, yours in zip(to_one, to_two, strict=True))
    assert to_old[0] is events[0].framed(frames.event)
    assert all(run.framed(frames.plain) is frame for run, frame in zip(runs, to_old, strict=True))


def test_a_proof_stands_behind_each_id_of_joined_frames_and_nowhere_in_data() -> None:
    one, two = b'id: 1-0\nevent: t\ndata: "id: 9-9"\n\n', b"id: 2-0\nevent: t\ndata: 2\n\n"

    wire = frames.with_proof(b"retry: 5\n" + one + b"event: heartbeat\ndata: {}\n\n" + two, b"~p")

    assert wire == (
        b'retry: 5\nid: 1-0~p\nevent: t\ndata: "id: 9-9"\n\n'
        b"event: heartbeat\ndata: {}\n\n"
        b"id: 2-0~p\nevent: t\ndata: 2\n\n"
    )


@pytest.mark.parametrize(("chunked", "line"), [(True, b"transfer-encoding: chunked\r\n"), (False, b"")])
def test_a_head_of_a_responses_own_fields_keeps_each_of_them(chunked: bool, line: bytes) -> None:
    fields = [
        (b"content-length", b"0"),
        (b"set-cookie", b"a=1"),
        (b"connection", b"keep-alive"),
        (b"set-cookie", b"b=2"),
    ]

    head = frames.raw_head(fields, chunked=chunked)

    start = b"HTTP/1.1 200 OK\r\nconnection: close\r\n"
    assert head == start + line + b"set-cookie: a=1\r\nset-cookie: b=2\r\n\r\n"


@pytest.mark.parametrize("field", [(b"x-a", b"1\r\nx-b: 2"), (b"x\n", b"1")])
def test_a_field_that_would_end_its_line_is_refused(field: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="control character"):
        frames.raw_head([field], chunked=True)
