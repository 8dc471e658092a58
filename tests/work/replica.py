"""A replica as a process of its own, without HTTP: a hub over Redis, and work. `python -m tests.work.replica`.

Arguments: the database's URL, Redis' URL, a name. Its job takes a moment; then it stores its effect in the
transaction that completes it. The job `frozen` says that it runs, and waits for a line of input before it stores its
effect. It never looks whether it has its lease, so that only the database keeps it from storing something.
"""

import asyncio
import sys
from typing import NamedTuple

from harness.streams import hub_settings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from allim.brokers.memory import MemoryLedger
from allim.brokers.redis import RedisBroker
from allim.hub import Hub
from allim.storage import open_engine, writing
from allim.telemetry import Metrics
from allim.work import Job, LeaseLost, Work, worker

AT_ONCE = 4
STEP_S = 0.05
STORED = 20  # jobs that the replica `victim` completes; the next ones stay in its hands


class Note(NamedTuple):
    word: str


def work_on(engine: AsyncEngine, redis_url: str, name: str) -> tuple[Hub, Work]:
    metrics = Metrics(name)
    hub = Hub(RedisBroker(redis_url, name, metrics, prefix="work-test"), MemoryLedger(), metrics, hub_settings())
    work = Work(engine, hub, name, metrics, at_once=AT_ONCE, now=hub.shared_clock)

    async def store(job: Job[Note]) -> None:
        async with writing(engine) as connection:
            await job.complete(connection)
            values = {"word": job.arguments.word, "server": name}
            await connection.execute(text("INSERT INTO effects VALUES (:word, :server)"), values)

    stored: list[str] = []

    @work.job("note", Note)
    async def note(job: Job[Note]) -> None:
        stops = name == "victim" and len(stored) >= STORED
        await asyncio.sleep(3600 if stops else STEP_S)
        await store(job)
        stored.append(job.id)

    @work.job("frozen", Note, timeout_s=600)
    async def frozen(job: Job[Note]) -> None:
        worker.RENEW_S = 3600.0
        sys.stdout.write("running\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        try:
            await store(job)
            sys.stdout.write("stored\n")
        except LeaseLost:
            sys.stdout.write("lease lost\n")
            raise
        finally:
            sys.stdout.flush()

    return hub, work


async def main() -> None:
    database_url, redis_url, name = sys.argv[1:]
    hub, work = work_on(open_engine(database_url), redis_url, name)
    async with hub.running(), work.running():
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
