"""The contract of a ledger: the state of users and sessions that all replicas share. Implementations:
`allim.brokers`.

Promised: every later call, on any replica, sees the writes of a call that returned; each call is atomic. An entry is
kept for as long as it can change an answer, and no longer.
Not promised: that it outlives its store. A Redis without persistence that restarts has lost all of it.
"""

import hashlib
from collections.abc import Awaitable, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from allim.errors import Kicked, SignedOut, Unauthenticated
from allim.identity import Ticket


class SessionState(StrEnum):
    """The state of a session or a ticket: it may be used (`GOOD`), or the reason why not."""

    GOOD = "good"
    SIGNED_OUT = "signed_out"
    KICKED = "kicked"
    SPENT = "spent"


def refuse_ended(state: SessionState) -> None:
    """Raises: SignedOut, Kicked or Unauthenticated."""
    if state is SessionState.SIGNED_OUT:
        raise SignedOut("The session has ended; sign in again.")
    if state is SessionState.KICKED:
        raise Kicked("The session was ended; sign in again.")
    if state is SessionState.SPENT:
        raise Unauthenticated("The ticket was used before; get a new one.", reason="ticket_used")


class Holder(Protocol):
    """The holder of a session: an identity, or one of its streams.

    Units: Unix seconds; `issued_at` is 0 when the token does not say: then it counts as older than every kick.
    `after_kick` is the moment of the user's last kick before the token was issued, None when the token does not say:
    then `issued_at` is compared with the moment of a kick.
    """

    @property
    def subject(self) -> str: ...

    @property
    def session(self) -> str: ...

    @property
    def issued_at(self) -> float: ...

    @property
    def expires_at(self) -> float: ...

    @property
    def after_kick(self) -> float | None: ...


def is_kicked(holder: Holder, moment: float) -> bool:
    """Return whether a kick at this moment ends the holder's session."""
    return holder.issued_at <= moment if holder.after_kick is None else holder.after_kick < moment


class Demand(NamedTuple):
    """A charge of `cost` against a rate of `limit` per `period_s`, shared by all replicas.

    Shape: `name` identifies the rate and its subject, such as `user:42`. Any text.
    """

    name: str
    limit: int
    period_s: int
    cost: int = 1

    @property
    def digest(self) -> str:
        """The SHA-256 of the name, in hex: of fixed form, so it can stand in a key."""
        return hashlib.sha256(self.name.encode()).hexdigest()

    @property
    def terms(self) -> tuple[int, int, int]:
        """The arguments of scripts: limit, period in microseconds, cost."""
        return self.limit, self.period_s * 1_000_000, self.cost


class Quota(NamedTuple):
    """The result of a demand.

    Units: `remaining` as in the demand's limit; `reset_s` until the whole limit is available again, `retry_after_s`
    until the same demand would be granted (0 when it was), both in seconds.
    """

    granted: bool
    remaining: int
    reset_s: float
    retry_after_s: float

    @classmethod
    def read(cls, reply: Sequence[int]) -> "Quota":
        """Read a script's reply: granted (1 or 0), remaining, reset and retry after in microseconds."""
        granted, remaining, reset_us, retry_after_us = reply
        return cls(bool(granted), remaining, reset_us / 1e6, retry_after_us / 1e6)


class Grant(NamedTuple):
    """The result of several demands. `quotas` has one per demand; none when the session is not good, or when the
    store can be read but takes no writes at the moment.
    """

    state: SessionState
    quotas: Sequence[Quota]

    @property
    def granted(self) -> bool:
        return self.state is SessionState.GOOD and all(quota.granted for quota in self.quotas)


class Admission(NamedTuple):
    """The result for a stream that is being opened: as in `Grant`, and, when all demands were granted, `displaced`:
    the IDs of the user's oldest streams that exceed the limit.
    """

    state: SessionState
    quotas: Sequence[Quota] = ()
    displaced: Sequence[str] = ()


class Ledger(Protocol):
    """Every call raises Unavailable when the store does not answer."""

    async def close(self) -> None: ...

    async def sign_out(self, holder: Holder, keep_s: float) -> None:
        """End the holder's session: it may not be used any more."""

    async def kick(self, subject: str, keep_s: float, now: float) -> float:
        """End every session of the user from before now. Returns the moment of the kick.

        Units: Unix seconds; `now` by the caller's clock. Each kick of a user has a later moment than the one before,
        also when clocks are stepped.
        """
        ...

    async def last_kick(self, subject: str) -> float:
        """Return the moment of the user's last remembered kick, 0 when there is none."""
        ...

    async def session_states(self, holders: Sequence[Holder]) -> Sequence[SessionState]: ...

    def admit(
        self,
        holder: Holder,
        stream: str,
        most: int,
        keep_s: float,
        ticket: Ticket | None = None,
        demands: Sequence[Demand] = (),
    ) -> Awaitable[Admission]:
        """Record a stream of the user and spend its ticket, if both are good and the demands are granted. If the user
        then has more than `most` streams, the oldest are displaced.

        Units: `keep_s` is the time after which the stream has certainly ended, even if `remove_stream` was never
        called.
        """
        ...

    def remove_stream(self, subject: str, stream: str) -> None:
        """Remove an ended stream. Returns at once; if the store cannot be reached, the stream counts until
        `keep_s`.
        """

    def charge(self, demands: Sequence[Demand], holder: Holder | None = None) -> Awaitable[Grant]:
        """Grant all demands or none; none to a holder whose session has ended. A demand that costs more than its
        limit is granted if nothing of the limit is used.
        """
        ...
