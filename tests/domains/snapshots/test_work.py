import asyncio
from collections.abc import AsyncIterator

import pytest
from harness.waiting import until
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs
from taskiq import InMemoryBroker

from allim.domains.snapshots import Service, Worker, open_queue, store, work
from allim.domains.snapshots.service import UNCLAIMED_S
from allim.errors import Unavailable
from allim.hub import Draft
from allim.storage import migrate, open_engine, writing
from tests.domains.fakes import Clock, RecordingHub, profile
from tests.domains.snapshots.replicas import Replica, another_replica, replica_on, row_of
from tests.domains.snapshots.test_generation import ALL_EVENTS

pytestmark = pytest.mark.anyio


@pytest.fixture
def alpha(engine: AsyncEngine, hub: RecordingHub, clock: Clock) -> Replica:
    return replica_on(engine, hub, clock, "alpha")


@pytest.fixture
async def beta(database_url: str, engine: AsyncEngine, hub: RecordingHub, clock: Clock) -> AsyncIterator[Replica]:
    async with another_replica(database_url, hub, clock, "beta") as replica:
        yield replica


class Handed:
    """An attempt that only notes what it was handed, and may be held up."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self.go_on = asyncio.Event()
        self.cancelled: list[str] = []

    async def __call__(self, snapshot_id: str) -> None:
        self.ids.append(snapshot_id)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.append(snapshot_id)
            raise
        finally:
            self.at_once -= 1


async def test_a_message_has_the_snapshot_generated(alpha: Replica, hub: RecordingHub) -> None:
    async with alpha.worker.running():
        snapshot = await alpha.service.request("a1")
        await alpha.worker.start(snapshot.id)
        await until(lambda: len(hub.events) == 4)

    assert hub.types("user:a1") == ALL_EVENTS


async def test_a_restart_takes_up_what_was_left(alpha: Replica, hub: RecordingHub, clock: Clock) -> None:
    unclaimed = await alpha.service.request("a1")
    dropped = await alpha.service.request("a2")
    await alpha.generation.claim(dropped.id)
    clock.advance(12)

    async with alpha.worker.running():
        await until(lambda: len(hub.events) == 8)

    assert hub.types("user:a1") == hub.types("user:a2") == ALL_EVENTS
    assert (await row_of(alpha.engine, unclaimed.id))["announced_at"] is not None


async def test_the_sweeper_leaves_alone_what_is_new_worked_on_or_done(
    alpha: Replica, beta: Replica, hub: RecordingHub, clock: Clock
) -> None:
    handed = Handed()
    sweeper = Worker(beta.engine, InMemoryBroker(await_inplace=True), handed, now=clock)
    handed.go_on.set()
    done = await alpha.service.request("a1")
    await alpha.generation.attempt(done.id)
    claimed = await alpha.service.request("a1")
    await alpha.generation.claim(claimed.id)
    clock.advance(UNCLAIMED_S)
    new = await alpha.service.request("a1")
    clock.advance(UNCLAIMED_S - 0.1)

    await sweeper.sweep()
    assert handed.ids == []
    clock.advance(0.1)
    await sweeper.sweep()
    assert handed.ids == [new.id]
    clock.advance(12 - 2 * UNCLAIMED_S)
    await sweeper.sweep()
    assert handed.ids == [new.id, claimed.id]


async def test_a_clock_that_was_stepped_back_rests_no_snapshot(alpha: Replica, beta: Replica, clock: Clock) -> None:
    fresh = await alpha.service.request("a1")
    claimed = await alpha.service.request("a1")
    assert await alpha.generation.claim(claimed.id) is not None
    handed = Handed()
    handed.go_on.set()
    sweeper = Worker(beta.engine, InMemoryBroker(await_inplace=True), handed, now=clock)
    clock.advance(-3600)

    await sweeper.sweep()

    assert sorted(handed.ids) == sorted([fresh.id, claimed.id])
    assert await beta.generation.claim(fresh.id) is not None
    assert await beta.generation.claim(claimed.id) is not None


async def test_of_many_sweepers_one_sends(alpha: Replica, beta: Replica, clock: Clock) -> None:
    handed = Handed()
    handed.go_on.set()
    requested = [(await alpha.service.request("a1")).id for _ in range(5)]
    clock.advance(UNCLAIMED_S)
    sweepers = [
        Worker(engine, InMemoryBroker(await_inplace=True), handed, now=clock)
        for engine in (alpha.engine, beta.engine) * 3
    ]

    await asyncio.gather(*(sweeper.sweep() for sweeper in sweepers))
    assert sorted(handed.ids) == sorted(requested)

    clock.advance(work.LOOK_AGAIN_S)  # the message was lost again
    await sweepers[0].sweep()
    assert len(handed.ids) == 10


async def test_a_sweeper_that_had_to_wait_takes_nothing_twice(alpha: Replica, beta: Replica, clock: Clock) -> None:
    requested = await alpha.service.request("a1")
    clock.advance(UNCLAIMED_S)

    async def take(engine: AsyncEngine) -> list[str]:
        async with writing(engine) as connection:
            return await store.take_unattended(connection, clock(), clock() + 10)

    async with writing(alpha.engine) as connection:
        first = await store.take_unattended(connection, clock(), clock() + 10)
        second = asyncio.create_task(take(beta.engine))
        if connection.dialect.name == "postgresql":  # on SQLite it waits before it looks at anything
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            await until(lambda: connection.scalar(waiting))

    assert (first, await second) == ([requested.id], [])


async def test_no_more_than_a_few_at_once(engine: AsyncEngine, clock: Clock) -> None:
    handed = Handed()
    worker = Worker(engine, InMemoryBroker(), handed, at_once=2, now=clock)

    async with worker.running():
        for number in range(6):
            await worker.start(f"s{number}")
        await until(lambda: handed.at_once == 2)
        handed.go_on.set()
        await until(lambda: len(handed.ids) == 6)

    assert handed.most_at_once == 2


async def test_a_message_that_comes_twice_is_worked_on_once(engine: AsyncEngine, clock: Clock) -> None:
    handed = Handed()
    worker = Worker(engine, InMemoryBroker(await_inplace=False), handed, now=clock)

    async with worker.running():
        await worker.start("s1")
        await until(lambda: handed.ids)
        await worker.start("s1")
        await worker.start("s2")
        await until(lambda: "s2" in handed.ids)
        handed.go_on.set()

    assert handed.ids == ["s1", "s2"]


async def test_a_stop_finishes_what_is_in_hand(engine: AsyncEngine, clock: Clock) -> None:
    handed = Handed()
    worker = Worker(engine, InMemoryBroker(), handed, now=clock)

    async with worker.running(grace_s=10):
        await worker.start("s1")
        await until(lambda: handed.ids)
        asyncio.get_running_loop().call_later(0.05, handed.go_on.set)

    assert (handed.at_once, handed.cancelled) == (0, [])


async def test_a_stop_hands_back_what_takes_too_long(
    alpha: Replica, beta: Replica, hub: RecordingHub, clock: Clock
) -> None:
    async def hang(_draft: Draft) -> None:
        await asyncio.Event().wait()

    hub.before_publish = hang
    snapshot = await alpha.service.request("a1")
    async with alpha.worker.running(grace_s=0.01):
        await alpha.worker.start(snapshot.id)
        await until(lambda: hub.calls)
    hub.before_publish = None

    assert (await row_of(beta.engine, snapshot.id))["owner"] is None
    async with beta.worker.running():
        await until(lambda: len(hub.events) == 4)
    assert hub.types("user:a1") == ALL_EVENTS


async def test_readiness_follows_the_loops(engine: AsyncEngine, clock: Clock) -> None:
    worker = Worker(engine, InMemoryBroker(), Handed(), now=clock)

    with pytest.raises(Unavailable):
        await worker.check()
    async with worker.running():
        await worker.check()
        worker._loops[0].cancel()
        await until(worker._loops[0].done)
        with pytest.raises(Unavailable):
            await worker.check()
    with pytest.raises(Unavailable):
        await worker.check()


async def test_the_sweeper_outlives_an_outage_of_the_database(
    engine: AsyncEngine, hub: RecordingHub, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "SWEEP_S", 0.01)
    away = open_engine("postgresql://nobody@127.0.0.1:1/none")
    worker = Worker(away, InMemoryBroker(), Handed(), now=clock)

    with capture_logs() as logs:
        async with worker.running():
            await until(lambda: sum(entry["event"] == "sweep put off" for entry in logs) > 1)
            await worker.check()
    await away.dispose()


async def test_without_redis_a_request_is_still_accepted(tmp_path: object, clock: Clock) -> None:
    queue = open_queue({"url": "redis://127.0.0.1:1"}, "allim:{0}:work", "alpha")
    engine = open_engine(f"sqlite:///{tmp_path}/allim.db")
    await migrate(engine)
    worker = Worker(engine, queue, Handed(), now=clock)
    service = Service(engine, profile, worker.start, clock)

    with capture_logs() as logs:
        snapshot = await service.request("a1")

    assert snapshot.status == "pending"
    assert [entry["event"] for entry in logs] == ["queue unavailable"]
    await queue.shutdown()
    await engine.dispose()
