"""End and extend sessions, on every replica.

The ledger is written first: it refuses later requests and streams. Then an order is published on the user's topic. So
it reaches exactly the replicas with streams of the user, in order, and also those whose link is being repaired.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog

from allim.errors import Unavailable
from allim.hub.broker import Broker, Publication
from allim.hub.close_reason import CloseReason
from allim.hub.event import Control, encode_control
from allim.hub.ledger import Holder, Ledger, SessionState
from allim.identity import CLOCK_LEEWAY_S, user_topic

log = structlog.get_logger(__name__)

Answer = TypeVar("Answer")

LEDGER_TIMEOUT_S = 2.0
LONGEST_S = 10 * 365 * 86400.0  # for which the end of a session is kept at most


class Sessions:
    """The sessions of all users.

    Units: `revocation_s` is how long the end of a session is kept at least, in seconds; `wall` gives Unix seconds.
    """

    def __init__(
        self, broker: Broker, ledger: Ledger, revocation_s: float, wall: Callable[[], float] = time.time
    ) -> None:
        self._broker = broker
        self._ledger = ledger
        self._revocation_s = revocation_s
        self._wall = wall

    async def sign_out(self, holder: Holder) -> None:
        """End a session and its streams on every replica.

        Raises: Unavailable.
        """
        # For as long as a machine whose clock is behind ours accepts the token.
        left_s = min(holder.expires_at - self._wall() + CLOCK_LEEWAY_S, LONGEST_S)
        await _in_time(self._ledger.sign_out(holder, max(left_s, self._revocation_s)))
        await self._order(Control(holder.subject, CloseReason.SIGNED_OUT, session=holder.session))

    async def kick(self, subject: str) -> None:
        """End every session a user has until now, and all their streams on every replica.

        Raises: Unavailable.
        """
        moment = await _in_time(self._ledger.kick(subject, self._revocation_s, self._wall()))
        await self._order(Control(subject, CloseReason.KICKED, issued_until=moment))

    async def extend(self, holder: Holder, expires_at: float) -> None:
        """Extend the live streams of a session until `expires_at`.

        Units: Unix seconds.
        Raises: Unavailable.
        """
        await self._order(Control(holder.subject, expires_at=expires_at, session=holder.session))

    async def replace(self, subject: str, streams: Sequence[str]) -> None:
        """End streams of a user that exceed the limit, wherever they are.

        Raises: Unavailable.
        """
        await self._order(Control(subject, CloseReason.REPLACED, streams=tuple(streams)))

    async def session_states(self, holders: Sequence[Holder]) -> Sequence[SessionState]:
        """Return for each session whether it has ended.

        Raises: Unavailable.
        """
        return await _in_time(self._ledger.session_states(holders))

    async def last_kick(self, subject: str) -> float | None:
        """Return the moment of the user's last kick, for a token that is issued now; 0 when there was none, None when
        the ledger does not answer: the token is then compared with later kicks by its time of issue.
        """
        try:
            return await _in_time(self._ledger.last_kick(subject))
        except Unavailable as error:
            log.warning("a token names no kick", user=subject, error=error.detail)
            return None

    async def _order(self, control: Control) -> None:
        entry = encode_control(user_topic(control.subject), control)
        await self._broker.publish(Publication([entry], None, "", vital=True))


async def _in_time(answer: Awaitable[Answer]) -> Answer:
    """Raises: Unavailable."""
    try:
        async with asyncio.timeout(LEDGER_TIMEOUT_S):
            return await answer
    except TimeoutError:
        raise Unavailable("the ledger does not answer") from None
