"""A stream: one open client connection and its topics. Transports write the bytes; the order is kept here.

A stream is either catching up (arriving events go to its backlog) or live (arriving events are written at once).
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import NamedTuple

from allim.hub.close_reason import CloseReason
from allim.hub.event import Control, Event, Run
from allim.hub.ledger import is_kicked
from allim.hub.position import ZERO, Position
from allim.hub.resume import Verdict
from allim.identity import Identity


class Opening(NamedTuple):
    """The content of the first frame.

    Shape: `position` is the stream's position before anything else is written.
    """

    verdict: Verdict
    position: Position
    replayed: int


class Backlog:
    """The events that arrive live while a stream catches up, up to a limit of bytes.

    Shape: `whole` is False once an announced event is not in it; the event is in history then, and catch-up reads on.
    `floor` is the newest origin announced meanwhile.
    """

    __slots__ = ("events", "floor", "max_bytes", "size", "whole")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.floor = ZERO
        self.clear()

    def clear(self) -> None:
        self.events: list[Event] = []
        self.size = 0
        self.whole = True

    def put(self, event: Event) -> None:
        if not self.whole:
            return  # it is read from history, with the events before it
        if self.events and event.position <= self.events[-1].position:
            return  # a broadcast put it here before its turn, because something newer arrived
        self.size += len(event.lines)
        if self.size <= self.max_bytes:
            self.events.append(event)
        else:
            self.spoil()

    def pop_all(self) -> list[Event]:
        """Remove and return the events."""
        events = self.events
        self.events, self.size = [], 0
        return events

    def spoil(self) -> None:
        """Note that an announced event may be missing here."""
        self.whole = False
        self.events.clear()


class Stream(ABC):
    """The hub's state of an open connection. It has no task, no queue and no timer of its own.

    Shape: `last` is the position up to which all events of its topics were written, or told as lost; the events after
    `covered_from` and up to `covered` were read from history, so none is missing there; `beat` is its heartbeat
    round; `deadline` is the wheel's slot in which the hub looks at it again; `warned` is whether the reader was told
    that its token expires; `address` is the network that it is counted under, "" if it is not counted.
    Units: `opened_at` and `ends_at`, when its lifetime is over, in seconds of the hub's clock; `expires_at` and
    `issued_at`, its token's, in Unix seconds; `after_kick` as in `Identity`; `unix_s` is the difference of Unix
    seconds and the hub's clock when the stream opened: a later step of the wall clock does not move its end.
    """

    __slots__ = (
        "_last",
        "address",
        "after_kick",
        "backlog",
        "beat",
        "close_reason",
        "covered",
        "covered_from",
        "deadline",
        "ends_at",
        "expires_at",
        "id",
        "issued_at",
        "opened_at",
        "session",
        "subject",
        "topics",
        "unix_s",
        "warned",
    )

    def __init__(
        self, stream_id: str, identity: Identity, topics: tuple[str, ...], backlog: Backlog, address: str = ""
    ) -> None:
        self.id = stream_id
        self.address = address
        self.subject = identity.subject
        self.session = identity.session
        self.issued_at = identity.issued_at
        self.expires_at = identity.expires_at
        self.after_kick = identity.after_kick
        self.warned = False
        self.ends_at = 0.0
        self.unix_s = 0.0
        self.topics = topics
        self.backlog: Backlog | None = backlog
        self._last = ZERO
        self.covered_from = self.covered = ZERO
        self.beat = 0
        self.opened_at = 0.0
        self.deadline = 0
        self.close_reason: CloseReason | None = None

    @property
    def last(self) -> Position:
        return self._last

    def deliver(self, run: Run) -> int:
        """Write announced events, or put them into the backlog while the stream catches up. Returns how many of them,
        the last ones, were written.

        Events that the stream already has are dropped here, so its positions strictly rise.
        """
        if self.backlog is not None:
            for event in run.events:
                self.backlog.put(event)
            return 0
        if run.first <= self._last:
            rest = run.after(self._last)
            if rest is None:
                return 0
            run = rest
        self._last = run.last
        self.write(run)
        return len(run.events)

    def deliver_missed(self, run: Run) -> None:
        """Write events that the stream missed, all newer than its position, while it catches up."""
        self._last = run.last
        self.write(run)

    def pass_to(self, position: Position) -> bool:
        """Note that everything up to this position was written or told as lost.

        Returns False, having done nothing, if the stream is at this position or after it.
        """
        if position <= self._last:
            return False
        self._last = position
        return True

    def obey(self, control: Control) -> None:
        """Carry out an order that may concern this stream."""
        concerned = (
            control.session == self.session
            or (control.issued_until is not None and is_kicked(self, control.issued_until))
            or self.id in control.streams
        )
        if control.subject != self.subject or not concerned:  # others may read this user's topic too
            return
        if control.reason is not None:
            self.close(control.reason)
        elif control.expires_at > self.expires_at:
            self.expires_at = control.expires_at
            self.warned = False

    def note_read(self, after: Position, until: Position) -> None:
        """Note that its topics were read from history between these positions."""
        if after > self.covered:  # otherwise it continues the earlier range
            self.covered_from = after
        self.covered = max(self.covered, until)

    def has_read(self, position: Position) -> bool:
        """Return whether the position lies in the range that was read from history.

        An event of its topics at this position was then written or told as lost, and so was the event before it.
        """
        return self.covered_from < position <= self.covered

    @property
    def live(self) -> bool:
        return self.backlog is None

    @property
    def ended(self) -> bool:
        return self.close_reason is not None

    @abstractmethod
    def write(self, run: Run) -> None:
        """Give events to the connection. Returns at once.

        A live stream whose buffer is full goes back to catch-up.
        """

    @abstractmethod
    def open(self, opening: Opening) -> None:
        """Write the first frame."""

    @abstractmethod
    def heartbeat(self, position: Position | None) -> None:
        """Write a heartbeat; with a position if everything before it has been written."""

    @abstractmethod
    def gap(self, topics: Collection[str], reason: str) -> None:
        """Tell the reader that events of these topics are lost to this stream."""

    @abstractmethod
    def expiring(self, left_s: float) -> None:
        """Tell the reader that its token expires, so that it can renew it in time."""

    @abstractmethod
    def close(self, reason: CloseReason) -> None:
        """End the connection; tell the reader the reason if `reason.told`. Idempotent."""

    @abstractmethod
    async def writable(self) -> None:
        """Return when the connection takes more bytes or has ended. Ends a reader that reads nothing."""
