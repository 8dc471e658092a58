import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from harness.waiting import until
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from allim.domains.snapshots import events, generation
from allim.domains.snapshots.generation import canonical_json, retry_delay_s
from allim.domains.snapshots.service import MAX_OWED
from allim.domains.snapshots.store import LeaseLost
from allim.hub import Draft
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

    assert await alpha.generation.attempt(snapshot.id) is True

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
        await alpha.generation.attempt((await alpha.service.request("a1")).id)
    await alpha.generation.attempt((await alpha.service.request("a2")).id)

    counts = [draft.data["snapshotCount"] for draft in hub.events if draft.type == "snapshots.generated"]  # type: ignore[index]
    assert counts == [1, 2, 3, 1]


async def test_what_is_announced_is_never_done_again(alpha: Replica, beta: Replica, hub: RecordingHub) -> None:
    snapshot = await alpha.service.request("a1")
    await alpha.generation.attempt(snapshot.id)
    before, calls = await row_of(alpha.engine, snapshot.id), hub.calls

    await alpha.generation.attempt(snapshot.id)
    await beta.generation.attempt(snapshot.id)

    assert hub.calls == calls
    assert await row_of(alpha.engine, snapshot.id) == before


async def test_of_many_who_try_at_once_one_works(alpha: Replica, beta: Replica, hub: RecordingHub) -> None:
    snapshot = await alpha.service.request("a1")

    claims = await asyncio.gather(*(replica.generation.claim(snapshot.id) for replica in (alpha, beta) * 4))

    assert sum(claim is not None for claim in claims) == 1
    assert (await row_of(alpha.engine, snapshot.id))["attempts"] == 1


async def test_another_replica_takes_over_when_the_lease_has_run_out(
    alpha: Replica, beta: Replica, hub: RecordingHub, clock: Clock
) -> None:
    snapshot = await alpha.service.request("a1")
    assert await alpha.generation.claim(snapshot.id) is not None  # and then alpha dies

    await beta.generation.attempt(snapshot.id)
    assert hub.events == []
    clock.advance(generation.LEASE_S)
    await beta.generation.attempt(snapshot.id)

    assert hub.types("user:a1") == ALL_EVENTS
    assert (await row_of(beta.engine, snapshot.id))["server_id"] == "beta"


async def test_whoever_was_overtaken_stores_nothing(
    alpha: Replica, beta: Replica, hub: RecordingHub, clock: Clock
) -> None:
    snapshot = await alpha.service.request("a1")
    claim = await alpha.generation.claim(snapshot.id)
    assert claim is not None
    clock.advance(generation.LEASE_S)
    overtaking = await beta.generation.claim(snapshot.id)
    assert overtaking is not None

    with pytest.raises(LeaseLost):
        await alpha.generation.work(claim)  # it had only been frozen

    row = await row_of(alpha.engine, snapshot.id)
    assert (row["status"], row["content"], row["owner"]) == ("pending", None, overtaking.owner)
    await beta.generation.work(overtaking)
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
    claim = await alpha.generation.claim(snapshot.id)
    assert claim is not None
    with pytest.raises(SystemError):
        await alpha.generation.work(claim)
    assert len(hub.events) == dies_before
    clock.advance(60)
    await beta.generation.attempt(snapshot.id)

    assert hub.types("user:a1") == ALL_EVENTS
    stored_by = "beta" if dies_before < 2 else "alpha"
    assert hub.events[-1].data["serverId"] == stored_by  # type: ignore[index]


async def test_a_crash_between_store_and_announcement_announces_what_was_stored(
    alpha: Replica, beta: Replica, hub: RecordingHub, clock: Clock
) -> None:
    snapshot = await alpha.service.request("a1")
    claim = await alpha.generation.claim(snapshot.id)
    assert claim is not None
    stored = await alpha.generation.generate(claim)  # and then alpha dies
    assert stored.generated_at == clock()
    clock.advance(60)

    await beta.generation.attempt(snapshot.id)

    assert hub.types("user:a1") == ALL_EVENTS
    assert hub.events[-1].data["serverId"] == "alpha"  # type: ignore[index]
    row = await row_of(beta.engine, snapshot.id)
    assert (row["generated_at"], row["announced_at"]) == (stored.generated_at, clock())


async def test_a_crash_between_announcement_and_its_note_announces_once(
    alpha: Replica, beta: Replica, hub: RecordingHub, clock: Clock
) -> None:
    snapshot = await alpha.service.request("a1")
    claim = await alpha.generation.claim(snapshot.id)
    assert claim is not None
    await alpha.generation.generate(claim)
    row = await alpha.service.snapshot("a1", snapshot.id)
    await alpha.generation._tell(events.progress(row, 3))
    await alpha.generation._tell(events.generated(row))  # and then alpha dies
    clock.advance(60)

    await beta.generation.attempt(snapshot.id)

    assert hub.types("user:a1") == ALL_EVENTS  # the fake hub refuses a known key with other data
    assert (await row_of(beta.engine, snapshot.id))["announced_at"] == clock()


