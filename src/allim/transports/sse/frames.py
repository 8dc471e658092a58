"""The frames of a stream as exact bytes: of events, and those that allim itself writes. Pure.

An event is stored as the lines of its frame, so only its id is put before them.
Source: WHATWG HTML, 9.2.6 "Interpreting an event stream"; names and data in docs/protocol.md.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache

from allim.hub import CloseReason, Event, Opening, Position, encode

MEDIA_TYPE = "text/event-stream"
HEADERS = {
    "content-type": MEDIA_TYPE,
    "cache-control": "no-store, no-transform",  # a proxy that compresses would hold events back: RFC 9111, 5.2.2.6
    "x-accel-buffering": "no",
}
LAST_CHUNK = b"0\r\n\r\n"

_SAID = HEADERS | {"connection": "close"}
_START = "".join(["HTTP/1.1 200 OK\r\n", *(f"{name}: {value}\r\n" for name, value in _SAID.items())]).encode()
_CHUNKED_START = _START + b"transfer-encoding: chunked\r\n"
_BARE = b"HTTP/1.1 200 OK\r\nconnection: close\r\n"
_CHUNKED_BARE = _BARE + b"transfer-encoding: chunked\r\n"
_OF_CONNECTION = frozenset({b"connection", b"content-length", b"keep-alive", b"transfer-encoding"})
_OWN_NAMES = frozenset({*_SAID, "transfer-encoding"})
_ID = re.compile(rb"(?:\A(?:retry: \d+\n)?|(?<=\n\n))id: [^\n]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def head(headers: Mapping[str, str], lines: bytes = b"", *, chunked: bool) -> bytes:
    """The response head of a stream written without the server. The stream is its connection's last response.

    Shape: those of `headers` that a stream sets itself are left out; `lines` are other fields, known to be sound. The
    body is `chunked`, or ends with the connection, which is for clients that speak HTTP/1.0.
    Raises: ValueError when a name or value would end its line (CR, LF) or holds another control character.
    """
    fields = [f"{name}: {value}\r\n" for name, value in headers.items() if name not in _OWN_NAMES]
    said = "".join(fields)
    if len(_CONTROL.findall(said)) > 2 * len(fields):  # more than the ends of lines
        bad = [name for name, value in headers.items() if _CONTROL.search(name + value)]
        raise ValueError(f"header {bad[0]!r} holds a control character")
    start = _CHUNKED_START if chunked else _START
    return b"%b%b%b\r\n" % (start, said.encode("latin-1"), lines)


def raw_head(fields: Iterable[tuple[bytes, bytes]], *, chunked: bool) -> bytes:
    """The same head, of a response's own fields, with those of a stream among them.

    Shape: names are lower-case; the length of a body and fields of the connection are left out.
    Raises: ValueError as `head`.
    """
    lines = []
    for name, value in fields:
        if name in _OF_CONNECTION:
            continue
        if _CONTROL.search((name + value).decode("latin-1")):
            raise ValueError(f"header {name!r} holds a control character")
        lines.append(b"%b: %b\r\n" % (name, value))
    start = _CHUNKED_BARE if chunked else _BARE
    return b"%b%b\r\n" % (start, b"".join(lines))


def event(event: Event) -> bytes:
    """Return the frame of an event."""
    return b"id: %d-%d\n%b" % (event.position.ms, event.position.seq, event.lines)


def plain(events: Sequence[Event]) -> bytes:
    """Return the frames of events, for a body without chunks, or one of which the server makes the chunks."""
    return b"".join([each.framed(event) for each in events])


def chunked(events: Sequence[Event]) -> bytes:
    """Return the frames of events as one chunk of a body."""
    return chunk(plain(events))


def chunk(frames: bytes) -> bytes:
    """Return these frames as one chunk of a body.

    Shape: `frames` is not empty, because an empty chunk ends the body.
    Source: RFC 9112, 7.1.
    """
    return b"%x\r\n%b\r\n" % (len(frames), frames)


def opening(stream_id: str, user: str, replica: str, opening: Opening, heartbeat_s: float, retry_ms: int) -> bytes:
    """The first frame of every stream: its user, the verdict, and an id to resume from."""
    data = {
        "stream": stream_id,
        "user": user,
        "replica": replica,
        "resume": opening.verdict.resume,
        "replayed": opening.replayed,
        "resets": [{"topic": reset.topic, "reason": reset.reason} for reset in opening.verdict.resets],
        "heartbeat_s": int(heartbeat_s) if heartbeat_s == int(heartbeat_s) else heartbeat_s,
    }
    return b"retry: %d\nid: %b\n%b" % (retry_ms, str(opening.position).encode(), encode("stream.open", data))


@lru_cache(maxsize=4)  # one pulse is written to a third of all streams
def heartbeat(position: Position | None) -> bytes:
    """A named event, so that a page can see it; with an id when everything before it has been written."""
    lines = encode("heartbeat", {})
    return lines if position is None else b"id: %b\n%b" % (str(position).encode(), lines)


def gap(topics: Collection[str], reason: str) -> bytes:
    """Events of these topics are lost to this stream. No id: nothing was delivered."""
    return encode("stream.gap", {"topics": list(topics), "reason": reason})


def expiring(left_s: float) -> bytes:
    """The stream's token expires in so many seconds. No id: nothing was delivered."""
    return encode("stream.expiring", {"expires_in_s": max(0, int(left_s))})


def close(reason: CloseReason, retry_ms: int) -> bytes:
    """The last frame. `retry:` spreads the returning clients."""
    data = {"reason": str(reason), "reconnect": reason.reconnect}
    return b"retry: %d\n%b" % (retry_ms, encode("stream.close", data))


def with_proof(wire: bytes, proof: bytes) -> bytes:
    """The frames with this behind each id there is. An id stands first in its frame, or after `retry:`."""
    return _ID.sub(lambda head: head[0] + proof, wire)
