"""Replicas in one process: each with engine, work and name of its own, on one database and one hub."""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine

from allim.domains.snapshots import Generation, Service
from allim.domains.snapshots.generation import JOB, Wanted
from allim.domains.snapshots.store import snapshots
from allim.storage import open_engine, reading, writing
from allim.work import Job, Work
from allim.work.job import LEASE_S
from allim.work.store import Claim, jobs
from tests.domains.fakes import Clock, RecordingHub, profile
from tests.work.replicas import Bus


class Replica(NamedTuple):
    engine: AsyncEngine
    generation: Generation
    work: Work
    service: Service
    name: str
    now: Callable[[], float]

    async def claim(self, snapshot_id: str) -> Job[Wanted] | None:
        """Take the snapshot's job, as the worker does."""
        owner, now = f"{self.name}:{secrets.token_hex(4)}", self.now()
        wanted = (jobs.c.name == JOB) & (jobs.c.arguments == f'["{snapshot_id}"]')
        taken = update(jobs).where(wanted, jobs.c.due_at <= now).values(owner=owner, due_at=now + LEASE_S)
        async with writing(self.engine) as connection:
            job_id = await connection.scalar(taken.returning(jobs.c.id))
        if job_id is None:
            return None
        return Job(Claim(job_id, JOB, "", owner, 1, 1, keyed=False), Wanted(snapshot_id), self.now)

    async def attempt(self, snapshot_id: str) -> None:
        """Take the snapshot's job and run it, if it is there and free."""
        job = await self.claim(snapshot_id)
        if job is not None:
            await self.generation.run(job)


def replica_on(
    engine: AsyncEngine, hub: RecordingHub, now: Callable[[], float], server_id: str, bus: Bus | None = None
) -> Replica:
    work = Work(engine, bus or Bus(), server_id, now=now)
    generation = Generation(engine, work, hub.publish, profile, server_id, now=now)
    return Replica(engine, generation, work, Service(engine, profile, generation.enqueue, now), server_id, now)


@asynccontextmanager
async def another_replica(
    url: str, hub: RecordingHub, clock: Clock, server_id: str, bus: Bus | None = None
) -> AsyncIterator[Replica]:
    engine = open_engine(url)
    yield replica_on(engine, hub, clock, server_id, bus)
    await engine.dispose()


async def row_of(engine: AsyncEngine, snapshot_id: str) -> dict[str, object]:
    async with reading(engine) as connection:
        row = await connection.execute(snapshots.select().where(snapshots.c.id == snapshot_id))
        return dict(row.mappings().one())
