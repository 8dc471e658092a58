"""The ledger of the embedded form: one process, all state in memory."""

import math
import time
from collections.abc import Callable, Sequence

from allim.hub import Admission, Demand, Grant, Holder, Quota, SessionState, is_kicked
from allim.identity import Ticket

SWEEP_S = 60.0


class MemoryLedger:
    """Source: the contract in `allim.hub.ledger`; the rates are GCRA (ITU-T I.371), as in `quotas.lua`.

    Shape: `_until` holds, by key, the second of the monotonic clock in which the key expires.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._until: dict[tuple[str, ...], float] = {}
        self._kicked: dict[str, float] = {}
        self._streams: dict[str, dict[str, float]] = {}
        self._sweep_at = 0.0

    async def close(self) -> None:
        """Do nothing: no connection is open."""

    async def sign_out(self, holder: Holder, keep_s: float) -> None:
        key = ("signed out", holder.subject, holder.session)
        self._keep(key, max(keep_s, self._until.get(key, 0.0) - self._now()))  # never shorter than before

    async def kick(self, subject: str, keep_s: float, now: float) -> float:
        moment = max(round(now, 6), round(await self.last_kick(subject) + 0.000001, 6))
        self._keep(("kicked", subject), keep_s)
        self._kicked[subject] = moment
        return moment

    async def last_kick(self, subject: str) -> float:
        return self._kicked[subject] if self._is_kept(("kicked", subject)) else 0.0

    async def session_states(self, holders: Sequence[Holder]) -> Sequence[SessionState]:
        return [self._state(holder) for holder in holders]

    async def admit(
        self,
        holder: Holder,
        stream: str,
        most: int,
        keep_s: float,
        ticket: Ticket | None = None,
        demands: Sequence[Demand] = (),
    ) -> Admission:
        state = self._state(holder)
        if state is SessionState.GOOD and ticket is not None and self._is_kept(("spent", ticket.id)):
            state = SessionState.SPENT
        if state is not SessionState.GOOD:
            return Admission(state)
        grant = await self.charge(demands)
        if not grant.granted:
            return Admission(state, grant.quotas)
        if ticket is not None:
            self._keep(("spent", ticket.id), ticket.keep_s)
        known = self._streams.get(holder.subject, {})
        streams = {other: at for other, at in known.items() if at > self._now() - keep_s}
        streams[stream] = self._now()
        displaced = list(streams)[: max(0, len(streams) - most)]
        for oldest in displaced:
            del streams[oldest]
        self._streams[holder.subject] = streams
        return Admission(state, grant.quotas, displaced)

    def remove_stream(self, subject: str, stream: str) -> None:
        streams = self._streams.get(subject, {})
        streams.pop(stream, None)
        if not streams:
            self._streams.pop(subject, None)

    async def charge(self, demands: Sequence[Demand], holder: Holder | None = None) -> Grant:
        state = SessionState.GOOD if holder is None else self._state(holder)
        if state is not SessionState.GOOD:
            return Grant(state, ())
        now = self._now()
        used = [max(0.0, self._until.get(("rate", demand.name), 0.0) - now) for demand in demands]
        after = [
            used_s + demand.cost * demand.period_s / demand.limit
            for demand, used_s in zip(demands, used, strict=True)
        ]
        granted = [_fits(*one) for one in zip(demands, used, after, strict=True)]
        if all(granted):
            for demand, after_s in zip(demands, after, strict=True):
                self._keep(("rate", demand.name), after_s)
        left = after if all(granted) else used  # a refusal charges none of them
        return Grant(state, [_quota(*one) for one in zip(demands, granted, used, after, left, strict=True)])

    def _state(self, holder: Holder) -> SessionState:
        if self._is_kept(("signed out", holder.subject, holder.session)):
            return SessionState.SIGNED_OUT
        if self._is_kept(("kicked", holder.subject)) and is_kicked(holder, self._kicked[holder.subject]):
            return SessionState.KICKED
        return SessionState.GOOD

    def _keep(self, key: tuple[str, ...], keep_s: float) -> None:
        now = self._now()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            self._until = {known: until for known, until in self._until.items() if until > now}
            self._kicked = {user: at for user, at in self._kicked.items() if ("kicked", user) in self._until}
        self._until[key] = now + keep_s

    def _is_kept(self, key: tuple[str, ...]) -> bool:
        return self._until.get(key, 0.0) > self._now()


def _fits(demand: Demand, used_s: float, after_s: float) -> bool:
    """Return whether a demand is granted. Units: seconds until the whole limit is available again, without this
    demand and with it.
    """
    return after_s <= demand.period_s or used_s == 0


def _quota(demand: Demand, granted: bool, used_s: float, after_s: float, reset_s: float) -> Quota:
    """Units: as in `_fits`; `reset_s` is the one of the two that holds from now on."""
    remaining = max(0, math.floor((demand.period_s - reset_s) * demand.limit / demand.period_s + 1e-9))
    wait_s = 0.0 if granted else min(used_s, after_s - demand.period_s)
    return Quota(granted, remaining, reset_s, wait_s)
