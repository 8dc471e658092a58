"""The strict reader, against the examples of the standard and what its rules say of the edges."""

import pytest
from harness.sse_parser import Heard, Strict
from hypothesis import given
from hypothesis import strategies as st

from allim.client import Parser


@pytest.mark.parametrize(
    ("raw", "heard"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [("message", "YHOO\n+2\n10", "")]),
        (
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            [("message", "first event", "1"), ("message", "second event", ""), ("message", " third event", "")],
        ),
        (b"data\n\ndata\ndata\n\ndata:", [("message", "", ""), ("message", "\n", "")]),
        (b"data:test\n\ndata: test\n\n", [("message", "test", ""), ("message", "test", "")]),
        (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [("message", "a", "")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
        (b"\xef\xbbdata: a\n\ndata: b\n\n", [("message", "b", "")]),
        (b"data: a\r\rdata: b\r\n\r\ndata: c\n\r\n", [("message", letter, "") for letter in "abc"]),
        (b"id: 1\0\ndata: a\n\n", [("message", "a", "")]),
        (b"id: 7\n\ndata: a\n\n", [("message", "a", "7")]),
        (b"event: x\n\ndata: a\n\n", [("message", "a", "")]),
        (b"event: x\ndata: a\xe2\x80\xa8b\x0bc\xc2\x85d\n\n", [("x", "a\u2028b\x0bc\x85d", "")]),
        (b"data: a\xff\n\n", [("message", "a\ufffd", "")]),
        (b"Data: a\n data: b\ndata : c\n\n", []),
    ],
)
def test_it_hears_what_the_standard_says(raw: bytes, heard: list[tuple[str, str, str]]) -> None:
    whole = Strict().take([raw])
    bytewise = Strict().take(bytes([byte]) for byte in raw)

    assert whole == bytewise == [Heard(*one) for one in heard]


@pytest.mark.parametrize(
    ("value", "retry_ms"),
    [(b"10", 10), (b"007", 7), (b"", None), (b"-1", None), (b"1.5", None), (b"\xef\xbc\x91", None)],
)
def test_retry_is_ascii_digits(value: bytes, retry_ms: int | None) -> None:
    strict = Strict()
    strict.take([b"retry:", value, b"\n"])

    assert strict.retry_ms == retry_ms


LINES = st.lists(
    st.sampled_from([b"data: 1", b"data:2", b"event: x", b"id: 7", b"id", b"id: \0", b": c", b"", b"", b"retry: 9"])
    | st.tuples(st.sampled_from([b"", b"\n", b"\r", b"\r\n", b"\xef\xbb\xbf"]), st.binary(max_size=4)).map(b"".join)
)


@given(LINES, st.sampled_from([b"\n", b"\r", b"\r\n"]))
def test_the_client_of_this_package_hears_the_same(lines: list[bytes], end: bytes) -> None:
    raw = end.join(lines).replace(b"data:2", b'data: "\xe2\x80\xa8"')
    raw += b"\n:"  # the client waits for what may follow a CR
    strict = Strict()

    heard = strict.take([raw])

    if all(one.data in ("1", '"\u2028"') for one in heard):  # the client wants JSON
        client = Parser()
        messages = client.feed(raw)
        assert [(message.type, message.id) for message in messages] == [(one.type, one.id) for one in heard]
