"""Requests as bytes, which no HTTP client would send, and a strict look at what comes back."""

import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus

QUIET_S = 0.1  # a connection on which nothing came for so long has said all it wanted to say

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2}) [\x20-\x7e]*")
_HEADER = re.compile(rb"([A-Za-z0-9-]+): ([\x20-\x7e\xa0-\xff]*)")


@dataclass(frozen=True)
class Answer:
    """Shape: header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def refused(self) -> bool:
        """Whether it says that the request was wrong."""
        return 400 <= self.status < 500


@dataclass(frozen=True)
class Said:
    """All that came back over one connection."""

    raw: bytes
    closed: bool

    @property
    def answers(self) -> list[Answer]:
        """The answers, one behind the other.

        Raises: AssertionError where a byte belongs to none, or a head has a line that is no header.
        """
        found, rest = [], self.raw
        while rest:
            head, separator, rest = rest.partition(b"\r\n\r\n")
            assert separator, f"a head that does not end: {head[:300]!r}"
            answer, rest = _answer(head, rest)
            if answer.status >= HTTPStatus.OK:
                found.append(answer)
        return found

    @property
    def only(self) -> Answer:
        """The one answer there is."""
        (answer,) = self.answers
        return answer


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        yield connection


def say(port: int, *pieces: bytes, quiet_s: float = QUIET_S, end: bool = False) -> Said:
    """Send these bytes, each piece by itself, and read what comes; with `end`, nothing more can follow."""
    with connected(port) as connection:
        closed = False
        try:
            for piece in pieces:
                connection.sendall(piece)
            if end:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            closed = True  # it was cut off, and may have been told why before
        raw, ended = read(connection, quiet_s)
        return Said(raw, closed or ended)


def read(connection: socket.socket, quiet_s: float = QUIET_S) -> tuple[bytes, bool]:
    """What comes until it is quiet, with patience for an answer and for a stream's first frame; and whether the other
    side has closed."""
    raw = b""
    connection.settimeout(10)
    while True:
        try:
            chunk = connection.recv(65536)
        except TimeoutError:
            return raw, False
        except ConnectionError:
            return raw, True
        if not chunk:
            return raw, True
        raw += chunk
        if b"text/event-stream" not in raw or b"\n\n" in raw:
            connection.settimeout(quiet_s)


def request(
    method: str | bytes = "GET",
    target: str | bytes = "/api/accounts/me",
    headers: Mapping[str, str | bytes] | None = None,
    body: bytes = b"",
) -> bytes:
    """One request, written as told; Host, Content-Length and `Connection: close` are added where missing."""
    named = {"Host": "allim.test", "Connection": "close", **(headers or {})}
    if body and "Content-Length" not in named:
        named["Content-Length"] = str(len(body))
    lines = [b"%b %b HTTP/1.1" % (_bytes(method), _bytes(target))]
    lines += [b"%b: %b" % (_bytes(name), _bytes(value)) for name, value in named.items()]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _answer(head: bytes, rest: bytes) -> tuple[Answer, bytes]:
    status_line, *lines = head.split(b"\r\n")
    status = _STATUS_LINE.fullmatch(status_line)
    assert status, f"no status line: {status_line!r}"
    headers = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        assert header, f"no header: {line!r}"
        headers[header[1].decode().lower()] = header[2].decode("latin-1")
    if "content-length" in headers:
        length = int(headers["content-length"])
        return Answer(int(status[1]), headers, rest[:length]), rest[length:]
    if headers.get("transfer-encoding") == "chunked":
        body, rest = _unchunked(rest)
        return Answer(int(status[1]), headers, body), rest
    bodiless = int(status[1]) in (HTTPStatus.CONTINUE, HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
    return Answer(int(status[1]), headers, b"" if bodiless else rest), rest if bodiless else b""


def _unchunked(rest: bytes) -> tuple[bytes, bytes]:
    body = b""
    while rest:
        size_line, _, rest = rest.partition(b"\r\n")
        size = int(size_line, 16)
        body, rest = body + rest[:size], rest[size + 2 :]
        if not size:
            break
    return body, rest


def _bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
