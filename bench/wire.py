"""Bytes of HTTP/1.1 and `text/event-stream`, as far as measuring needs them. Pure, and made for speed.

A measured event's data is `{"n":<number>,"t":<ns>,"p":"<padding>"}`, compact, on one `data:` line.
"""

import re
from typing import NamedTuple

# An event has come when its `data:` line has ended.
_EVENT = re.compile(rb'data: ?\{"n":(\d+),"t":(\d+),"p":"[^"]*"\}\r?\n')
_MARK = b'"n":'
_ID = re.compile(rb"(?:^|\n)id: ?([^\r\n]+)\r?\n")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"

Arrivals = tuple[tuple[int, int], ...]
"""Number and time of publishing of each event, in the order they came."""


class Malformed(Exception):
    """Bytes that no server should send."""


class Head(NamedTuple):
    """A response head. Shape: `length` is None where the body's end is told otherwise; the body begins at `end`."""

    status: int
    chunked: bool
    length: int | None
    end: int


def head(raw: bytes) -> Head | None:
    """The head these bytes begin with; None while it is not complete.

    Raises: Malformed.
    """
    end = raw.find(_HEAD_END)
    if end < 0:
        return None
    if not raw.startswith(b"HTTP/1.") or not raw[9:12].isdigit():
        raise Malformed(f"no response head: {raw[:60]!r}")
    lines = raw[: end + 2]
    length = _LENGTH.search(lines)
    return Head(
        int(raw[9:12]), _CHUNKED.search(lines) is not None, int(length[1]) if length else None, end + len(_HEAD_END)
    )


def dechunk(raw: bytes) -> tuple[bytes, bytes, bool]:
    """The bodies of all whole chunks, what is left of the bytes, and whether the last chunk was there.

    Raises: Malformed.
    """
    bodies: list[bytes] = []
    at = 0
    while (line_end := raw.find(b"\r\n", at)) >= 0:
        try:
            size = int(raw[at:line_end].partition(b";")[0], 16)
        except ValueError:
            raise Malformed(f"no chunk size: {raw[at : at + 20]!r}") from None
        body_end = line_end + 2 + size
        if len(raw) < body_end + 2:
            break
        if raw[body_end : body_end + 2] != b"\r\n":
            raise Malformed("a chunk is longer than its size")
        if size == 0:
            return b"".join(bodies), raw[body_end + 2 :], True
        bodies.append(raw[line_end + 2 : body_end])
        at = body_end + 2
    return b"".join(bodies), raw[at:], False


def arrivals(text: bytes) -> tuple[Arrivals, bytes]:
    """The events in all whole lines, and the line that has not ended.

    Raises: Malformed when a line holds an event that is not as it was published.
    """
    end = text.rfind(b"\n") + 1
    came = tuple((int(number), int(ns)) for number, ns in _EVENT.findall(text, 0, end))
    if text.count(_MARK, 0, end) != len(came):
        raise Malformed(f"an event has changed on its way: {text[:200]!r}")
    return came, text[end:]


def first_id(text: bytes) -> bytes | None:
    """The first `id:` in the text."""
    found = _ID.search(text)
    return found[1] if found else None


def with_header(request: bytes, name: str, value: bytes) -> bytes:
    """The raw request, without a body, with one header more."""
    return b"%b%b: %b\r\n\r\n" % (request.removesuffix(b"\r\n"), name.encode(), value)
