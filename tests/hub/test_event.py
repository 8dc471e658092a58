import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allim.client import Parser
from allim.errors import Invalid, TooLarge
from allim.hub import CloseReason, Draft, Event, Position, Run
from allim.hub.event import Control, encode, encode_control, encode_draft
from allim.transports.sse import frames

LIMIT = 65536

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize(
    ("data", "encoded"),
    [
        (None, b"null"),
        (True, b"true"),
        (0, b"0"),
        (1.5, b"1.5"),
        ("", b'""'),
        ([], b"[]"),
        ({}, b"{}"),
        ({"b": 1, "a": [1, 2]}, b'{"b":1,"a":[1,2]}'),
        ("ü€😀", b'"\xc3\xbc\xe2\x82\xac\xf0\x9f\x98\x80"'),
        ("a\nb", rb'"a\nb"'),
        ("a\rb", rb'"a\rb"'),
        ("a\r\n\r\nid: 9-9", rb'"a\r\n\r\nid: 9-9"'),
        ("a\0b", rb'"a\u0000b"'),
        ("a\x0bb\x0c\x1e", rb'"a\u000bb\f\u001e"'),
        ("a\u2028b\u2029\u0085", b'"a\xe2\x80\xa8b\xe2\x80\xa9\xc2\x85"'),
        ('"\\', rb'"\"\\"'),
    ],
)
def test_an_event_is_two_lines_and_an_empty_one(data: object, encoded: bytes) -> None:
    assert encode("orders.shipped", data) == b"event: orders.shipped\ndata: " + encoded + b"\n\n"


def test_the_wire_is_the_id_and_the_lines() -> None:
    event = Event("a", Position(12, 3), Position(0, 0), b"event: t\ndata: 1\n\n")

    assert frames.event(event) == b"id: 12-3\nevent: t\ndata: 1\n\n"


@given(json_values)
def test_a_parser_reads_back_what_was_encoded(data: Any) -> None:
    wire = frames.event(Event("a", Position(1, 0), Position(0, 0), encode("t", data)))

    [message] = Parser().feed(wire)

    assert (message.type, message.id) == ("t", "1-0")
    assert json.dumps(message.data) == json.dumps(data)
    assert wire.count(b"\n") == 4
    assert b"\r" not in wire


@given(json_values)
def test_an_event_gives_its_type_and_its_data(data: Any) -> None:
    event = Event("a", Position(1, 0), Position(0, 0), encode("orders.shipped", data))

    assert event.type == b"orders.shipped"
    assert json.dumps(json.loads(event.data)) == json.dumps(data)


def test_a_run_makes_its_bytes_once_for_each_framing() -> None:
    made: list[object] = []

    def types(events: Sequence[Event]) -> bytes:
        made.append(types)
        return b",".join([event.framed(type_of) for event in events])

    def sizes(events: Sequence[Event]) -> bytes:
        made.append(sizes)
        return b"%d" % len(events)

    def type_of(event: Event) -> bytes:
        made.append(event)
        return event.type

    one, two = (Event("a", Position(ms, 0), Position(0, 0), encode(f"t{ms}", 0)) for ms in (1, 2))
    run = Run([one, two])

    framed = [run.framed(types), run.framed(sizes), run.framed(types), Run([two]).framed(types)]

    assert framed == [b"t1,t2", b"2", b"t1,t2", b"t2"]
    assert framed[0] is framed[2]
    assert made == [types, one, two, sizes, types], "and those of an event once for all runs"


def test_a_run_after_a_position_has_the_rest() -> None:
    events = [Event("a", Position(ms, 0), Position(0, 0), encode("t", ms)) for ms in (1, 2, 3)]
    run = Run(events)

    assert [run.first, run.last] == [Position(1, 0), Position(3, 0)]
    rest = run.after(Position(1, 5))
    assert rest is not None
    assert (rest.events, rest.first) == (events[1:], Position(2, 0))
    assert run.after(Position(3, 0)) is None


def nested(levels: int) -> object:
    value: object = 0
    for _ in range(levels):
        value = [value]
    return value


circular: list[object] = []
circular.append(circular)


