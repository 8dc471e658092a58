"""How often: rates over all replicas, told in every answer.

Source: draft-ietf-httpapi-ratelimit-headers-10 (RateLimit, RateLimit-Policy).
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog
from starlette.requests import HTTPConnection

from allim.errors import TooMany, Unavailable
from allim.hub import Demand, Grant, Holder, Ledger, Standing, refuse_ended

log = structlog.get_logger(__name__)

PATIENCE_S = 0.5  # with the ledger: what is limited has a deadline of its own
SESSION_PATIENCE_S = 2.0  # where a session is at stake, which nobody else can judge


class Policy(NamedTuple):
    """A limit granted to each of many: `limit` per `period_s` seconds. `name` stands in headers and metrics."""

    name: str
    limit: int
    period_s: int

    def demand(self, who: str, cost: int = 1) -> Demand:
        return Demand(f"{self.name}:{who}", self.limit, self.period_s, cost)


class Rates:
    """Asks the ledger; while that does not answer, `substitute` counts for this replica alone, so nothing is free.

    Shape: `refused` is told the name of the policy that refused.
    """

    def __init__(self, ledger: Ledger, substitute: Ledger, refused: Callable[[str], None]) -> None:
        self._ledger = ledger
        self._substitute = substitute
        self.refused = refused

    async def take(
        self, connection: HTTPConnection, *wanted: tuple[Policy, str], cost: int = 1, holder: Holder | None = None
    ) -> None:
        """Grant all that is wanted or nothing, each for somebody, and tell it in the answer's headers.

        Raises: TooMany. For the holder of a session that was ended, to whom nothing is granted or charged, SignedOut
        or Kicked; Unavailable when that cannot be told now.
        """
        policies = [policy for policy, _ in wanted]
        grant = await self._ask([policy.demand(who, cost) for policy, who in wanted], holder)
        refuse_ended(grant.standing)
        both = list(zip(policies, grant.quotas, strict=True))
        headers = connection.scope.setdefault("state", {}).setdefault("answer_headers", {})
        headers["ratelimit-policy"] = ", ".join(
            f'"{name}";q={limit};w={window_s}' for name, limit, window_s in policies
        )
        headers["ratelimit"] = ", ".join(
            f'"{policy.name}";r={quota.remaining};t={math.ceil(quota.reset_s)}' for policy, quota in both
        )
        over = [(policy, quota) for policy, quota in both if not quota.granted]
        if over:
            for policy, _ in over:
                self.refused(policy.name)
            wait_s = max(1, math.ceil(max(quota.retry_after_s for _, quota in over)))
            raise TooMany("There were too many of these calls; wait a little.", wait_s)

    async def _ask(self, demands: Sequence[Demand], holder: Holder | None) -> Grant:
        try:
            async with asyncio.timeout(PATIENCE_S if holder is None else SESSION_PATIENCE_S):
                grant = await self._ledger.take(demands, holder)
        except (Unavailable, TimeoutError) as error:
            if holder is not None:
                raise Unavailable("It cannot be told now whether the session has ended.") from error
            return await self._count_here(demands, str(error) or type(error).__name__)
        if grant.standing is Standing.GOOD and not grant.quotas:
            return await self._count_here(demands, "the ledger takes no write")
        return grant

    async def _count_here(self, demands: Sequence[Demand], why: str) -> Grant:
        log.warning("rates are counted by this replica alone", error=why)
        return await self._substitute.take(demands)
