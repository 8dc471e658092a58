"""Replicas in one process: each with engine, worker and name of its own, on one database and one hub."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from taskiq import InMemoryBroker

from allim.domains.snapshots import Generation, Service, Worker
from allim.storage import open_engine, reading
from tests.domains.fakes import Clock, RecordingHub, profile


class Replica(NamedTuple):
    engine: AsyncEngine
    generation: Generation
    worker: Worker
    service: Service


def replica_on(engine: AsyncEngine, hub: RecordingHub, now: Callable[[], float], server_id: str) -> Replica:
    """A replica whose messages reach nobody else."""
    generation = Generation(engine, hub.publish, profile, server_id, now=now)
    worker = Worker(engine, InMemoryBroker(), generation.attempt, now=now)
    return Replica(engine, generation, worker, Service(engine, profile, unheard, now))


@asynccontextmanager
async def another_replica(url: str, hub: RecordingHub, clock: Clock, server_id: str) -> AsyncIterator[Replica]:
    engine = open_engine(url)
    yield replica_on(engine, hub, clock, server_id)
    await engine.dispose()


async def unheard(_snapshot_id: str) -> None:
    """A message that is lost."""


async def row_of(engine: AsyncEngine, snapshot_id: str) -> dict[str, object]:
    async with reading(engine) as connection:
        row = await connection.execute(text("SELECT * FROM snapshots WHERE id = :id"), {"id": snapshot_id})
        return dict(row.mappings().one())