@pytest.mark.parametrize(
    "data",
    ["\ud800", {"\udfff": 1}, math.nan, [math.inf], -math.inf, {1, 2}, b"bytes", object(), nested(100_000), circular],
    ids=["surrogate", "surrogate in a name", "nan", "inf", "-inf", "set", "bytes", "object", "deep", "circular"],
)
def test_what_is_no_json_is_refused_by_field(data: object) -> None:
    with pytest.raises(Invalid) as caught:
        encode_draft(Draft("a", "t", data), LIMIT)

    assert [error.field for error in caught.value.fields] == ["data"]


@pytest.mark.parametrize("type_", ["a", "t", "orders.shipped", "a-b_c.9", "a" * 128, "streams", "stream", "message"])
def test_types_that_may_be_published(type_: str) -> None:
    entry = encode_draft(Draft("user:1", type_, 1), LIMIT)

    assert entry == ("user:1", b"event: %b\ndata: 1\n\n" % type_.encode())


@pytest.mark.parametrize(
    "type_",
    [
        "",
        "A",
        "9",
        ".a",
        "a b",
        "a:b",
        "a\n",
        "a\ndata: x",
        "a\r",
        "a\0",
        "ü",
        "a\u2028",
        "a" * 129,
        "stream.open",
        "stream.end",
        "stream.",
        "heartbeat",
        "heartbeat.x",
    ],
)
def test_types_that_may_not(type_: str) -> None:
    with pytest.raises(Invalid) as caught:
        encode_draft(Draft("a", type_, 1), LIMIT)

    assert [error.field for error in caught.value.fields] == ["type"]


def test_a_wrong_topic_is_named() -> None:
    with pytest.raises(Invalid) as caught:
        encode_draft(Draft("A", "t", 1), LIMIT)

    assert [error.field for error in caught.value.fields] == ["topic"]


def test_the_limit_counts_the_bytes_of_the_whole_event() -> None:
    data = "ü" * 10  # 20 bytes in UTF-8
    size = len(b"event: t\ndata: \n\n") + 22

    assert len(encode_draft(Draft("a", "t", data), size).lines) == size
    with pytest.raises(TooLarge) as caught:
        encode_draft(Draft("a", "t", data), size - 1)

    [error] = caught.value.fields
    assert error.field == "data"
    assert error.message == f"the event is {size} bytes, the limit is {size - 1}"


@pytest.mark.parametrize(
    ("control", "data"),
    [
        (
            Control("1", CloseReason.SIGNED_OUT, session="s\n1"),
            '{"subject":"1","reason":"signed_out","session":"s\\n1"}',
        ),
        (Control("1", CloseReason.KICKED, issued_until=1.5), '{"subject":"1","reason":"kicked","issued_until":1.5}'),
        (
            Control("1", CloseReason.REPLACED, streams=("a", "b")),
            '{"subject":"1","reason":"replaced","streams":["a","b"]}',
        ),
        (Control("1", expires_at=4e9, session="s1"), '{"subject":"1","expires_at":4000000000.0,"session":"s1"}'),
    ],
)
def test_a_control_entry_reads_back(control: Control, data: str) -> None:
    topic, lines = encode_control("user:1", control)

    assert topic == "user:1"
    assert lines == f"event: stream.control\ndata: {data}\n\n".encode()
    assert Event(topic, Position(1, 0), Position(0, 0), lines).control == control


@pytest.mark.parametrize("type_", ["stream.controls", "t"])
def test_an_event_is_no_control(type_: str) -> None:
    lines = encode(type_, {"session": "s", "reason": "signed_out"})

    assert Event("a", Position(1, 0), Position(0, 0), lines).control is None


@pytest.mark.parametrize(
    "order",
    [[], "x", 7, None, {"reason": "bored"}, {"who": "me"}, {"issued_until": "x"}, {"streams": 7}, {"expires_at": []}],
)
def test_an_order_nobody_knows_is_refused(order: object) -> None:
    lines = encode("stream.control", order)

    with pytest.raises(ValueError):  # noqa: PT011 - which words does not matter: it is skipped and counted
        Event("a", Position(1, 0), Position(0, 0), lines)
