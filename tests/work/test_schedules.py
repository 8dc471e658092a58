import asyncio
from datetime import UTC, datetime

import pytest
from harness.waiting import until

from allim.work import Job, store, worker
from allim.work.schedules import Schedule
from tests.domains.fakes import Clock
from tests.work.replicas import Replica, Replicas

pytestmark = pytest.mark.anyio

MINUTE = 60.0


class Ticks:
    """The runs of a scheduled job, over all replicas."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    def on(self, replica: Replica, cron: str = "*/5 * * * *") -> None:
        async def run(job: Job[str]) -> None:
            self.runs.append(f"{replica.name} {job.arguments}")

        replica.work.job("tick", str)(run)
        replica.work.schedule("tick", cron, "x")


@pytest.fixture(autouse=True)
def sweeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "SWEEP_S", 0.02)


async def planned(replicas: Replicas) -> list[float]:
    return [float(str(row["due_at"])) for row in await replicas.rows() if row["state"] == "open"]


async def test_three_replicas_run_a_schedule_once_per_due_time(replicas: Replicas, clock: Clock) -> None:
    ticks = Ticks()
    three = [replicas.one(name) for name in ("alpha", "beta", "gamma")]
    for replica in three:
        ticks.on(replica)

    async with three[0].work.running(), three[1].work.running(), three[2].work.running():
        for number in range(1, 5):
            (due_at,) = await until(lambda: planned(replicas))
            clock.now = due_at - 1
            await asyncio.sleep(0.1)  # some sweeps, in which nothing may happen
            assert len(ticks.runs) == number - 1
            clock.now = due_at
            await until(lambda expected=number: len(ticks.runs) == expected)  # type: ignore[misc]
            await until(lambda due=due_at: is_after(replicas, due))  # type: ignore[misc]

    assert len(ticks.runs) == 4
    assert {run.split()[1] for run in ticks.runs} == {"x"}


async def is_after(replicas: Replicas, due_at: float) -> bool:
    return await planned(replicas) == [due_at + 5 * MINUTE]


async def test_times_that_pass_while_no_replica_runs_are_made_up_for_once(replicas: Replicas, clock: Clock) -> None:
    ticks = Ticks()
    alpha = replicas.one()
    ticks.on(alpha)
    async with alpha.work.running():
        await until(lambda: planned(replicas))
    clock.advance(3600)

    async with alpha.work.running():
        await until(lambda: ticks.runs)
        await until(lambda: planned(replicas))

    assert len(ticks.runs) == 1
    assert await planned(replicas) > [clock()]


async def test_a_schedule_with_another_expression_replaces_the_planned_job(replicas: Replicas, clock: Clock) -> None:
    before, after = replicas.one("before"), replicas.one("after")
    Ticks().on(before, "0 4 * * *")
    Ticks().on(after, "30 5 * * *")
    async with before.work.running():
        await until(lambda: planned(replicas))
    (old,) = await planned(replicas)

    async with after.work.running():
        await until(lambda: changed(replicas, old))

    assert [datetime.fromtimestamp(due, UTC).strftime("%H:%M") for due in await planned(replicas)] == ["05:30"]


async def changed(replicas: Replicas, old: float) -> bool:
    found = await planned(replicas)
    return bool(found) and old not in found


def test_times_are_in_utc_and_after_the_present() -> None:
    moment = datetime(2026, 3, 29, 2, 0, tzinfo=UTC).timestamp()

    assert Schedule("tick", "0 2 * * *", "null").next_after(moment) == moment + 86400
    assert Schedule("tick", "0 2 * * *", "null").next_after(moment - 0.5) == moment
    assert Schedule("tick", "*/10 * * * * *", "null").next_after(moment + 0.5) == moment + 10


@pytest.mark.parametrize("cron", ["", "* * * *", "61 * * * *", "0 0 31 2 *", "x"])
async def test_a_wrong_expression_is_refused(replicas: Replicas, cron: str) -> None:
    alpha = replicas.one()

    with pytest.raises(ValueError, match=r"schedule of note: .* is no cron expression"):
        alpha.work.schedule("note", cron, ["a"])


async def test_a_job_without_a_type_takes_a_dict_which_is_empty_by_default(replicas: Replicas, clock: Clock) -> None:
    alpha = replicas.one()
    runs: list[dict[str, object]] = []

    @alpha.work.job("clean")
    async def clean(job: Job[dict[str, object]]) -> None:
        runs.append(job.arguments)

    alpha.work.schedule("clean", "* * * * *")
    async with alpha.work.running():
        await until(lambda: planned(replicas))
        clock.advance(60)
        await until(lambda: runs)

    assert runs[0] == {}


async def test_a_schedule_that_is_there_already_is_refused(replicas: Replicas) -> None:
    alpha = replicas.one()
    alpha.work.schedule("note", "0 * * * *", ["a"])
    alpha.work.schedule("note", "30 * * * *", ["b"])

    with pytest.raises(ValueError, match=r"schedule of note: '0 \* \* \* \*' is there already"):
        alpha.work.schedule("note", "0 * * * *", ["b"])


async def test_a_clock_that_was_ahead_and_is_stepped_back_stops_no_schedule(replicas: Replicas, clock: Clock) -> None:
    ticks = Ticks()
    alpha = replicas.one()
    ticks.on(alpha)
    right = clock.now
    clock.advance(365 * 86400)
    async with alpha.work.running():
        (ahead,) = await until(lambda: planned(replicas))
        clock.now = right
        next_due, _ = await until(lambda: two_planned(replicas))
        assert right < next_due <= right + 5 * MINUTE < ahead
        clock.now = next_due
        await until(lambda: ticks.runs)


async def two_planned(replicas: Replicas) -> list[float]:
    found = await planned(replicas)
    return found if len(found) == 2 else []


async def test_a_replica_that_always_finds_a_due_job_goes_on_with_its_schedules(
    replicas: Replicas, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = Ticks()
    alpha = replicas.one(at_once=1000)
    ticks.on(alpha)
    take = alpha.work._worker._claim

    async def take_and_enqueue(most: int, now: float) -> list[store.Claim]:
        claims = await take(most, now)
        await alpha.enqueue("next")
        return claims

    monkeypatch.setattr(alpha.work._worker, "_claim", take_and_enqueue)
    await alpha.enqueue("first")
    async with alpha.work.running():
        for number in (1, 2, 3):
            clock.now = await until(lambda: next_planned(replicas, clock()))
            await until(lambda expected=number: len(ticks.runs) >= expected)  # type: ignore[misc]


async def next_planned(replicas: Replicas, now: float) -> float:
    """Return when the next run is due, 0 while none is planned."""
    ticks = [
        float(str(row["due_at"])) for row in await replicas.rows() if row["name"] == "tick" and not row["attempts"]
    ]
    return next((due_at for due_at in ticks if due_at > now), 0.0)


async def test_a_schedule_needs_a_job(replicas: Replicas) -> None:
    with pytest.raises(ValueError, match="no job has the name 'other'"):
        replicas.one().work.schedule("other", "* * * * *")
