"""Replicas in one process: each with an engine and a name of its own, on one database, joined by hints.

Their job notes its runs, and stores its effect in the transaction that completes it.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from allim.errors import Unavailable
from allim.storage import open_engine, reading, writing
from allim.telemetry import Metrics
from allim.work import Job, Work, store
from tests.domains.fakes import Clock


class Note(NamedTuple):
    """The arguments of the job."""

    word: str


class Bus:
    """Carries hints between the replicas of a test. Shape: `lost` loses them without an error, `is_down` with one."""

    def __init__(self) -> None:
        self.lost = self.is_down = False
        self.sent = 0
        self._handlers: list[Callable[[], None]] = []

    async def hint(self, name: str) -> None:
        self.sent += 1
        if self.is_down:
            raise Unavailable("Redis did not answer")
        if not self.lost:
            for handler in self._handlers:
                handler()

    def on_hint(self, name: str, handler: Callable[[], None]) -> None:
        self._handlers.append(handler)


class Replica:
    """Shape: `before` is awaited by the job before it stores its effect."""

    def __init__(self, engine: AsyncEngine, bus: Bus, clock: Clock, name: str, at_once: int = 8) -> None:
        self.engine = engine
        self.name = name
        self.metrics = Metrics()
        self.work = Work(engine, bus, name, self.metrics, at_once=at_once, now=clock)
        self.runs: list[tuple[str, int]] = []
        self.before: Callable[[Job[Note]], Awaitable[None]] | None = None
        self.most_at_once = self._at_once = 0
        self.work.job("note", Note, retries=2, timeout_s=50, rest_s=4)(self._run)

    async def enqueue(self, word: str, due: float | None = None, key: str | None = None) -> str:
        async with writing(self.engine) as connection:
            return await self.work.enqueue(connection, "note", Note(word), due=due, key=key)

    async def claim(self, now: float, most: int = 1) -> list[store.Claim]:
        """Claim as this replica's worker does, and do nothing: it dies, or hangs."""
        async with writing(self.engine) as connection:
            return await store.claim(connection, ["note"], f"{self.name}:x", most, now, now + 12)

    async def _run(self, job: Job[Note]) -> None:
        self.runs.append((job.arguments.word, job.attempt))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if self.before is not None:
                await self.before(job)
            async with writing(self.engine) as connection:
                await job.complete(connection)
                await store_effect(self, connection, job.arguments.word)
        finally:
            self._at_once -= 1

    def count(self, outcome: str) -> float:
        labels = {"job": "note", "outcome": outcome}
        return self.metrics.registry.get_sample_value("allim_work_jobs_total", labels) or 0


async def store_effect(replica: Replica, connection: object, word: str) -> None:
    statement = text("INSERT INTO effects VALUES (:word, :server)")
    await connection.execute(statement, {"word": word, "server": replica.name})  # type: ignore[attr-defined]


class Replicas:
    def __init__(self, url: str, engine: AsyncEngine, clock: Clock) -> None:
        self._url = url
        self._engine = engine
        self._clock = clock
        self._engines: list[AsyncEngine] = []
        self.bus = Bus()

    async def start(self) -> None:
        async with writing(self._engine) as connection:
            await connection.execute(text("CREATE TABLE effects (word VARCHAR(64), server VARCHAR(64))"))

    async def close(self) -> None:
        for engine in self._engines:
            await engine.dispose()
        await asyncio.sleep(0.1)  # sockets of broken-off connections close in later turns of the loop

    def one(self, name: str = "alpha", at_once: int = 8) -> Replica:
        engine = open_engine(self._url)
        self._engines.append(engine)
        return Replica(engine, self.bus, self._clock, name, at_once)

    async def effects(self) -> Counter[str]:
        """How often each word was stored."""
        async with reading(self._engine) as connection:
            return Counter(await connection.scalars(text("SELECT word FROM effects")))

    async def servers(self) -> set[str]:
        async with reading(self._engine) as connection:
            return set(await connection.scalars(text("SELECT server FROM effects")))

    async def rows(self) -> list[dict[str, object]]:
        async with reading(self._engine) as connection:
            found = await connection.execute(text("SELECT * FROM allim_work_jobs ORDER BY due_at"))
            return [dict(row) for row in found.mappings()]


async def hang(_job: Job[Note]) -> None:
    await asyncio.Event().wait()


async def fail(_job: Job[Note]) -> None:
    raise RuntimeError("odd")
