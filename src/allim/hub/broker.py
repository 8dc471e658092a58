"""The promise a broker makes. Implementations: `allim.brokers.memory`, `allim.brokers.redis`.

Promised: positions rise strictly over all topics; one publish is atomic (all its entries or none); what is
announced is in history first; announcements on one link arrive in the order of their positions; a new origin is
announced before anything that follows it.
Not promised: that an announcement arrives. A link may break and lose some; it then says so (`link_down`,
`link_up`) and history is the truth.
"""

from collections.abc import Awaitable, Collection, Sequence
from typing import NamedTuple, Protocol

from allim.hub.event import Entry, Event
from allim.hub.ledger import Demand, Quota
from allim.hub.position import Position

IDEMPOTENCY_WINDOW_S = 24 * 3600


class Publication(NamedTuple):
    """What one publish call stores: all entries or none.

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
    """A page of what several topics hold after a position, read in one atomic step.

    Shape: `events` in order, everything there is up to `until`; `complete` when nothing is left after it, and then
    `until` is `now`, the newest position given out. `floor` is where the history's origin begins. `kept` counts the
    entries after the position asked for, in this page and after it. `trimmed` names the topics whose history has lost
    entries after that position, `expired` those of which a history that was removed may have held some; no topic is
    in both.
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
    """How far each of several topics has come: its newest kept position, or the first of all when nothing is kept.

    Shape: `now` and `floor` as in `Reading`; `expired` is the newest position that a history held which was removed.
    """

    now: Position
    floor: Position
    expired: Position
    newest: Sequence[Position]


class Listener(Protocol):
    """Who hears what the link brings. Called in the order of the link, never concurrently."""

    def on_events(self, events: Sequence[Event]) -> None:
        """One or more, of one topic and in order, that came together."""

    def on_pulse(self, position: Position) -> None: ...

    def on_origin(self, floor: Position) -> None:
        """The history has a new origin: of what is older, what was not heard yet may be lost."""

    def link_down(self) -> None:
        """The link is lost; from here on announcements may be missing."""

    def link_up(self) -> None:
        """Every wanted topic is subscribed again; what was missed must be read from history."""

    async def room(self) -> None:
        """Return when there is room for what the link brings next: it is read no faster than streams are written."""


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
        """Begin to listen. Returns at once; `link_up` tells when the link stands."""

    async def close(self) -> None: ...

    def publish(self, publication: Publication) -> Awaitable[Outcome]:
        """Charge the demand, store and announce, in one atomic step.

        Raises: Unavailable when the store did not confirm within its deadline: then it may or may not have happened,
        and only a key makes a retry safe.
        """
        ...

    async def subscribe(self, topics: Collection[str]) -> None:
        """Hear these topics from now on; returns when the broker has confirmed. Repeating it is harmless."""

    def unsubscribe(self, topic: str) -> None: ...

    def read(
        self, topics: Sequence[str], after: Position | None, max_events: int, max_bytes: int
    ) -> Awaitable[Reading]:
        """History after a position, up to a number of events and about a number of bytes, and at least one event if
        there is any; None reads only the clock.

        Raises: Unavailable.
        """
        ...

    async def heads(self, topics: Sequence[str]) -> Heads:
        """Raises: Unavailable."""
        ...

    async def pulse(self) -> float:
        """Send this replica a position through the whole way; `on_pulse` hears it. Gives the broker's clock.

        Units: Unix seconds.
        Raises: Unavailable.
        """
        ...

    async def replace_link(self) -> None:
        """Give the present link up and make a new one: it is open, but nothing comes over it."""
