"""Generates one snapshot: three steps under a lease, then the announcement.

A replica may die, hang or be overtaken at any line of this file. What holds then: a step done twice does no
harm, every event is published under a key that makes it happen once, and the row is only finished by whoever
still owns it.
"""

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from allim.domains.snapshots import events, store
from allim.domains.snapshots.events import Announcement
from allim.domains.snapshots.store import PENDING, AccountGone, Claim, LeaseLost, Snapshot
from allim.errors import AllimError
from allim.http.bodies import utc
from allim.hub import Draft
from allim.storage import reading, writing

log = structlog.get_logger(__name__)

LEASE_S = 12.0
RENEW_S = 4.0
RELEASE_TIMEOUT_S = 2.0
ATTEMPT_TIMEOUT_S = 60.0  # the lease is renewed as long as work goes on, so work must not hang
_MAX_DELAY_S = 30.0
KEYS_KEPT_S = 600  # the events' keys: longer than an attempt at its slowest, its lease and the rest before the next
KEPT = 1000  # generated snapshots of an account; older ones make room

Publish = Callable[[Sequence[Draft], str], Awaitable[object]]
"""`hub.publish`: drafts and an idempotency key."""

Profile = Callable[[str], Awaitable[dict[str, object] | None]]
"""What is to be pictured of an account; None when there is no such account."""


class Generation:
    """How this replica generates snapshots."""

    def __init__(
        self,
        engine: AsyncEngine,
        publish: Publish,
        profile: Profile,
        server_id: str,
        step_ms: float = 0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._publish = publish
        self._profile = profile
        self._server_id = server_id
        self._step_s = step_ms / 1000
        self._timeout_s = ATTEMPT_TIMEOUT_S + events.STEPS * self._step_s
        self._now = now

    async def attempt(self, snapshot_id: str) -> bool:
        """Do what is still owed on the snapshot, unless somebody else is at it or nothing is owed.

        False when an attempt failed or was cancelled half-way; the row then says when to try again. Only
        cancellation is raised, after the claim has been handed back.
        """
        claim = None
        try:
            claim = await self.claim(snapshot_id)
            if claim is not None:
                async with asyncio.timeout(self._timeout_s):
                    await self.work(claim)
        except asyncio.CancelledError:
            if claim is not None:
                await self._hand_back(claim, self._now())
            raise
        except LeaseLost:
            log.warning("snapshot taken over by another replica, or deleted", snapshot=snapshot_id)
        except AccountGone:
            log.info("snapshot dropped, its account was deleted", snapshot=snapshot_id)
        except Exception as error:  # noqa: BLE001 - the top of a task: logged, and the row says when to retry
            _log_failure(error, snapshot_id)
            if claim is not None:
                await self._hand_back(claim, self._now() + retry_delay_s(claim.snapshot.attempts))
            return False
        return True

    async def claim(self, snapshot_id: str) -> Claim | None:
        """The right to work on the snapshot for `LEASE_S`, or None."""
        owner = f"{self._server_id}:{secrets.token_urlsafe(9)}"
        now = self._now()
        async with writing(self._engine) as connection:
            return await store.claim(connection, snapshot_id, owner, now, now + LEASE_S)

    async def work(self, claim: Claim) -> None:
        """Everything that is owed, with the lease kept up meanwhile.

        Raises: LeaseLost; whatever a step raises.
        """
        keeper = asyncio.create_task(self._keep_lease(claim))
        try:
            snapshot = claim.snapshot
            if snapshot.status == PENDING:
                snapshot = await self.generate(claim)
            await self.announce(snapshot)
        finally:
            keeper.cancel()
            with suppress(asyncio.CancelledError):
                await keeper

    async def generate(self, claim: Claim) -> Snapshot:
        """Collect, serialise, store. The events of the first two steps are out before the third begins.

        Raises: LeaseLost when somebody else owns the row by now; nothing is stored then.
        """
        picture = await self._collect(claim.snapshot.account_id)
        await self._tell(events.progress(claim.snapshot, 1))
        content = await self._serialise(picture)
        await self._tell(events.progress(claim.snapshot, 2))
        return await self._store(claim, content)

    async def announce(self, snapshot: Snapshot) -> None:
        """Publish what the stored row says, and note that it is published.

        A crash before the note publishes again: under the same key, with the same data, hence once.
        """
        await self._tell(events.progress(snapshot, 3))
        await self._tell(events.generated(snapshot))
        async with writing(self._engine) as connection:
            await store.mark_announced(connection, snapshot.id, self._now())

    async def _collect(self, account_id: str) -> dict[str, object]:
        await asyncio.sleep(self._step_s)
        profile = await self._profile(account_id)
        if profile is None:
            async with writing(self._engine) as connection:
                await store.remove_account(connection, account_id)
            raise AccountGone
        async with reading(self._engine) as connection:
            earlier = await store.generated_count(connection, account_id)
        return {"profile": profile, "earlierSnapshots": earlier, "takenAt": utc(self._now())}

    async def _serialise(self, picture: dict[str, object]) -> str:
        await asyncio.sleep(self._step_s)
        return canonical_json(picture)

    async def _store(self, claim: Claim, content: str) -> Snapshot:
        await asyncio.sleep(self._step_s)
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        async with writing(self._engine) as connection:
            finished = await store.finish(connection, claim, content, sha256, self._server_id, self._now())
            assert finished.snapshot_count is not None
            await store.drop_oldest(connection, finished.account_id, finished.snapshot_count - KEPT)
            return finished

    async def _tell(self, announcement: Announcement) -> None:
        await self._publish([announcement.draft], announcement.key)

    async def _keep_lease(self, claim: Claim) -> None:
        """Renew until cancelled. Losing the lease stops only this; the store's own check stops the work."""
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                async with writing(self._engine) as connection:
                    kept = await store.renew(connection, claim, self._now() + LEASE_S)
            except AllimError as error:
                log.warning("lease not renewed", snapshot=claim.snapshot.id, reason=error.detail)
                continue
            if not kept:
                return

    async def _hand_back(self, claim: Claim, next_attempt_at: float) -> None:
        """Let others try from then on. If the database cannot be told, the lease runs out by itself."""
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S), writing(self._engine) as connection:
                await store.release(connection, claim, next_attempt_at)
        except (AllimError, TimeoutError) as error:
            log.warning("claim not handed back", snapshot=claim.snapshot.id, reason=type(error).__name__)


def canonical_json(value: object) -> str:
    """The one text for a value: sorted names, no spaces. Source: RFC 8785, for strings and whole numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def retry_delay_s(attempts: int) -> float:
    """How long to rest after that many attempts: 1, 2, 4 … 30 s."""
    return min(_MAX_DELAY_S, 2.0 ** min(attempts - 1, 10))


def _log_failure(error: Exception, snapshot_id: str) -> None:
    if isinstance(error, AllimError) and error.retryable:  # an outage says enough in one line
        log.warning("snapshot generation put off", snapshot=snapshot_id, reason=error.detail)
    else:
        log.exception("snapshot generation failed", snapshot=snapshot_id)
