"""Replicas that are killed or stopped while they work: processes of their own, over Redis and a real database."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from harness.servers import Redis
from harness.waiting import START_S, until
from sqlalchemy.ext.asyncio import AsyncEngine

from allim.storage import writing
from allim.work import worker
from tests.work.replica import AT_ONCE, Note, work_on
from tests.work.replicas import Replicas

pytestmark = pytest.mark.anyio

JOBS = 200


@dataclass
class Process:
    process: asyncio.subprocess.Process

    async def line(self) -> str:
        assert self.process.stdout is not None
        while True:  # its log goes the same way
            line = (await asyncio.wait_for(self.process.stdout.readline(), START_S)).decode().strip()
            if line in ("", "ready", "running", "stored", "lease lost"):
                return line

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    def send(self, number: int) -> None:
        self.process.send_signal(number)


@asynccontextmanager
async def started(database_url: str, redis_url: str, name: str) -> AsyncIterator[Process]:
    command = (sys.executable, "-m", "tests.work.replica", database_url, redis_url, name)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        one = Process(process)
        assert await one.line() == "ready"
        yield one
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def enqueue(engine: AsyncEngine, redis_url: str, name: str, words: list[str]) -> None:
    """Enqueue as a replica that does no work, one transaction for each job, and give the others a hint."""
    hub, work = work_on(engine, redis_url, "publisher")
    async with hub.running():
        for word in words:
            async with writing(engine) as connection:
                await work.enqueue(connection, name, Note(word))
        await work.leave(0)


async def test_each_job_has_its_effect_once_although_a_replica_is_killed_under_load(
    database_url: str, engine: AsyncEngine, replicas: Replicas, redis: Redis
) -> None:
    urls = (database_url, redis.url)
    words = [f"w{number}" for number in range(JOBS)]
    await enqueue(engine, redis.url, "note", words[: JOBS // 2])
    async with started(*urls, "victim") as victim, started(*urls, "other"):
        enqueueing = asyncio.create_task(enqueue(engine, redis.url, "note", words[JOBS // 2 :]))
        await until(lambda: is_full(replicas, "victim"))

        victim.send(signal.SIGKILL)
        await victim.process.wait()
        await enqueueing
        await until(lambda: is_empty(replicas), START_S)

    assert await replicas.effects() == dict.fromkeys(words, 1)
    assert await replicas.servers() == {"victim", "other"}


async def is_full(replicas: Replicas, name: str) -> bool:
    in_hand = sum(str(row["owner"]).startswith(name) for row in await replicas.rows())
    return name in await replicas.servers() and in_hand == AT_ONCE


async def is_empty(replicas: Replicas) -> bool:
    return await replicas.rows() == []


async def test_a_replica_that_was_stopped_and_wakes_after_its_lease_was_taken_stores_nothing(
    database_url: str, engine: AsyncEngine, replicas: Replicas, redis: Redis
) -> None:
    urls = (database_url, redis.url)
    async with started(*urls, "sleeper") as sleeper:
        await enqueue(engine, redis.url, "frozen", ["a"])
        assert await sleeper.line() == "running"
        sleeper.send(signal.SIGSTOP)
        async with started(*urls, "other") as other:
            assert await other.line() == "running"  # when the lease has ended
            sleeper.go_on()
            sleeper.send(signal.SIGCONT)
            assert await sleeper.line() == "lease lost"
            assert await replicas.effects() == {}
            other.go_on()
            assert await other.line() == "stored"

    assert await replicas.effects() == {"a": 1}
    assert await replicas.servers() == {"other"}


async def test_a_hint_over_redis_wakes_another_replica(
    engine: AsyncEngine, replicas: Replicas, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SWEEP_S", 3600.0)
    hub, work = work_on(engine, redis.url, "here")
    async with hub.running(), work.running():
        await until(lambda: hub._pulse._ever_heard)  # so the link is up
        async with writing(engine) as connection:
            await work.enqueue(connection, "note", Note("first"))
        await until(lambda: replicas.effects())

        await enqueue(engine, redis.url, "note", ["second"])
        await until(lambda: is_empty(replicas))

    assert await replicas.effects() == {"first": 1, "second": 1}
