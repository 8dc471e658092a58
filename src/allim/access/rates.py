"""Rate limits shared by all replicas, reported in every answer.

Source: draft-ietf-httpapi-ratelimit-headers-10 (RateLimit, RateLimit-Policy).
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import structlog
from starlette.requests import HTTPConnection

from allim.errors import TooMany, Unavailable
from allim.exchange import exchange_of
from allim.hub import Demand, Grant, Holder, Ledger, Quota, SessionState, refuse_ended
from allim.networks import Share

log = structlog.get_logger(__name__)

PATIENCE_S = 0.5  # for the ledger; after that this replica counts on its own
WARN_EVERY_S = 1.0  # one warning for all calls since the last
SESSION_PATIENCE_S = 2.0  # for the ledger when it must also check a session, which a replica cannot do on its own


class Policy(NamedTuple):
    """A rate limit per caller: `limit` per `period_s` seconds. `name` appears in headers and metrics."""

    name: str
    limit: int
    period_s: int

    def times(self, share: Share) -> "Policy":
        """Return the limit for a wider network, under a name of its own."""
        return Policy(self.name + share.suffix, self.limit * share.times, self.period_s) if share.suffix else self

    def demand(self, caller: str, cost: int = 1) -> Demand:
        return Demand(f"{self.name}:{caller}", self.limit, self.period_s, cost)


class Rates:
    """Rate limits shared by all replicas through the ledger. If the ledger does not answer, each replica enforces the
    limits on its own with `substitute`.

    Shape: `refused` is called with the name of the policy that refused.
    """

    def __init__(self, ledger: Ledger, substitute: Ledger, refused: Callable[[str], None]) -> None:
        self._ledger = ledger
        self._substitute = substitute
        self.refused = refused
        self._uncounted, self._warn_at = 0, 0.0

    async def charge(
        self, connection: HTTPConnection, *wanted: tuple[Policy, str], cost: int = 1, holder: Holder | None = None
    ) -> None:
        """Charge every policy, or none, and add the `RateLimit` headers to the answer.

        Raises: TooMany. If the holder's session has ended, SignedOut or Kicked, and nothing is charged; Unavailable
        if the session cannot be checked now.
        """
        grant = await self._ask([policy.demand(caller, cost) for policy, caller in wanted], holder)
        refuse_ended(grant.state)
        self.report(connection, tuple([policy for policy, _ in wanted]), grant.quotas)

    def check(self, policies: Sequence[Policy], quotas: Sequence[Quota]) -> None:
        """Raises: TooMany if a quota was not granted."""
        over = [(policy, quota) for policy, quota in zip(policies, quotas, strict=True) if not quota.granted]
        if over:
            for policy, _ in over:
                self.refused(policy.name)
            wait_s = max(1, math.ceil(max(quota.retry_after_s for _, quota in over)))
            raise TooMany("There were too many of these calls; wait a little.", wait_s)

    async def report_or_count(
        self, connection: HTTPConnection, policy: Policy, caller: str, quotas: Sequence[Quota]
    ) -> None:
        """Report the quotas of a demand that another call has charged. If it charged none, count here.

        Raises: TooMany.
        """
        if not quotas:
            quotas = (await self._count_here([policy.demand(caller)], "the ledger takes no write")).quotas
        self.report(connection, (policy,), quotas)

    def report(self, connection: HTTPConnection, policies: tuple[Policy, ...], quotas: Sequence[Quota]) -> None:
        """Add the headers of these quotas to those of an earlier charge.

        Raises: TooMany.
        """
        headers = exchange_of(connection.scope).extra_headers
        for name, value in ratelimit_headers(policies, quotas).items():
            headers[name] = f"{headers[name]}, {value}" if name in headers else value  # both are lists
        self.check(policies, quotas)

    async def _ask(self, demands: Sequence[Demand], holder: Holder | None) -> Grant:
        try:
            async with asyncio.timeout(PATIENCE_S if holder is None else SESSION_PATIENCE_S):
                grant = await self._ledger.charge(demands, holder)
        except (Unavailable, TimeoutError) as error:
            if holder is not None:
                raise Unavailable("The session cannot be checked at the moment.") from error
            return await self._count_here(demands, str(error) or type(error).__name__)
        if grant.state is SessionState.GOOD and not grant.quotas:
            return await self._count_here(demands, "the ledger takes no write")
        return grant

    async def _count_here(self, demands: Sequence[Demand], why: str) -> Grant:
        self._uncounted += len(demands)
        if (now := time.monotonic()) >= self._warn_at:
            log.warning("rates are counted by this replica alone", error=why, questions=self._uncounted)
            self._warn_at, self._uncounted = now + WARN_EVERY_S, 0
        return await self._substitute.charge(demands)


def ratelimit_headers(policies: tuple[Policy, ...], quotas: Sequence[Quota]) -> dict[str, str]:
    """Return the `RateLimit` headers for these quotas. Shape: one quota per policy, in order."""
    return {"ratelimit-policy": _policies(policies), "ratelimit": ", ".join(map(_left, policies, quotas))}


def _left(policy: Policy, quota: Quota) -> str:
    return f'"{policy.name}";r={quota.remaining};t={math.ceil(quota.reset_s)}'


@lru_cache(maxsize=64)
def _policies(policies: tuple[Policy, ...]) -> str:
    return ", ".join(f'"{name}";q={limit};w={window_s}' for name, limit, window_s in policies)
