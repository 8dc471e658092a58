"""The contract of a broker. Implementations: `allim.brokers.memory`, `allim.brokers.redis`.

Promised: positions rise strictly over all topics; one publish is atomic (all its entries or none); an event is in
history before it is announced; announcements on one link arrive in the order of their positions; a new origin is
announced before anything that follows it.
Not promised: that an announcement arrives. A link may break and lose some; it then reports it (`link_down`,
`link_up`) and history is the truth.
"""

from collections.abc import Awaitable, Collection, Sequence
from typing import NamedTuple, Protocol

from allim.hub.event import Entry, Event
from allim.hub.ledger import Demand, Quota
from allim.hub.position import Position

IDEMPOTENCY_WINDOW_S = 24 * 3600


class Publication(NamedTuple):
    """The entries of one publish call, stored all or none.

    Shape: `key` names the publisher and its idempotency key, `fingerprint` the content; both or neither. `demand` is
    the charge of the call in the ledger, None when it is not limited; `memory` is charged the bytes that the call
    adds to the store, which the broker computes. A `vital` publish ends sessions: it is stored also while the
    store has used up its memory.
    Units: `keep_s` is how long the key is known, counted from its last use.
    """

    entries: Sequence[Entry]
    key: str | None
    fingerprint: str
    demand: Demand | None = None
    memory: Demand | None = None
    keep_s: int = IDEMPOTENCY_WINDOW_S
    vital: bool = False


class Outcome(NamedTuple):
    """The outcome of a publish.

    Shape: `quotas` are those of its demand, and of its memory if it adds something. `positions` has one per entry;
    none when one of them was not granted, or in a `conflict`: the key is known with another fingerprint. Then nothing
    is stored.
    """

    positions: Sequence[Position]
    quotas: Sequence[Quota] = ()
    conflict: bool = False


class Reading(NamedTuple):
    """A page of the history of several topics after a position, read in one atomic step.

    Shape: `events` are all events up to `until`, in order; if `complete`, no event follows, and `until` is `now`, the
    newest position given out. `floor` is where the history's origin begins. `kept` counts the entries after the
    requested position, on this page and after it. `trimmed` names the topics whose history has lost entries after
    that position, `expired` the topics whose removed history may have held some; no topic is in both.
    """

    now: Position
    floor: Position
    events: Sequence[Event]
    until: Position
    kept: int
    trimmed: Sequence[str]
    expired: Sequence[str]
    complete: bool


class Heads(NamedTuple):
    """The newest kept position of each of several topics; ZERO for a topic without history.

    Shape: `now` and `floor` as in `Reading`; `expired` is the newest position that any removed history held.
    """

    now: Position
    floor: Position
    expired: Position
    newest: Sequence[Position]


class Listener(Protocol):
    """Receives everything that arrives over the link, in its order. Never called concurrently."""

    def on_events(self, events: Sequence[Event]) -> None:
        """Receive one or more events of one topic, in order, that arrived together."""

    def on_pulse(self, position: Position) -> None: ...

    def on_origin(self, floor: Position) -> None:
        """The history has a new origin: older events that did not arrive yet may be lost."""

    def on_hint(self, name: str) -> None:
        """Receive a hint from a replica, perhaps this one."""

    def link_down(self) -> None:
        """The link is lost; from here on announcements may be missing."""

    def link_up(self) -> None:
        """Every subscribed topic is subscribed again; missed events must be read from history."""

    async def writable(self) -> None:
        """Return when more may be read from the link: it is read no faster than the streams are written."""


class Broker(Protocol):
    """Carries events between replicas and keeps each topic's history.

    Shape: `durability` is how safely a publish that returned is stored: `memory`, `replica` or `disk`.
    """

    @property
    def durability(self) -> str: ...

    @property
    def memory_max_bytes(self) -> int:
        """The memory that the store may use; 0 where it has no limit, or it is not known yet."""
        ...

    async def start(self, listener: Listener) -> None:
        """Start the link. Returns at once; `link_up` is called when the link is up."""

    async def close(self) -> None: ...

    def publish(self, publication: Publication) -> Awaitable[Outcome]:
        """Charge the demand, store and announce, in one atomic step.

        Raises: Unavailable when the store did not confirm within its deadline: then it may or may not have happened,
        and only a key makes a retry safe.
        """
        ...

    async def subscribe(self, topics: Collection[str]) -> None:
        """Subscribe topics; returns when the broker has confirmed it. Idempotent."""

    def unsubscribe(self, topic: str) -> None: ...

    def read(
        self, topics: Sequence[str], after: Position | None, max_events: int, max_bytes: int
    ) -> Awaitable[Reading]:
        """Return the history after a position: at most `max_events` and about `max_bytes`, but at least one event if
        there is one. With None as the position, read only the clock.

        Raises: Unavailable.
        """
        ...

    async def heads(self, topics: Sequence[str]) -> Heads:
        """Raises: Unavailable."""
        ...

    async def pulse(self) -> float:
        """Send a position to this replica over the broker and the link (`on_pulse`). Returns the broker's clock.

        Units: Unix seconds.
        Raises: Unavailable.
        """
        ...

    async def hint(self, name: str) -> None:
        """Announce a name to every replica (`on_hint`). Nothing is stored, and it may be lost or arrive twice.

        Raises: Unavailable.
        """
        ...

    async def replace_link(self) -> None:
        """Close the present link and make a new one. Called when the link is open but nothing arrives over it."""
