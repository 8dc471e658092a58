import asyncio
import hashlib
import json
from collections.abc import AsyncIterator

import pytest
from harness.waiting import until
from sqlalchemy.ext.asyncio import AsyncEngine

from allim.domains.snapshots import events, generation
from allim.domains.snapshots.generation import canonical_json
from allim.domains.snapshots.service import MAX_OWED
from allim.hub import Draft
from allim.work import LeaseLost, worker
from allim.work.job import LEASE_S
from tests.domains.fakes import Clock, RecordingHub
from tests.domains.snapshots.replicas import Replica, another_replica, replica_on, row_of

pytestmark = pytest.mark.anyio

ALL_EVENTS = ["snapshots.progress 1", "snapshots.progress 2", "snapshots.progress 3", "snapshots.generated"]


@pytest.fixture
def alpha(engine: AsyncEngine, hub: RecordingHub, clock: Clock) -> Replica:
    return replica_on(engine, hub, clock, "alpha")


@pytest.fixture
async def beta(database_url: str, engine: AsyncEngine, hub: RecordingHub, clock: Clock) -> AsyncIterator[Replica]:
    async with another_replica(database_url, hub, clock, "beta") as replica:
        yield replica


async def test_a_snapshot_is_generated_and_announced(alpha: Replica, hub: RecordingHub, clock: Clock) -> None:
    snapshot = await alpha.service.request("a1")
    clock.advance(1.5)

    await alpha.attempt(snapshot.id)

    assert hub.types("user:a1") == ALL_EVENTS
    assert hub.events[1].data == {"snapshotId": snapshot.id, "step": 2, "of": 3}
    assert hub.events[-1].data == {
        "snapshotId": snapshot.id,
        "snapshotCount": 1,
        "timestamp": "2023-11-14T22:13:21.500Z",
        "serverId": "alpha",
    }
    stored = await alpha.service.snapshot("a1", snapshot.id)
    assert (stored.status, stored.snapshot_count, stored.server_id) == ("generated", 1, "alpha")
    assert stored.content is not None
    assert stored.sha256 == hashlib.sha256(stored.content.encode()).hexdigest()
    assert json.loads(stored.content) == {
        "profile": {"id": "a1", "name": "지우", "email": "a@example.com"},
        "earlierSnapshots": 0,
        "takenAt": "2023-11-14T22:13:21.500Z",
    }


async def test_each_snapshot_counts_one_more(alpha: Replica, hub: RecordingHub) -> None:
    for _ in range(3):
        await alpha.attempt((await alpha.service.request("a1")).id)
    await alpha.attempt((await alpha.service.request("a2")).id)

    counts = [draft.data["snapshotCount"] for draft in hub.events if draft.type == "snapshots.generated"]  # type: ignore[index]
    assert counts == [1, 2, 3, 1]


async def test_what_is_announced_is_never_done_again(alpha: Replica, beta: Replica, hub: RecordingHub) -> None:
    snapshot = await alpha.service.request("a1")
    await alpha.attempt(snapshot.id)
    before, calls = await row_of(alpha.engine, snapshot.id), hub.calls

    await alpha.attempt(snapshot.id)
    await beta.attempt(snapshot.id)

    assert hub.calls == calls
    assert await row_of(alpha.engine, snapshot.id) == before


async def test_a_replica_that_was_overtaken_stores_nothing(
    alpha: Replica, beta: Replica, hub: RecordingHub, clock: Clock
) -> None:
    snapshot = await alpha.service.request("a1")
    late = await alpha.claim(snapshot.id)
    clock.advance(LEASE_S)
    present = await beta.claim(snapshot.id)
    assert late is not None
    assert present is not None

    with pytest.raises(LeaseLost):
        await alpha.generation.run(late)  # it had only been frozen

    row = await row_of(alpha.engine, snapshot.id)
    assert (row["status"], row["content"]) == ("pending", None)
    await beta.generation.run(present)
    assert hub.types("user:a1") == ALL_EVENTS
    assert (await row_of(beta.engine, snapshot.id))["snapshot_count"] == 1


@pytest.mark.parametrize("dies_before", range(4))
async def test_a_death_before_any_event_repeats_and_loses_none(
    alpha: Replica, beta: Replica, hub: RecordingHub, clock: Clock, dies_before: int
) -> None:
    snapshot = await alpha.service.request("a1")

    async def die(_draft: Draft) -> None:
        if hub.calls == dies_before + 1:
            raise SystemError("dies")

    hub.before_publish = die
    with pytest.raises(SystemError):
        await alpha.attempt(snapshot.id)
    assert len(hub.events) == dies_before
    clock.advance(60)
    await beta.attempt(snapshot.id)

    assert hub.types("user:a1") == ALL_EVENTS
    stored_by = "beta" if dies_before < 2 else "alpha"
    assert hub.events[-1].data["serverId"] == stored_by  # type: ignore[index]


