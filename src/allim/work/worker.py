"""Runs due jobs on this replica: takes them, keeps their leases, and settles their outcome.

A replica may die, hang or be overtaken at any line of this file. The job is then taken by another replica when its
lease has ended, and the row's `owner` keeps this one from storing anything.
"""

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from allim.errors import AllimError, Unavailable
from allim.storage import reading, writing
from allim.telemetry import Metrics
from allim.work import store
from allim.work.job import LEASE_S, Handler, Job, LeaseLost
from allim.work.schedules import Schedules
from allim.work.store import Claim

log = structlog.get_logger(__name__)

RENEW_S = 4.0
SWEEP_S = 5.0
CONTENDED_S = 0.2  # until a replica looks again that found due jobs, but got none
FORGET_S = 3600.0
RELEASE_TIMEOUT_S = 2.0
CLOSE_TIMEOUT_S = 3.0
CANCEL_TIMEOUT_S = 5.0  # for a handler to end when it is cancelled


class Worker:
    """This replica's share of the work.

    Shape: `call_others` tells the other replicas that jobs are due which this one does not take.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        handlers: Mapping[str, Handler[object]],
        schedules: Schedules,
        call_others: Callable[[], None],
        metrics: Metrics,
        server_id: str,
        at_once: int,
        now: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._handlers = handlers
        self._schedules = schedules
        self._call_others = call_others
        self._metrics = metrics
        self._server_id = server_id
        self._at_once = at_once
        self._now = now
        self._woken = asyncio.Event()
        self._more = False  # due jobs may be left: look again when a job here ends
        self._in_hand: dict[asyncio.Task[None], Claim] = {}
        self._loop: asyncio.Task[None] | None = None
        self._stopping = False
        self._sweep_at = self._forget_at = 0.0  # by the monotonic clock
        metrics.count_running_jobs(lambda: len(self._in_hand))

    def start(self) -> None:
        self._stopping = False
        self._loop = asyncio.create_task(self._work_on(), name="allim work")

    async def check(self) -> None:
        """Raises: Unavailable when this replica takes no jobs."""
        if self._loop is None or self._stopping or self._loop.done():
            raise Unavailable("No background work is done here.")

    def wake(self) -> bool:
        """Look for due jobs at once. Returns False if this replica takes none now, because it is busy or stops."""
        if self._loop is None or self._stopping:
            return False
        self._more = True
        self._woken.set()
        return len(self._in_hand) < self._at_once

    async def leave(self, grace_s: float) -> None:
        """Take no more jobs; end those in hand within `grace_s`, or give them back. Repeating it is harmless."""
        self._stopping = True
        self._woken.set()
        if self._loop is not None:  # not cancelled at once: it may have stored a claim that it has not begun to run
            _, hanging = await asyncio.wait([self._loop], timeout=CLOSE_TIMEOUT_S)
            for loop in hanging:
                loop.cancel()
        if self._in_hand:
            await asyncio.wait(list(self._in_hand), timeout=grace_s)
        unfinished = list(self._in_hand)
        for task in unfinished:
            task.cancel()  # the claim is given back
        if unfinished:
            await asyncio.wait(unfinished, timeout=CANCEL_TIMEOUT_S)
            self._call_others()

    # Looking for jobs -----------------------------------------------------------------------------------------

    async def _work_on(self) -> None:
        while not self._stopping:
            rest_s = SWEEP_S
            self._woken.clear()
            try:
                await self._plan()
                await self._sweep()
                rest_s = await self._take_all()
            except AllimError as error:
                log.warning("work put off", reason=error.detail)
            except Exception:
                log.exception("taking work failed")
            if not self._stopping:
                with suppress(TimeoutError):
                    async with asyncio.timeout(rest_s):
                        await self._woken.wait()

    async def _plan(self) -> None:
        now = self._now()
        if self._schedules.must_plan(now):
            async with writing(self._engine) as connection:
                plan_at = await self._schedules.plan(connection, now)
            self._schedules.plan_at, self._schedules.planned_at = plan_at, now

    async def _sweep(self) -> None:
        """From time to time, release the jobs that a step of the clock left behind, and remove old rows."""
        if time.monotonic() < self._sweep_at:
            return
        now = self._now()
        async with reading(self._engine) as connection:
            stuck = await store.has_stuck(connection, now)
        if stuck:
            async with writing(self._engine) as connection:
                await store.release_stuck(connection, now)
        if time.monotonic() >= self._forget_at:
            async with writing(self._engine) as connection:
                await store.forget(connection, now)
            self._forget_at = time.monotonic() + FORGET_S * random.uniform(0.5, 1)
        self._sweep_at = time.monotonic() + _sweep_s() / 2

    async def _take_all(self) -> float:
        """Take due jobs as long as there are some and slots are free. Returns how long to wait then."""
        while True:
            free = self._at_once - len(self._in_hand)
            if free <= 0:
                self._more = True
                return _sweep_s()
            due_at = await self._next_due()
            now = self._now()
            self._metrics.job_waits(max(0.0, now - due_at) if due_at is not None else 0.0)
            if due_at is None or due_at > now:
                self._more = False
                soonest = min(due_at or float("inf"), self._schedules.plan_at)
                return min(_sweep_s(), max(0.0, soonest - now))
            claims = await self._claim(free, now)
            for claim in claims:
                task = asyncio.create_task(self._run(claim), name=f"allim job {claim.name}")
                self._in_hand[task] = claim
                task.add_done_callback(self._ended)
            if not claims:
                return CONTENDED_S
            if len(claims) == free and await self._is_more_due():
                self._more = True
                self._call_others()
                return _sweep_s()
            if self._has_other_duties():
                return 0.0

    def _has_other_duties(self) -> bool:
        """Return whether taking jobs must pause, to stop, plan or sweep: there may always be one that is due."""
        return self._stopping or time.monotonic() >= self._sweep_at or self._schedules.must_plan(self._now())

    async def _next_due(self) -> float | None:
        async with reading(self._engine) as connection:
            return await store.next_due(connection, list(self._handlers))

    async def _is_more_due(self) -> bool:
        due_at = await self._next_due()
        return due_at is not None and due_at <= self._now()

    async def _claim(self, most: int, now: float) -> list[Claim]:
        owner = f"{self._server_id}:{secrets.token_urlsafe(9)}"
        async with writing(self._engine) as connection:
            return await store.claim(connection, list(self._handlers), owner, most, now, now + LEASE_S)

    def _ended(self, task: asyncio.Task[None]) -> None:
        claim = self._in_hand.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("job not given back", job=claim.id, name=claim.name, exc_info=error)
        if self._more:
            self._woken.set()

    # One job --------------------------------------------------------------------------------------------------

    async def _run(self, claim: Claim) -> None:
        """Run the handler once and settle the outcome. Only cancellation is raised, after the claim is given back."""
        handler = self._handlers[claim.name]
        try:
            outcome = await self._attempt(handler, claim)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                await self._give_back(claim)
                raise
            outcome = await self._settle_failure(handler, claim, error, expected=False)  # by the handler's own doing
        except LeaseLost:
            log.warning("job taken over by another replica", job=claim.id, name=claim.name)
            outcome = "lost"
        except AllimError as error:
            outcome = await self._settle_failure(handler, claim, error, expected=error.retryable)
        except Exception as error:  # noqa: BLE001 - the top of a task: logged, and the row says when to try again
            outcome = await self._settle_failure(handler, claim, error, expected=False)
        self._metrics.job_ended(claim.name, outcome)

    async def _attempt(self, handler: Handler[object], claim: Claim) -> str:
        """Raises: LeaseLost; TimeoutError; each error of the handler."""
        if handler.is_exhausted(claim.failures - 1):  # its last attempts ended with their replicas
            return await self._bury(claim, "the replicas that ran it died or hung")
        arguments = handler.arguments.validate_json(claim.arguments)
        job: Job[object] = Job(claim, arguments, self._now)
        leased = asyncio.timeout(None)
        try:
            async with leased:
                keeper = asyncio.create_task(self._keep_lease(job, claim, leased), name="allim job lease")
                try:
                    limit = asyncio.timeout(handler.timeout_s)
                    async with limit:
                        await handler.run(job)
                finally:
                    keeper.cancel()
                    await asyncio.gather(keeper, return_exceptions=True)
        except TimeoutError:
            if leased.expired():
                raise LeaseLost from None
            if limit.expired():
                raise TimeoutError(f"took longer than {handler.timeout_s:g} s") from None
            raise
        if not job.completed:
            async with writing(self._engine) as connection:
                await job.complete(connection)
        return "done"

    async def _keep_lease(self, job: Job[object], claim: Claim, leased: asyncio.Timeout) -> None:
        """Renew the lease until cancelled; end the handler when the lease is lost, or has run out meanwhile."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + LEASE_S
        while loop.time() < ends_at:
            await asyncio.sleep(RENEW_S)
            asked_at = loop.time()
            try:
                async with asyncio.timeout_at(ends_at), writing(self._engine) as connection:
                    now = self._now()
                    kept = await store.renew(connection, claim, now + LEASE_S, now)
            except (AllimError, TimeoutError) as error:
                log.warning("lease not renewed", job=claim.id, reason=str(error) or type(error).__name__)
                continue
            except Exception:
                log.exception("lease not renewed", job=claim.id)
                continue
            if not kept:
                break
            ends_at = asked_at + LEASE_S
        if not job.completed:
            leased.reschedule(loop.time())

    async def _settle_failure(
        self, handler: Handler[object], claim: Claim, error: BaseException, *, expected: bool
    ) -> str:
        """Bury the job, or let it rest. An outage counts as an attempt, and not as a failure.

        If the database cannot be written, the lease ends by itself.
        """
        text = f"{type(error).__name__}: {error}"
        about = {"job": claim.id, "name": claim.name, "attempt": claim.attempts}
        if expected:
            log.warning("job put off", reason=text[:200], **about)
        else:
            log.error("job failed", exc_info=error, **about)
        failures = claim.failures - 1 if expected else claim.failures
        try:
            if handler.is_exhausted(failures):
                return await self._bury(claim, text)
            now = self._now()
            due_at = now + handler.rest_after(claim.attempts)
            await self._release(claim, due_at, now, claim.attempts, failures, text)
        except (AllimError, TimeoutError) as unsettled:
            log.warning("job not given back", job=claim.id, reason=str(unsettled) or type(unsettled).__name__)
        except LeaseLost:
            return "lost"
        return "put_off" if expected else "failed"

    async def _bury(self, claim: Claim, error: str) -> str:
        """Raises: LeaseLost; Unavailable."""
        async with asyncio.timeout(RELEASE_TIMEOUT_S), writing(self._engine) as connection:
            if not await store.bury(connection, claim, error, self._now()):
                raise LeaseLost
        log.error("job dead", job=claim.id, name=claim.name, attempts=claim.attempts, error=error[:200])
        return "dead"

    async def _give_back(self, claim: Claim) -> None:
        """Let another replica take the job at once, as if this attempt had not begun."""
        try:
            now = self._now()
            await self._release(claim, now, now, claim.attempts - 1, claim.failures - 1)
        except (AllimError, TimeoutError, LeaseLost) as error:
            log.warning("job not given back", job=claim.id, reason=str(error) or type(error).__name__)

    async def _release(
        self, claim: Claim, due_at: float, now: float, attempts: int, failures: int, error: str | None = None
    ) -> None:
        async with asyncio.timeout(RELEASE_TIMEOUT_S), writing(self._engine) as connection:
            kept = await store.release(
                connection, claim, due_at, now, attempts=attempts, failures=failures, error=error
            )
        if not kept:
            raise LeaseLost


def _sweep_s() -> float:
    """Return how long to wait at most before looking again, at random, so that replicas do not act in step."""
    return SWEEP_S * random.uniform(0.8, 1)
