"""The parser of the Python client, byte by byte."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allim.client import Message, Parser


def m(data: object, type_: str = "message", id_: str = "") -> Message:
    return Message(type_, data, id_)


@pytest.mark.parametrize(
    ("wire", "messages"),
    [
        (b"", []),
        (b"\n\n\n", []),
        (b"data: 1\n\n", [m(1)]),
        (b"data:1\n\n", [m(1)]),
        (b"data:  1\n\n", [m(1)]),
        (b"data: 1\n", []),
        (b"data: 1\r\n\r\n", [m(1)]),
        (b"data: 1\r\rdata: 2\n\n", [m(1), m(2)]),
        (b"data: 1\r\n\ndata: 2\n\r\n", [m(1), m(2)]),
        (b"\xef\xbb\xbfdata: 1\n\n", [m(1)]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: 1\n\n", []),
        (b"data: 1\n\n\xef\xbb\xbfdata: 2\n\n", [m(1)]),
        (b": a comment\ndata: 1\n:\n\n", [m(1)]),
        (b"event: t\ndata: 1\n\ndata: 2\n\n", [m(1, "t"), m(2)]),
        (b"event: t\n\ndata: 1\n\n", [m(1)]),
        (b"event: a\nevent: b\ndata: 1\n\n", [m(1, "b")]),
        (b"event:\ndata: 1\n\n", [m(1)]),
        (b"event\ndata: 1\n\n", [m(1)]),
        (b"event:  t\ndata: 1\n\n", [m(1, " t")]),
        (b"data: [1,\ndata: 2]\n\n", [m([1, 2])]),
        (b"data\ndata: 1\ndata:\n\n", [m(1)]),
        (b"id: 7\ndata: 1\n\ndata: 2\n\n", [m(1, id_="7"), m(2, id_="7")]),
        (b"id: 7\n\ndata: 1\n\n", [m(1, id_="7")]),
        (b"id: 7\ndata: 1\n\nid\ndata: 2\n\n", [m(1, id_="7"), m(2)]),
        (b"id: 7\ndata: 1\n\nid: 8\0\ndata: 2\n\n", [m(1, id_="7"), m(2, id_="7")]),
        (b"Data: 1\nDATA: 1\n data: 1\ndata : 1\nunknown: 1\n\n", []),
        ('data: "a\u2028b\u2029c\u0085d\x0be\x0c"\n\n'.encode().replace(b"\x0b", b"").replace(b"\x0c", b""),
         [m("a\u2028b\u2029c\u0085de")]),
        ('data: "é€😀"\n\n'.encode(), [m("é€😀")]),
        (b'data: "\xff"\n\n', [m("\ufffd")]),
        (b"data: {\"a\": \"x: y\"}\n\n", [m({"a": "x: y"})]),
    ],
)  # fmt: skip
def test_the_standards_cases(wire: bytes, messages: list[Message]) -> None:
    assert Parser().feed(wire) == messages


@pytest.mark.parametrize(
    ("line", "retry_ms"),
    [
        (b"retry: 1500", 1500),
        (b"retry:0", 0),
        (b"retry: 007", 7),
        (b"retry", None),
        (b"retry:", None),
        (b"retry: -1", None),
        (b"retry: 1.5", None),
        (b"retry: 1e3", None),
        (b"retry: +1", None),
        (b"retry:  1", None),
        (b"retry: 1 ", None),
        (b"retry: 1_000", None),
        ("retry: ١".encode(), None),
        ("retry: ²".encode(), None),
    ],
)
def test_retry_is_digits_and_nothing_else(line: bytes, retry_ms: int | None) -> None:
    parser = Parser()

    parser.feed(line + b"\n\n")

    assert parser.retry_ms == retry_ms


def test_an_id_counts_when_its_event_is_whole() -> None:
    parser = Parser("1-0")

    assert parser.feed(b"id: 2-0\nevent: t\ndata: 1\n") == []
    assert parser.last_event_id == "1-0"
    assert parser.feed(b"\n") == [m(1, "t", "2-0")]
    assert parser.last_event_id == "2-0"


def test_messages_before_the_first_id_have_the_one_resumed_from() -> None:
    assert Parser("1-0").feed(b"data: 1\n\n") == [m(1, id_="1-0")]


lines = st.sampled_from(
    [
        "data: 1",
        "data: [1,",
        "data: 2]",
        "event: t",
        "id: 7",
        "id",
        ": c",
        "retry: 5",
        "",
        "",
        "",
        'data: "é😀\u2028"',
    ]
)
ends = st.sampled_from(["\n", "\r", "\r\n"])


@given(st.lists(st.tuples(lines, ends)), st.lists(st.integers(0, 400)), st.booleans())
def test_any_cut_of_the_bytes_gives_the_same_messages(
    text: list[tuple[str, str]], cuts: list[int], bom: bool
) -> None:
    # Whole JSON values only: what the lines of one event make is not always JSON.
    whole = "".join(line + end for line, end in text)
    wire = (b"\xef\xbb\xbf" if bom else b"") + whole.encode() + b"\n"
    at_once, in_pieces = Parser(), Parser()
    try:
        expected = at_once.feed(wire)
    except json.JSONDecodeError:
        return
    places = sorted({cut % (len(wire) + 1) for cut in cuts})
    pieces = [wire[a:b] for a, b in zip([0, *places], [*places, len(wire)], strict=True)]

    assert [message for piece in pieces for message in in_pieces.feed(piece)] == expected
    assert in_pieces.retry_ms == at_once.retry_ms


def test_byte_by_byte_gives_the_same_messages() -> None:
    wire = '\ufeffid: 1\r\nevent: t\r\ndata: "é😀"\r\n\r\ndata: 2\r\rdata: 3\n\n'.encode()
    parser = Parser()

    messages = [message for index in range(len(wire)) for message in parser.feed(wire[index : index + 1])]

    assert messages == [m("é😀", "t", "1"), m(2, id_="1"), m(3, id_="1")]
