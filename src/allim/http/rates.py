"""How often: rates over all replicas, told in every answer.

Source: draft-ietf-httpapi-ratelimit-headers-10 (RateLimit, RateLimit-Policy).
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import structlog
from starlette.requests import HTTPConnection

from allim.errors import TooMany, Unavailable
from allim.hub import Demand, Grant, Holder, Ledger, Quota, Standing, refuse_ended
from allim.networks import Share

log = structlog.get_logger(__name__)

PATIENCE_S = 0.5  # with the ledger: what is limited has a deadline of its own
AHEAD_SHARE, AHEAD_S = 0.01, 0.05  # of what a limit gives in a second, asked for ahead; how long it is good
WARN_EVERY_S = 1.0  # of the calls since the last time
SESSION_PATIENCE_S = 2.0  # where a session is at stake, which nobody else can judge


class Policy(NamedTuple):
    """A limit granted to each of many: `limit` per `period_s` seconds. `name` stands in headers and metrics."""

    name: str
    limit: int
    period_s: int

    def of(self, who: str) -> str:
        return f"{self.name}:{who}"

    def times(self, share: Share) -> "Policy":
        """The same limit for a network that is granted more, under a name of its own."""
        return Policy(self.name + share.suffix, self.limit * share.times, self.period_s) if share.suffix else self

    def demand(self, who: str, cost: int = 1) -> Demand:
        return Demand(self.of(who), self.limit, self.period_s, cost)


class Rates:
    """Asks the ledger; while that does not answer, `substitute` counts for this replica alone, so nothing is free.

    Calls that want the same thing while others wait for it are asked for together, so that load does not make more
    questions. What each of them is granted and told is what it would be, asked for by itself in its turn. Where
    several wait, a hundredth of what the limit gives in a second is asked for ahead, to be used up within a twentieth
    of a second.

    Shape: `refused` is told the name of the policy that refused.
    """

    def __init__(self, ledger: Ledger, substitute: Ledger, refused: Callable[[str], None]) -> None:
        self._ledger = ledger
        self._substitute = substitute
        self.refused = refused
        self._lines: dict[str, list[_Waiting]] = {}  # by the demand's name; there is one while somebody is asked for
        self._stocks: dict[str, _Stock] = {}
        self._uncounted, self._warn_at = 0, 0.0
        self._askers: set[asyncio.Task[None]] = set()

    async def take(
        self, connection: HTTPConnection, *wanted: tuple[Policy, str], cost: int = 1, holder: Holder | None = None
    ) -> None:
        """Grant all that is wanted or nothing, each for somebody, and tell it in the answer's headers.

        Raises: TooMany. For the holder of a session that was ended, to whom nothing is granted or charged, SignedOut
        or Kicked; Unavailable when that cannot be told now.
        """
        if holder is None and len(wanted) == 1:
            policy, who = wanted[0]
            self._tell(connection, (policy,), (self.spare(policy, who, cost) or await self.ask(policy, who, cost),))
        else:
            grant = await self._ask([policy.demand(who, cost) for policy, who in wanted], holder)
            refuse_ended(grant.standing)
            self._tell(connection, tuple([policy for policy, _ in wanted]), grant.quotas)

    def spare(self, policy: Policy, who: str, cost: int) -> Quota | None:
        """What somebody got at once, of what was granted ahead; None, and nothing, when it must be asked for."""
        stock = self._stocks.get(policy.of(who))
        return stock.take(cost) if stock else None

    def ask(self, policy: Policy, who: str, cost: int) -> "asyncio.Future[Quota]":
        """What somebody got, who is to be told by `told` and judged by `check`."""
        demand = policy.demand(who, cost)
        answer: asyncio.Future[Quota] = asyncio.get_running_loop().create_future()
        line = self._lines.get(demand.name)
        if line is None:
            line = self._lines[demand.name] = []
            # As a task it starts in the next turn, when this turn's demands are all here.
            asker = asyncio.create_task(self._ask_for_line(demand.name), name="allim rates")
            self._askers.add(asker)
            asker.add_done_callback(self._askers.discard)
        line.append(_Waiting(demand, answer))
        return answer

    def check(self, policies: Sequence[Policy], quotas: Sequence[Quota]) -> None:
        """Raises: TooMany, when one of them was not granted."""
        over = [(policy, quota) for policy, quota in zip(policies, quotas, strict=True) if not quota.granted]
        if over:
            for policy, _ in over:
                self.refused(policy.name)
            wait_s = max(1, math.ceil(max(quota.retry_after_s for _, quota in over)))
            raise TooMany("There were too many of these calls; wait a little.", wait_s)

    async def settle(self, connection: HTTPConnection, policy: Policy, who: str, quotas: Sequence[Quota]) -> None:
        """Tell what somebody got who was granted it together with something else; no quotas when it was not counted.

        Raises: TooMany.
        """
        if not quotas:
            quotas = (await self._count_here([policy.demand(who)], "the ledger takes no write")).quotas
        self._tell(connection, (policy,), quotas)

    def _tell(self, connection: HTTPConnection, policies: tuple[Policy, ...], quotas: Sequence[Quota]) -> None:
        """Raises: TooMany."""
        headers = connection.scope.setdefault("state", {}).setdefault("answer_headers", {})
        for name, value in told(policies, quotas).items():
            headers[name] = f"{headers[name]}, {value}" if name in headers else value  # both are lists
        self.check(policies, quotas)

    # One line for each name ------------------------------------------------------------------------------------

    async def _ask_for_line(self, name: str) -> None:
        """Runs until nobody waits for this name."""
        waiting: list[_Waiting] = []
        try:
            while self._lines[name]:
                waiting, self._lines[name] = self._lines[name], []
                for some in _within_limit(waiting):
                    await self._ask_together(some)
        except Exception as error:  # noqa: BLE001 - whoever waits raises it
            for one in (*waiting, *self._lines[name]):
                if not one.answer.done():
                    one.answer.set_exception(error)
        finally:
            for one in (*waiting, *self._lines.pop(name)):
                one.answer.cancel()  # nobody asks for them any more; those that are answered stay so

    async def _ask_together(self, some: "Sequence[_Waiting]") -> None:
        """As one demand, which is granted if and only if each is; if it is not, each by itself and in order."""
        costs = [one.demand.cost for one in some]
        limit = some[0].demand.limit
        ahead = int(limit / some[0].demand.period_s * AHEAD_SHARE)
        if len(some) > 1 and max(costs) <= ahead and sum(costs) + ahead <= limit:
            costs.append(ahead)
        demand = some[0].demand._replace(cost=sum(costs))
        quota = (await self._ask([demand], None)).quotas[0]
        if len(costs) > 1 and not quota.granted:
            grants = await asyncio.gather(*[self._ask([one.demand], None) for one in some])
            quotas = [grant.quotas[0] for grant in grants]
        else:
            quotas = list(_shares(demand, quota, costs))[: len(some)]
            if len(costs) > len(some):
                self._put_by(_Stock(demand, quota, costs[-1]))
        for one, share in zip(some, quotas, strict=True):
            if not one.answer.done():  # who waited may have gone
                one.answer.set_result(share)

    # What was asked for ahead -----------------------------------------------------------------------------------

    def _put_by(self, stock: "_Stock") -> None:
        name = stock.demand.name
        self._stocks[name] = stock
        asyncio.get_running_loop().call_later(AHEAD_S, self._throw_away, name, stock)

    def _throw_away(self, name: str, stock: "_Stock") -> None:
        if self._stocks.get(name) is stock:
            del self._stocks[name]

    # Questions -------------------------------------------------------------------------------------------------

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
        self._uncounted += len(demands)
        if (now := time.monotonic()) >= self._warn_at:
            log.warning("rates are counted by this replica alone", error=why, questions=self._uncounted)
            self._warn_at, self._uncounted = now + WARN_EVERY_S, 0
        return await self._substitute.take(demands)


@dataclass(slots=True)
class _Stock:
    """What is left of what was granted ahead; `quota` is what was told of all of it."""

    demand: Demand
    quota: Quota
    left: int

    def take(self, cost: int) -> Quota | None:
        if self.left < cost:
            return None
        self.left -= cost
        return _before(self.demand, self.quota, self.left)


class _Waiting(NamedTuple):
    """A demand, and who is told what it got."""

    demand: Demand
    answer: "asyncio.Future[Quota]"


def _within_limit(waiting: Sequence[_Waiting]) -> Iterator[Sequence[_Waiting]]:
    """In order, as many together as their limit allows at once: one demand above its limit may be granted, and would
    grant more than each by itself."""
    some: list[_Waiting] = []
    cost = 0
    for one in waiting:
        if some and cost + one.demand.cost > one.demand.limit:
            yield some
            some, cost = [], 0
        some.append(one)
        cost += one.demand.cost
    yield some


def _shares(demand: Demand, quota: Quota, costs: Sequence[int]) -> Iterator[Quota]:
    """What each part of a demand would have been told, in its turn."""
    later = demand.cost
    for cost in costs:
        later -= cost
        yield _before(demand, quota, later)


def _before(demand: Demand, quota: Quota, later: int) -> Quota:
    """What was told when so much of a demand was still to come."""
    if not later:
        return quota
    reset_s = quota.reset_s - later * demand.period_s / demand.limit
    return Quota(quota.granted, quota.remaining + later, reset_s, quota.retry_after_s)


def told(policies: tuple[Policy, ...], quotas: Sequence[Quota]) -> dict[str, str]:
    """The headers that tell what somebody got. Shape: of each policy, in order."""
    return {"ratelimit-policy": _policies(policies), "ratelimit": ", ".join(map(_left, policies, quotas))}


def _left(policy: Policy, quota: Quota) -> str:
    return f'"{policy.name}";r={quota.remaining};t={math.ceil(quota.reset_s)}'


@lru_cache(maxsize=64)
def _policies(policies: tuple[Policy, ...]) -> str:
    return ", ".join(f'"{name}";q={limit};w={window_s}' for name, limit, window_s in policies)
