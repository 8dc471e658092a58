"""The resume verdict: whether a stream with a last event ID gets everything it missed. Pure.

Source: docs/protocol.md, "Resume".
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from allim.hub.broker import Reading
from allim.hub.position import Position

ResetReason = Literal["malformed", "ahead", "origin", "expired", "trimmed"]


class Reset(NamedTuple):
    """A topic with lost events after the last event ID."""

    topic: str
    reason: ResetReason


class Verdict(NamedTuple):
    """Shape: `after` is the position to read history from, None when the last event ID gives none."""

    resume: Literal["new", "complete", "reset"]
    resets: tuple[Reset, ...]
    after: Position | None


def parse_last_event_id(text: str | None) -> Position | None:
    """Return the position in a last event ID, or None if it is missing or malformed."""
    if not text:
        return None
    try:
        return Position.parse(text)
    except ValueError:
        return None


def judge(last_event_id: str | None, topics: Sequence[str], reading: Reading) -> Verdict:
    """Return which topics have lost events for a stream with this last event ID.

    Shape: the reading is of history after the last event ID.
    """
    if not last_event_id:
        return Verdict("new", (), None)
    after = parse_last_event_id(last_event_id)
    if after is None:
        return _reset_all(topics, "malformed", None)
    if after > reading.now:
        return _reset_all(topics, "ahead", None)
    if after < reading.floor:
        return _reset_all(topics, "origin", after)
    lost = (
        *(Reset(topic, "expired") for topic in reading.expired),
        *(Reset(topic, "trimmed") for topic in reading.trimmed),
    )
    return Verdict("reset" if lost else "complete", lost, after)


def _reset_all(topics: Sequence[str], reason: ResetReason, after: Position | None) -> Verdict:
    return Verdict("reset", tuple(Reset(topic, reason) for topic in topics), after)
