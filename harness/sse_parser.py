"""A second reading of the standard: what a strict reader of `text/event-stream` hears.

Written from the standard's own steps and grammar, slow and plain, so that it shares neither code nor mistakes with
`allim.client`. Tests compare what was published with what this one hears.
Source: WHATWG HTML, 9.2.5 "Parsing an event stream" and 9.2.6 "Interpreting an event stream".
"""

from collections.abc import Iterable
from typing import NamedTuple

BOM = b"\xef\xbb\xbf"
CR, LF, COLON, SPACE, NUL = b"\r", b"\n", b":", b" ", b"\0"


class Heard(NamedTuple):
    """One event as a page gets it: `type`, `data` and `lastEventId` of its MessageEvent."""

    type: str
    data: str
    id: str


class Strict:
    """An event stream, taken a byte at a time. `retry_ms` is the reconnection time, when one was told."""

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self.last_event_id = ""
        self.heard: list[Heard] = []
        self._start: bytes | None = b""  # what may still become a byte order mark; None once that is decided
        self._line = b""
        self._after_cr = False
        self._type, self._data, self._id = b"", b"", b""

    def take(self, chunks: Iterable[bytes]) -> list[Heard]:
        """Everything heard so far, these chunks included. An event that is not complete is not heard."""
        for chunk in chunks:
            for number in chunk:
                self._take_first(bytes([number]))
        return self.heard

    def _take_first(self, byte: bytes) -> None:
        """One byte order mark may stand at the very beginning, and nowhere else."""
        if self._start is None:
            return self._take_byte(byte)
        start = self._start + byte
        if start == BOM:
            self._start = None
        elif BOM.startswith(start):
            self._start = start
        else:
            self._start = None
            for number in start:
                self._take_byte(bytes([number]))
        return None

    def _take_byte(self, byte: bytes) -> None:
        if byte == LF and self._after_cr:  # a CR and a LF are one end of line
            self._after_cr = False
            return
        self._after_cr = byte == CR
        if byte in (CR, LF):
            line, self._line = self._line, b""
            self._take_line(line)
        else:
            self._line += byte

    def _take_line(self, line: bytes) -> None:
        if not line:
            self._dispatch()
        elif COLON not in line:
            self._take_field(line, b"")
        elif not line.startswith(COLON):  # such a line is a comment
            name, value = line.split(COLON, 1)
            self._take_field(name, value[1:] if value.startswith(SPACE) else value)

    def _take_field(self, name: bytes, value: bytes) -> None:
        if name == b"event":
            self._type = value
        elif name == b"data":
            self._data += value + LF
        elif name == b"id" and NUL not in value:
            self._id = value
        elif name == b"retry" and value and set(value) <= set(b"0123456789"):
            self.retry_ms = int(value)

    def _dispatch(self) -> None:
        self.last_event_id = _text(self._id)
        data, type_ = self._data, self._type
        self._data, self._type = b"", b""
        if data:
            self.heard.append(Heard(_text(type_) or "message", _text(data.removesuffix(LF)), self.last_event_id))


def _text(raw: bytes) -> str:
    """Decoded by parts, which gives the same as the whole: no byte of a longer character is CR, LF or a colon."""
    return raw.decode("utf-8", "replace")
