"""Generates one snapshot, as a job: three steps, then the announcement.

A replica may die, hang or be overtaken at any line of this file. What holds then: a step done twice does no harm,
every event is published under a key that makes it happen once, and only the owner of the job stores something.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from allim.domains.snapshots import events, store
from allim.domains.snapshots.events import Announcement
from allim.domains.snapshots.store import PENDING, AccountGone, Snapshot
from allim.hub import Draft
from allim.storage import reading, writing
from allim.times import utc
from allim.work import Job, Work

log = structlog.get_logger(__name__)

ATTEMPT_TIMEOUT_S = 60.0  # beside the steps' own time
REST_S = 30.0
RETRIES = 20
KEYS_KEPT_S = 600  # the events' keys: longer than an attempt at its slowest, its lease and the rest before the next
KEPT = 1000  # generated snapshots of an account; older ones make room
JOB = "snapshots.generate"

Publish = Callable[[Sequence[Draft], str], Awaitable[object]]
"""`hub.publish`: drafts and an idempotency key."""

Profile = Callable[[str], Awaitable[dict[str, object] | None]]
"""Returns the content of a snapshot about its account; None when there is no such account."""


class Wanted(NamedTuple):
    """The arguments of the job."""

    snapshot_id: str


class Generation:
    """How this replica generates snapshots."""

    def __init__(
        self,
        engine: AsyncEngine,
        work: Work,
        publish: Publish,
        profile: Profile,
        server_id: str,
        step_ms: float = 0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._work = work
        self._publish = publish
        self._profile = profile
        self._server_id = server_id
        self._step_s = step_ms / 1000
        self._now = now
        timeout_s = ATTEMPT_TIMEOUT_S + events.STEPS * self._step_s
        work.job(JOB, Wanted, retries=RETRIES, timeout_s=timeout_s, rest_s=REST_S)(self.run)

    async def enqueue(self, connection: AsyncConnection, snapshot_id: str) -> None:
        """Have the snapshot generated after the caller's transaction, by any replica."""
        await self._work.enqueue(connection, JOB, Wanted(snapshot_id))

    async def run(self, job: Job[Wanted]) -> None:
        """Do the rest that is owed on the snapshot.

        Raises: LeaseLost; each error of a step.
        """
        async with reading(self._engine) as connection:
            snapshot = await store.unannounced(connection, job.arguments.snapshot_id)
        if snapshot is None:
            return  # its account was deleted
        try:
            if snapshot.status == PENDING:
                snapshot = await self.generate(job, snapshot)
            await self.announce(job, snapshot)
        except AccountGone:
            log.info("snapshot dropped, its account was deleted", snapshot=snapshot.id)

    async def generate(self, job: Job[Wanted], snapshot: Snapshot) -> Snapshot:
        """Collect, serialise, store. The events of the first two steps are out before the third begins.

        Raises: LeaseLost, AccountGone; nothing is stored then.
        """
        picture = await self._collect(snapshot.account_id)
        await self._tell(events.progress(snapshot, 1))
        content = await self._serialise(picture)
        await self._tell(events.progress(snapshot, 2))
        return await self._store(job, snapshot, content)

    async def announce(self, job: Job[Wanted], snapshot: Snapshot) -> None:
        """Publish the events of the stored row, and note it together with the job's end.

        A crash before the note publishes again: under the same key, with the same data, hence once.
        """
        await self._tell(events.progress(snapshot, 3))
        await self._tell(events.generated(snapshot))
        async with writing(self._engine) as connection:
            await job.complete(connection)
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

    async def _store(self, job: Job[Wanted], snapshot: Snapshot, content: str) -> Snapshot:
        await asyncio.sleep(self._step_s)
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        async with writing(self._engine) as connection:
            await job.fence(connection)
            finished = await store.finish(connection, snapshot, content, sha256, self._server_id, self._now())
            assert finished.snapshot_count is not None
            await store.drop_oldest(connection, finished.account_id, finished.snapshot_count - KEPT)
            return finished

    async def _tell(self, announcement: Announcement) -> None:
        await self._publish([announcement.draft], announcement.key)


def canonical_json(value: object) -> str:
    """The one text for a value: sorted names, no spaces. Source: RFC 8785, for strings and whole numbers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