async def test_snapshots_of_one_account_that_finish_together_have_different_counts(
    alpha: Replica, beta: Replica, hub: RecordingHub
) -> None:
    requested = [await alpha.service.request("a1") for _ in range(MAX_OWED)]

    await asyncio.gather(
        *((alpha if index % 2 else beta).generation.attempt(snapshot.id) for index, snapshot in enumerate(requested))
    )

    announced = [draft.data for draft in hub.events if draft.type == "snapshots.generated"]
    assert sorted(data["snapshotCount"] for data in announced) == list(range(1, MAX_OWED + 1))  # type: ignore[index]


async def test_a_failure_is_logged_and_tried_again_later_and_later(
    alpha: Replica, hub: RecordingHub, clock: Clock
) -> None:
    snapshot = await alpha.service.request("a1")

    async def fail(_draft: Draft) -> None:
        raise RuntimeError("odd")

    hub.before_publish = fail
    rests: list[object] = []
    for _ in range(4):
        with capture_logs() as logs:
            assert await alpha.generation.attempt(snapshot.id) is False
        assert [(entry["event"], entry["exc_info"]) for entry in logs] == [("snapshot generation failed", True)]
        row = await row_of(alpha.engine, snapshot.id)
        assert (row["owner"], row["lease_until"]) == (None, None)
        assert row["sweep_at"] == row["next_attempt_at"]
        rest = float(str(row["next_attempt_at"])) - clock()
        rests.append(rest)
        clock.advance(rest - 0.1)
        assert await alpha.generation.claim(snapshot.id) is None
        clock.advance(0.2)
    assert rests == pytest.approx([1, 2, 4, 8])

    hub.before_publish = None
    assert await alpha.generation.attempt(snapshot.id) is True
    assert hub.types("user:a1") == ALL_EVENTS


async def test_an_outage_puts_it_off(alpha: Replica, hub: RecordingHub, clock: Clock) -> None:
    snapshot = await alpha.service.request("a1")
    hub.is_down = True

    with capture_logs() as logs:
        assert await alpha.generation.attempt(snapshot.id) is False

    assert [entry["event"] for entry in logs] == ["snapshot generation put off"]
    hub.is_down = False
    clock.advance(1)
    assert await alpha.generation.attempt(snapshot.id) is True


def test_delays_grow_to_a_limit() -> None:
    assert [retry_delay_s(attempts) for attempts in (1, 2, 3, 6, 7, 5000)] == [1, 2, 4, 30, 30, 30]


async def test_work_that_hangs_ends(alpha: Replica, hub: RecordingHub, clock: Clock) -> None:
    snapshot = await alpha.service.request("a1")

    async def hang(_draft: Draft) -> None:
        await asyncio.Event().wait()

    hub.before_publish = hang
    alpha.generation._timeout_s = 0.05
    with capture_logs() as logs:
        assert await alpha.generation.attempt(snapshot.id) is False

    assert [entry["event"] for entry in logs] == ["snapshot generation failed"]
    assert (await row_of(alpha.engine, snapshot.id))["owner"] is None


async def test_long_work_keeps_its_lease(
    alpha: Replica, hub: RecordingHub, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "RENEW_S", 0.01)
    snapshot = await alpha.service.request("a1")
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def pause(_draft: Draft) -> None:
        reached.set()
        await go_on.wait()

    hub.before_publish = pause
    attempt = asyncio.create_task(alpha.generation.attempt(snapshot.id))
    await reached.wait()
    clock.advance(8)
    renewed_until = clock() + generation.LEASE_S

    async def renewed() -> Any:
        return (await row_of(alpha.engine, snapshot.id))["lease_until"] == renewed_until

    await until(renewed)
    assert (await row_of(alpha.engine, snapshot.id))["sweep_at"] == renewed_until
    go_on.set()

    assert await attempt is True


async def test_cancelled_work_is_handed_back_at_once(alpha: Replica, beta: Replica, hub: RecordingHub) -> None:
    snapshot = await alpha.service.request("a1")

    async def hang(_draft: Draft) -> None:
        await asyncio.Event().wait()

    hub.before_publish = hang
    attempt = asyncio.create_task(alpha.generation.attempt(snapshot.id))
    await until(lambda: hub.calls)
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt

    hub.before_publish = None
    assert await beta.generation.attempt(snapshot.id) is True
    assert hub.types("user:a1") == ALL_EVENTS


def test_canonical_json_is_one_text_for_one_value() -> None:
    assert canonical_json({"b": [1, "지"], "a": {"d": None, "c": True}}) == '{"a":{"c":true,"d":null},"b":[1,"지"]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))