async def test_a_crash_between_store_and_announcement_announces_what_was_stored(
    alpha: Replica, beta: Replica, hub: RecordingHub, clock: Clock
) -> None:
    snapshot = await alpha.service.request("a1")
    job = await alpha.claim(snapshot.id)
    assert job is not None
    stored = await alpha.generation.generate(job, snapshot)  # and then alpha dies
    assert stored.generated_at == clock()
    clock.advance(60)

    await beta.attempt(snapshot.id)

    assert hub.types("user:a1") == ALL_EVENTS
    assert hub.events[-1].data["serverId"] == "alpha"  # type: ignore[index]
    row = await row_of(beta.engine, snapshot.id)
    assert (row["generated_at"], row["announced_at"]) == (stored.generated_at, clock())


async def test_a_crash_between_announcement_and_its_note_announces_once(
    alpha: Replica, beta: Replica, hub: RecordingHub, clock: Clock
) -> None:
    snapshot = await alpha.service.request("a1")
    job = await alpha.claim(snapshot.id)
    assert job is not None
    await alpha.generation.generate(job, snapshot)
    row = await alpha.service.snapshot("a1", snapshot.id)
    await alpha.generation._tell(events.progress(row, 3))
    await alpha.generation._tell(events.generated(row))  # and then alpha dies
    clock.advance(60)

    await beta.attempt(snapshot.id)

    assert hub.types("user:a1") == ALL_EVENTS  # the fake hub refuses a known key with other data
    assert (await row_of(beta.engine, snapshot.id))["announced_at"] == clock()


async def test_snapshots_of_one_account_that_finish_together_have_different_counts(
    alpha: Replica, beta: Replica, hub: RecordingHub
) -> None:
    requested = [await alpha.service.request("a1") for _ in range(MAX_OWED)]

    await asyncio.gather(
        *((alpha if index % 2 else beta).attempt(snapshot.id) for index, snapshot in enumerate(requested))
    )

    announced = [draft.data for draft in hub.events if draft.type == "snapshots.generated"]
    assert sorted(data["snapshotCount"] for data in announced) == list(range(1, MAX_OWED + 1))  # type: ignore[index]


async def test_a_request_is_generated_by_the_work_of_its_replica(
    alpha: Replica, hub: RecordingHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SWEEP_S", 3600.0)
    async with alpha.work.running():
        snapshot = await alpha.service.request("a1")
        await until(lambda: announced(alpha, snapshot.id))

    assert hub.types("user:a1") == ALL_EVENTS


async def announced(replica: Replica, snapshot_id: str) -> bool:
    return (await row_of(replica.engine, snapshot_id))["announced_at"] is not None


async def test_a_replica_that_stops_gives_the_snapshot_to_another_at_once(
    alpha: Replica, beta: Replica, hub: RecordingHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SWEEP_S", 3600.0)

    async def hang(_draft: Draft) -> None:
        await asyncio.Event().wait()

    hub.before_publish = hang
    async with alpha.work.running(grace_s=0.01):
        snapshot = await alpha.service.request("a1")
        await until(lambda: hub.calls)
    hub.before_publish = None

    async with beta.work.running():
        await until(lambda: announced(beta, snapshot.id))
    assert hub.types("user:a1") == ALL_EVENTS
    assert hub.events[-1].data["serverId"] == "beta"  # type: ignore[index]


async def test_an_outage_of_redis_ends_no_snapshot(
    alpha: Replica, hub: RecordingHub, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SWEEP_S", 0.02)
    monkeypatch.setattr(generation, "RETRIES", 1)
    hub.is_down = True
    async with alpha.work.running():
        snapshot = await alpha.service.request("a1")
        for attempts in range(1, 5):
            await until(lambda expected=attempts: hub.calls >= expected)  # type: ignore[misc]
            clock.advance(generation.REST_S)
        hub.is_down = False
        clock.advance(generation.REST_S)
        await until(lambda: announced(alpha, snapshot.id))

    assert hub.types("user:a1") == ALL_EVENTS
    assert await alpha.work.dead() == []


def test_canonical_json_is_one_text_for_one_value() -> None:
    assert canonical_json({"b": [1, "지"], "a": {"d": None, "c": True}}) == '{"a":{"c":true,"d":null},"b":[1,"지"]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))
