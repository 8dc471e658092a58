"""A job as its handler sees it, and how often and for how long it is tried."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncConnection

from allim.work import store
from allim.work.store import Claim

Arguments = TypeVar("Arguments")

LEASE_S = 12.0


class LeaseLost(Exception):
    """Another replica has taken the job: its handler must leave it."""


class Job(Generic[Arguments]):
    """One attempt at a job.

    Shape: `attempt` is 1 for the first. `completed` is True when the handler has completed the job itself.
    """

    def __init__(self, claim: Claim, arguments: Arguments, now: Callable[[], float]) -> None:
        self._claim = claim
        self._now = now
        self.id = claim.id
        self.name = claim.name
        self.arguments = arguments
        self.attempt = claim.attempts
        self.completed = False

    async def complete(self, connection: AsyncConnection) -> None:
        """Complete the job inside the caller's transaction, so that both are stored or neither.

        Call it before the transaction's other writes: the row is locked from here on, and no other replica takes the
        job meanwhile.
        Raises: LeaseLost; the transaction must then be rolled back.
        """
        if not await store.complete(connection, self._claim, self._now()):
            raise LeaseLost
        self.completed = True

    async def fence(self, connection: AsyncConnection) -> None:
        """Lock the job's row for the caller's transaction, and renew the lease: only the present owner writes.

        Raises: LeaseLost; the transaction must then be rolled back.
        """
        now = self._now()
        if not await store.renew(connection, self._claim, now + LEASE_S, now):
            raise LeaseLost


@dataclass(frozen=True, slots=True)
class Handler(Generic[Arguments]):
    """The handler of a job's name, and its limits.

    Shape: `retries` is the number of further attempts after the first failure; None for no limit.
    Units: `timeout_s` for one attempt; `rest_s` is the longest rest between two.
    """

    name: str
    arguments: TypeAdapter[Any]
    run: Callable[[Job[Any]], Awaitable[None]]
    retries: int | None
    timeout_s: float
    rest_s: float

    def is_exhausted(self, failures: int) -> bool:
        """Return whether no further attempt follows this number of failures."""
        return self.retries is not None and failures > self.retries

    def rest_after(self, attempts: int) -> float:
        """Return how long a job rests after that many attempts: 1, 2, 4 s and so on, less up to a half by chance."""
        longest: float = min(self.rest_s, 2.0 ** min(attempts - 1, 30))
        return longest * random.uniform(0.5, 1)
