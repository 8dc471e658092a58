"""The promise of a ledger: what all replicas must agree on about people. Implementations: `allim.brokers`.

Promised: what one call has written every later call sees, on whatever replica; each call is atomic. Entries keep for
as long as they mean something, and no longer.
Not promised: that it outlives its store. A Redis without persistence that restarts has forgotten all of it.
"""

import hashlib
from collections.abc import Awaitable, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from allim.identity import Ticket


class Standing(StrEnum):
    """Whether a session, or a ticket, may still be used."""

    GOOD = "good"
    SIGNED_OUT = "signed_out"
    KICKED = "kicked"
    SPENT = "spent"


class Holder(Protocol):
    """Who holds a session: an identity, or one of its streams.

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
    """A wish to do something that is limited to `limit` per `period_s`, all replicas together, and costs `cost`.

    Shape: `name` says what is limited and for whom: `user:42`. Any text.
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
        """Limit, period in microseconds, and cost, as scripts are told."""
        return self.limit, self.period_s * 1_000_000, self.cost


class Quota(NamedTuple):
    """What a demand got.

    Units: `remaining` as in the demand's limit; `reset_s` until all of it is there again, `retry_after_s` until the
    same demand would be granted (0 when it was), both in seconds.
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
    """What demands got. `quotas` are one per demand; none when the session they were made with is not good, or when
    the store can be read and takes no write at the moment.
    """

    standing: Standing
    quotas: Sequence[Quota]

    @property
    def granted(self) -> bool:
        return self.standing is Standing.GOOD and all(quota.granted for quota in self.quotas)


class Admission(NamedTuple):
    """What a stream that wants to open is told: what its demands got, as in a grant, and, when all were granted,
    `displaced`: the IDs of the user's oldest, which are too many.
    """

    standing: Standing
    quotas: Sequence[Quota] = ()
    displaced: Sequence[str] = ()


class Ledger(Protocol):
    """Every call raises Unavailable when the store does not answer."""

    async def close(self) -> None: ...

    async def sign_out(self, holder: Holder, keep_s: float) -> None:
        """The holder's session may not be used any more."""

    async def kick(self, subject: str, keep_s: float, now: float) -> float:
        """End every session of the user from before now; gives the moment of the kick.

        Units: Unix seconds; `now` by the caller's clock. Each kick of a user has a later moment than the one before,
        also when clocks are stepped.
        """
        ...

    async def last_kick(self, subject: str) -> float:
        """The moment of the user's last kick that is still remembered, 0 when there is none."""
        ...

    async def standings(self, holders: Sequence[Holder]) -> Sequence[Standing]: ...

    def admit(
        self,
        holder: Holder,
        stream: str,
        most: int,
        keep_s: float,
        ticket: Ticket | None = None,
        demands: Sequence[Demand] = (),
    ) -> Awaitable[Admission]:
        """Note a stream of the user and spend its ticket, when both are good and the demands are granted; of more
        than `most` the oldest are displaced.

        Units: `keep_s`, after which the stream has certainly ended, also if nobody can say so any more.
        """
        ...

    def leave(self, subject: str, stream: str) -> None:
        """The stream has ended. Returns at once; if it cannot be noted, `keep_s` does."""

    def take(self, demands: Sequence[Demand], holder: Holder | None = None) -> Awaitable[Grant]:
        """Grant all demands or none, and none to a holder whose session was ended. One that costs more than its limit
        is granted when nothing of it is used.
        """
        ...
