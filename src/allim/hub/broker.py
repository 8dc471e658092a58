"""The promise a broker makes. Implementations: `allim.brokers.memory`, `allim.brokers.redis`.

Promised: positions rise strictly over all topics; one publish is atomic (all its entries or none); what is
announced is in history first; announcements on one link arrive in the order of their positions.
Not promised: that an announcement arrives. A link may break and lose some; it then says so (`link_down`,
`link_up`) and history is the truth.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from allim.errors import Conflict, FieldError
from allim.hub.event import Entry, Event
from allim.hub.position import Position

IDEMPOTENCY_WINDOW_S = 24 * 3600


class Publication(NamedTuple):
    """What one publish call stores: all entries or none.

    Shape: `key` names the publisher and its idempotency key, `fingerprint` the content; both or neither.
    """

    entries: Sequence[Entry]
    key: str | None
    fingerprint: str


class TopicHistory(NamedTuple):
    """A page of one topic's history.

    Shape: `oldest_prev` is the `prev` of the oldest kept entry, that is the newest trimmed position, or None
    when nothing is kept; `more` counts the kept events after this page.
    """

    topic: str
    events: Sequence[Event]
    oldest_prev: Position | None
    more: int


class Reading(NamedTuple):
    """Pages of several topics, read in one atomic step.

    Shape: `now` is the newest position given out: the pages, with what `more` counts, hold everything up to it.
    `floor` is where the history's origin begins.
    Units: `time_ms` is the broker's clock in Unix milliseconds.
    """

    now: Position
    floor: Position
    time_ms: int
    topics: Sequence[TopicHistory]


class Listener(Protocol):
    """Who hears what the link brings. Called in the order of the link, never concurrently."""

    def on_event(self, event: Event) -> None: ...

    def on_pulse(self, position: Position) -> None: ...

    def link_down(self) -> None:
        """The link is lost; from here on announcements may be missing."""

    def link_up(self) -> None:
        """Every wanted topic is subscribed again; what was missed must be read from history."""


class Broker(Protocol):
    """Carries events between replicas and keeps each topic's history."""

    durability: str

    async def start(self, listener: Listener) -> None:
        """Begin to listen. Returns at once; `link_up` tells when the link stands."""

    async def close(self) -> None: ...

    async def publish(self, publication: Publication) -> Sequence[Position]:
        """Store and announce, in one atomic step.

        Raises: Conflict when the key is known with another fingerprint; Unavailable when the store did not
        confirm: then it may or may not have happened, and only a key makes a retry safe.
        """
        ...

    async def subscribe(self, topics: Collection[str]) -> None:
        """Hear these topics from now on; returns when the broker has confirmed. Repeating it is harmless."""

    def unsubscribe(self, topic: str) -> None: ...

    async def read(self, topics: Sequence[str], after: Position | None, limit: int) -> Reading:
        """History after a position, at most `limit` events of each topic; None reads only the clock.

        Raises: Unavailable.
        """
        ...

    async def pulse(self) -> None:
        """Send this replica a position through the whole way; `on_pulse` hears it.

        Raises: Unavailable.
        """

    def replace_link(self) -> None:
        """Give the present link up and make a new one: it is open, but nothing comes over it."""


def idempotency_conflict() -> Conflict:
    """The one answer to a known key with another fingerprint."""
    message = "this key was used for another body within the last 24 hours"
    return Conflict(f"Idempotency-Key: {message}", [FieldError("Idempotency-Key", message)])
