"""The ledger over Redis, with a connection of its own."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import structlog

from allim.brokers.redis.keys import Keys
from allim.brokers.redis.rights import Rights
from allim.brokers.redis.scripts import Script, ScriptCalls
from allim.brokers.redis.server import RedisServer
from allim.errors import Unavailable
from allim.hub import Admission, Demand, Grant, Holder, Quota, SessionState
from allim.identity import CLOCK_LEEWAY_S, Ticket, topic_key

log = structlog.get_logger(__name__)

TRY_AGAIN_S = (0.1,)  # before a second attempt of a call without effect: the connection may lead to a former master
CLOSE_S = 1.0  # for removing the last ended streams
MAX_LEAVING = 1000  # ended streams that are removed in one call


class RedisLedger:
    """Source: the contract in `allim.hub.ledger`."""

    def __init__(self, url: str, replica: str, *, prefix: str = "allim", rights: Rights | None = None) -> None:
        """Raises: ValueError when the URL is malformed or of an unknown scheme."""
        self._keys = Keys(prefix)
        self._session_states = Script("session_states", "session_state")
        self._kick = Script("kick", "time", vital=True)
        self._last_kick = Script("last_kick")
        self._admit = Script("admit", "time", "session_state", "quotas")
        self._remove_stream = Script("remove_stream")
        self._charge = Script("charge", "time", "session_state", "quotas")
        self._sign_out = Script("sign_out", vital=True)
        self._server = RedisServer(url, f"allim-{replica}", rights or Rights(prefix))
        self._calls = ScriptCalls(self._server, lambda _run_id: ())
        self._call = partial(self._calls.call, pauses=TRY_AGAIN_S)
        self._left: list[tuple[str, str]] = []
        self._leaver: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._leaver is not None:
            await asyncio.wait([self._leaver], timeout=CLOSE_S)
        await self._calls.close()
        await self._server.close()

    async def sign_out(self, holder: Holder, keep_s: float) -> None:
        signed_out, _ = self._session_keys(holder)
        await self._call(self._sign_out, [signed_out], [_ms(keep_s)])

    async def kick(self, subject: str, keep_s: float, now: float) -> float:
        args = [_ms(keep_s), now, CLOCK_LEEWAY_S]
        return float(await self._call(self._kick, [self._keys.kicked + subject], args))

    async def last_kick(self, subject: str) -> float:
        return float(await self._call(self._last_kick, [self._keys.kicked + subject], []))

    async def session_states(self, holders: Sequence[Holder]) -> Sequence[SessionState]:
        keys = [key for holder in holders for key in self._session_keys(holder)]
        found = await self._call(self._session_states, keys, [_issued(holder) for holder in holders])
        return [SessionState(state.decode()) for state in found]

    def admit(
        self,
        holder: Holder,
        stream: str,
        most: int,
        keep_s: float,
        ticket: Ticket | None = None,
        demands: Sequence[Demand] = (),
    ) -> asyncio.Future[Admission]:
        keys = [*self._session_keys(holder), self._keys.streams + holder.subject, *self._rate_keys(demands)]
        args = [_issued(holder), stream, most, _ms(keep_s), ""]
        if ticket is not None:
            keys.append(self._keys.ticket + ticket.id)
            args[-1] = _ms(ticket.keep_s)
        args += _limits(demands)
        return self._call(self._admit, keys, args, read=_admission)

    def remove_stream(self, subject: str, stream: str) -> None:
        self._left.append((self._keys.streams + subject, stream))
        if self._leaver is None:
            self._leaver = asyncio.create_task(self._note_left(), name="allim ended streams")

    def charge(self, demands: Sequence[Demand], holder: Holder | None = None) -> asyncio.Future[Grant]:
        keys = [*(() if holder is None else self._session_keys(holder)), *self._rate_keys(demands)]
        args = ["" if holder is None else _issued(holder), *_limits(demands)]
        return self._call(self._charge, keys, args, read=_grant)

    def _rate_keys(self, demands: Sequence[Demand]) -> list[str]:
        return [self._keys.used + demand.digest for demand in demands]

    def _session_keys(self, holder: Holder) -> tuple[str, str]:
        signed_out = f"{self._keys.signed_out}{topic_key(holder.subject)}/{holder.session}"
        return signed_out, self._keys.kicked + holder.subject

    async def _note_left(self) -> None:
        """Remove ended streams until none is left."""
        try:
            while self._left:
                some, self._left = self._left[:MAX_LEAVING], self._left[MAX_LEAVING:]
                keys, streams = zip(*some, strict=True)
                await self._call(self._remove_stream, keys, streams)
        except Unavailable as error:
            log.warning("ended streams not noted; they will be in time", error=error.detail)
        finally:
            self._leaver = None


def _issued(holder: Holder) -> str:
    """Return the moment at which the holder's token was issued, in the form that session_state.lua reads."""
    return str(holder.issued_at) if holder.after_kick is None else f"kick {holder.after_kick}"


def _admission(reply: Sequence[Any]) -> Admission:
    state, quotas, *displaced = reply
    return Admission(SessionState(state.decode()), _quotas(quotas), [other.decode() for other in displaced])


def _grant(reply: Sequence[Any]) -> Grant:
    state, *quotas = reply
    return Grant(SessionState(state.decode()), _quotas(quotas))


def _limits(demands: Sequence[Demand]) -> list[int]:
    return [number for demand in demands for number in demand.terms]


def _quotas(reply: Sequence[Sequence[int]]) -> list[Quota]:
    return list(map(Quota.read, reply))


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
