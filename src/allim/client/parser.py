"""Bytes of a stream in, messages out."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_LINE_END = re.compile("\r\n|\n|\r")


class Message(NamedTuple):
    """One event of a stream.

    Shape: `id` is the position to resume from, the last one seen when the event brings none; `data` is decoded
    JSON. Beside domain events come `stream.open`, `stream.gap`, `stream.expiring`, `stream.close` and `heartbeat`:
    docs/protocol.md.
    """

    type: str
    data: Any
    id: str


class Parser:
    """Bytes in, messages out.

    Source: WHATWG HTML, 9.2.6. Line ends are CR, LF and CRLF and nothing else, wherever the bytes are cut.
    """

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self.retry_ms: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._at_start = True
        self._id = last_event_id
        self._type = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Message]:
        """The messages that this chunk completes."""
        messages = []
        for line in self._lines(self._decoder.decode(chunk)):
            if line:
                self._take_field(line)
            elif (message := self._dispatch()) is not None:
                messages.append(message)
        return messages

    def _lines(self, text: str) -> Iterator[str]:
        text = self._rest + text
        if self._at_start and text:
            text = text.removeprefix("\ufeff")
            self._at_start = False
        begin = 0
        for end in _LINE_END.finditer(text):
            if end[0] == "\r" and end.end() == len(text):
                break  # its LF may come with the next chunk
            yield text[begin : end.start()]
            begin = end.end()
        self._rest = text[begin:]

    def _take_field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit() and len(value) < 10:
            self.retry_ms = int(value)

    def _dispatch(self) -> Message | None:
        self.last_event_id = self._id
        type_, self._type = self._type or "message", ""
        data, self._data = self._data, []
        if not data:
            return None
        text = "\n".join(data)
        return Message(type_, json.loads(text) if text else "", self.last_event_id)
