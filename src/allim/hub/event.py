"""Events: validation and encoding.

An event is encoded once in the whole cluster, by the replica that publishes it, into two lines: its type and its
data as JSON. Brokers store and announce these lines. A transport makes of them the bytes that it writes, once per
event and framing, so no byte is made per stream.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from allim.errors import FieldError, Invalid, TooLarge
from allim.hub.close_reason import CloseReason
from allim.hub.position import Position
from allim.hub.topic import check_topic

_RESERVED = ("stream.", "heartbeat")
_ANY_TYPE = r"[a-z][a-z0-9_.-]{0,127}"
_TYPE = re.compile(_ANY_TYPE + r"\Z", re.ASCII)
TYPE_FORM = rf"(?!stream\.|heartbeat){_ANY_TYPE}"

# A control entry is announced and kept like an event, so it is ordered and survives a link repair like one.
# A stream carries it out and never writes it to a reader.
_CONTROL = "stream.control"
_TYPE_AT, _DATA_AT = len("event: "), b"\ndata: "
_CONTROL_PREFIX = b"event: %b%b" % (_CONTROL.encode(), _DATA_AT)


# The encoder that `json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",",
# ":"))` makes for each value. Making it takes longer than encoding most values.
_chunks = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
    None, json.JSONEncoder().default, json.encoder.encode_basestring, None, ":", ",", False, False, False
)


class Draft(NamedTuple):
    """An event before it has a position.

    Shape: `data` is any JSON value, as `json.loads` gives it.
    """

    topic: str
    type: str
    data: object


Check = Callable[[Draft], None]
"""Checks a draft of a declared type. Raises Invalid naming `topic`, or a field of the data: `data.lines[2].count`."""


class Entry(NamedTuple):
    """A checked and encoded draft, as a broker stores it."""

    topic: str
    lines: bytes


class Control(NamedTuple):
    """An order to the replicas that hold a user's streams: end some of them for a reason, or let them live longer.

    Shape: of the subject's streams it concerns those of one session, or those that a kick at `issued_until` ends, or
    those named. `reason` is why they end; without one they stay until `expires_at`, if they were to end sooner.
    Units: `issued_until` and `expires_at` in Unix seconds.
    """

    subject: str
    reason: CloseReason | None = None
    expires_at: float = 0.0
    session: str | None = None
    issued_until: float | None = None
    streams: tuple[str, ...] = ()


class Event:
    """One event at its position.

    Shape: `prev` is the position of the topic's event before it; `lines` is the stored form, as `encode` makes it.
    `control` is the order that a control entry carries, None for any other event.
    """

    __slots__ = ("_frames", "control", "lines", "position", "prev", "topic")

    def __init__(self, topic: str, position: Position, prev: Position, lines: bytes) -> None:
        """Raises: ValueError when it carries an unknown order."""
        self.topic = topic
        self.position = position
        self.prev = prev
        self.lines = lines
        self._frames: dict[Callable[[Event], bytes], bytes] = {}
        ordered = lines.startswith(_CONTROL_PREFIX)
        self.control = _control(json.loads(lines[len(_CONTROL_PREFIX) :])) if ordered else None

    @property
    def type(self) -> bytes:
        return self.lines[_TYPE_AT : self.lines.index(b"\n")]

    @property
    def data(self) -> bytes:
        """The data as JSON, on one line."""
        return self.lines[self.lines.index(b"\n") + len(_DATA_AT) : -2]

    def framed(self, frame: "Callable[[Event], bytes]") -> bytes:
        """Return the event's bytes as `frame` makes them, once for all streams that are written this way."""
        made = self._frames.get(frame)
        if made is None:
            made = self._frames[frame] = frame(self)
        return made


Framing = Callable[[Sequence[Event]], bytes]
"""Makes the bytes of events that a transport writes together. A transport has one for all its streams: the bytes are
kept by framing."""


class Run:
    """Events in order, at least one, that are written together.

    Shape: `first` and `last` are the positions at its ends.
    """

    __slots__ = ("_framed", "events", "first", "last")

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.first = events[0].position
        self.last = events[-1].position
        self._framed: dict[Framing, bytes] = {}

    def after(self, position: Position) -> "Run | None":
        """Return the events after a position, None if there is none."""
        events = [event for event in self.events if event.position > position]
        return Run(events) if events else None

    def framed(self, framing: Framing) -> bytes:
        """Return the bytes of all events in a framing. They are made once, and every stream gets the same object."""
        made = self._framed.get(framing)
        if made is None:
            made = self._framed[framing] = framing(self.events)
        return made


def encode(type_: str, data: object) -> bytes:
    """Return the lines of one event: `event: <type>`, `data: <JSON>` and an empty line.

    Shape: UTF-8, as in `text/event-stream`; data is one line, because JSON escapes every line end.
    Source: WHATWG HTML, 9.2.5.
    Raises: ValueError when `data` is no JSON value, or not encodable (a lone surrogate, NaN, too deep).
    """
    try:
        return f"event: {type_}\ndata: {''.join(_chunks(data, 0))}\n\n".encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def encode_draft(draft: Draft, max_event_bytes: int) -> Entry:
    """Check a draft and encode it.

    Raises: Invalid naming `topic`, `type` or `data`; TooLarge naming `data`.
    """
    topic = check_topic(draft.topic)
    check_type(draft.type)
    try:
        lines = encode(draft.type, draft.data)
    except ValueError as error:
        reason = "a lone surrogate" if isinstance(error, UnicodeError) else error
        raise Invalid.field("data", f"cannot be written as JSON: {reason}") from error
    if len(lines) > max_event_bytes:
        message = f"the event is {len(lines)} bytes, the limit is {max_event_bytes}"
        raise TooLarge(f"data: {message}", [FieldError("data", message)])
    return Entry(topic, lines)


@lru_cache(maxsize=1024)  # an application has some dozens
def check_type(type_: str) -> None:
    """Raises: Invalid naming `type` when it is malformed or reserved."""
    if not _TYPE.match(type_):
        raise Invalid.field("type", "must match [a-z][a-z0-9_.-]{0,127}")
    if type_.startswith(_RESERVED):
        raise Invalid.field("type", "`stream.*` and `heartbeat` are reserved")


def encode_control(topic: str, control: Control) -> Entry:
    """Return the entry that carries an order to every replica with streams of this topic."""
    order = {name: value for name, value in control._asdict().items() if value != Control._field_defaults.get(name)}
    return Entry(topic, encode(_CONTROL, order))


def _control(order: object) -> Control:
    """Raises: ValueError when it is no known order: the entry may come from another version or another program."""
    try:
        control = Control(**order)  # type: ignore[arg-type]
        return control._replace(
            reason=None if control.reason is None else CloseReason(control.reason),
            expires_at=float(control.expires_at),
            issued_until=None if control.issued_until is None else float(control.issued_until),
            streams=tuple(control.streams),
        )
    except TypeError as error:
        raise ValueError("not an order") from error
