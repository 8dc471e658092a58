"""The queue on a real Redis."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from harness.servers import Redis, free_port, redis_server
from harness.waiting import until
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from structlog.typing import EventDict

from allim.domains.snapshots import Generation, Service, Worker, open_queue, work
from allim.hub import Draft
from allim.storage import migrate, open_engine
from tests.domains.fakes import RecordingHub, profile
from tests.domains.snapshots.replicas import row_of
from tests.domains.snapshots.test_generation import ALL_EVENTS

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(f"sqlite:///{tmp_path}/allim.db")
    await migrate(engine)
    yield engine
    await engine.dispose()


class Replicas:
    """Several workers on one queue."""

    def __init__(self, redis_url: str, engine: AsyncEngine, hub: RecordingHub, names: str) -> None:
        self._queue = f"test-{secrets.token_hex(4)}:{{0}}:work"
        self.workers = {name: self._worker(redis_url, engine, hub, name) for name in names}
        self.service = Service(engine, profile, next(iter(self.workers.values())).start)

    def _worker(self, redis_url: str, engine: AsyncEngine, hub: RecordingHub, name: str) -> Worker:
        generation = Generation(engine, hub.publish, profile, name, step_ms=5)
        return Worker(engine, open_queue({"url": redis_url}, self._queue, name), generation.attempt, at_once=2)


def servers(hub: RecordingHub) -> list[str]:
    return [str(draft.data["serverId"]) for draft in hub.events if draft.type == "snapshots.generated"]  # type: ignore[index]


async def test_replicas_share_the_work(redis: Redis, engine: AsyncEngine, hub: RecordingHub) -> None:
    replicas = Replicas(redis.url, engine, hub, "ab")

    async with AsyncExitStack() as stack:
        for worker in replicas.workers.values():
            await stack.enter_async_context(worker.running())
        for number in range(20):
            await replicas.service.request(f"a{number}")
        await until(lambda: len(servers(hub)) == 20)

    assert set(servers(hub)) == {"a", "b"}
    assert all(hub.types(f"user:a{number}") == ALL_EVENTS for number in range(20))


async def test_what_was_sent_before_anybody_listened_is_not_lost(
    redis: Redis, engine: AsyncEngine, hub: RecordingHub
) -> None:
    replicas = Replicas(redis.url, engine, hub, "a")
    await replicas.service.request("a1")

    async with replicas.workers["a"].running():
        await until(lambda: servers(hub), timeout_s=1.5)  # before the sweeper would look


async def test_a_replica_that_stops_hands_its_work_to_another(
    redis: Redis, engine: AsyncEngine, hub: RecordingHub
) -> None:
    replicas = Replicas(redis.url, engine, hub, "ab")

    async def hang(_draft: Draft) -> None:
        await asyncio.Event().wait()

    hub.before_publish = hang
    async with replicas.workers["a"].running(grace_s=0.01):
        snapshot = await replicas.service.request("a1")
        await until(lambda: hub.calls)
    hub.before_publish = None
    row = await row_of(engine, snapshot.id)
    assert (row["owner"], row["lease_until"]) == (None, None)

    async with replicas.workers["b"].running():
        await until(lambda: servers(hub) == ["b"])


async def test_the_queue_comes_back_after_redis_was_away_and_forgot(
    engine: AsyncEngine, hub: RecordingHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "SWEEP_S", 0.1)
    port = free_port()
    replicas = Replicas(f"redis://127.0.0.1:{port}", engine, hub, "a")

    with capture_logs() as logs:
        async with replicas.workers["a"].running():
            with redis_server(port=port):
                await replicas.service.request("a1")
                await until(lambda: len(servers(hub)) == 1)
            await replicas.service.request("a2")
            await until(lambda: losses(logs))
            lost_at = time.monotonic()
            await until(lambda: time.monotonic() - lost_at > 1)
            losses_so_far = losses(logs)
            with redis_server(port=port):
                await replicas.service.request("a3")
                await until(lambda: len(servers(hub)) == 3, timeout_s=30)

    assert losses_so_far <= 4  # never hot
    assert hub.types("user:a2") == hub.types("user:a3") == ALL_EVENTS


def losses(logs: list[EventDict]) -> int:
    return sum(entry["event"] == "queue lost" for entry in logs)
