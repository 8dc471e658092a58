"""The promises of background work, over SQLite and PostgreSQL."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from harness.waiting import until
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from structlog.testing import capture_logs

from allim.errors import TooLarge, Unavailable
from allim.storage import open_engine, writing
from allim.work import Job, LeaseLost, Work, store, worker
from allim.work.job import LEASE_S
from allim.work.work import MAX_ARGUMENTS_BYTES
from tests.domains.fakes import Clock
from tests.work.replicas import Bus, Note, Replica, Replicas, fail, hang, store_effect

pytestmark = pytest.mark.anyio

NEVER_S = 3600.0


@pytest.fixture
def sweeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas that sweep all the time."""
    monkeypatch.setattr(worker, "SWEEP_S", 0.02)


@pytest.fixture
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas that only do what they are woken for."""
    monkeypatch.setattr(worker, "SWEEP_S", NEVER_S)


# Enqueue ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_sweep")
async def test_a_job_is_run_at_once_after_its_transaction_and_leaves_no_row(replicas: Replicas) -> None:
    alpha = replicas.one()

    async with alpha.work.running():
        await alpha.enqueue("a")
        await until(lambda: alpha.count("done") == 1)

    assert await replicas.effects() == {"a": 1}
    assert alpha.runs == [("a", 1)]
    assert await replicas.rows() == []
    assert replicas.bus.sent == 0  # the replica itself has room


@pytest.mark.usefixtures("sweeping")
async def test_a_transaction_that_is_rolled_back_leaves_no_job(replicas: Replicas) -> None:
    alpha = replicas.one()

    async with alpha.work.running():
        with suppress(RuntimeError):
            async with writing(alpha.engine) as connection:
                await alpha.work.enqueue(connection, "note", Note("gone"))
                raise RuntimeError
        await alpha.enqueue("kept")
        await until(lambda: alpha.count("done") == 1)

    assert alpha.runs == [("kept", 1)]
    assert await replicas.effects() == {"kept": 1}


async def test_a_transaction_of_sqlalchemy_itself_will_do(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SWEEP_S", NEVER_S)
    alpha = replicas.one()

    async with alpha.work.running():
        async with alpha.engine.begin() as connection:
            await alpha.work.enqueue(connection, "note", Note("a"))
        await until(lambda: alpha.count("done") == 1)


async def test_a_job_with_a_known_key_is_not_stored_again(replicas: Replicas) -> None:
    alpha, beta = replicas.one("alpha"), replicas.one("beta")

    ids = await asyncio.gather(*(replica.enqueue("a", key="k") for replica in (alpha, beta) * 3))
    other = await alpha.enqueue("b", key="other")
    async with alpha.work.running():
        await until(lambda: alpha.count("done") == 2)
    again = await beta.enqueue("a", key="k")

    assert len(set(ids)) == 1
    assert again == ids[0] != other
    assert await replicas.effects() == {"a": 1, "b": 1}


@pytest.mark.usefixtures("sweeping")
async def test_a_key_is_forgotten_a_day_after_its_job_is_done(replicas: Replicas, clock: Clock) -> None:
    alpha = replicas.one()
    first = await alpha.enqueue("a", key="k")
    async with alpha.work.running():
        await until(lambda: alpha.count("done") == 1)
    clock.advance(store.KEEP_DONE_S + 1)

    async with alpha.work.running():
        alpha.work._worker._forget_at = 0
        await until(lambda: gone(replicas))

    assert await alpha.enqueue("a", key="k") != first


async def gone(replicas: Replicas) -> bool:
    return await replicas.rows() == []


async def test_wrong_jobs_are_refused(replicas: Replicas) -> None:
    alpha = replicas.one()

    async def enqueue(name: str = "note", arguments: object = Note("a"), key: str | None = None) -> None:
        async with writing(alpha.engine) as connection:
            await alpha.work.enqueue(connection, name, arguments, key=key)

    with pytest.raises(ValueError, match="no job has the name 'unknown'"):
        await enqueue("unknown")
    with pytest.raises(ValueError, match="word"):
        await enqueue(arguments={"other": 1})
    with pytest.raises(TooLarge, match="arguments: they are"):
        await enqueue(arguments=Note("x" * MAX_ARGUMENTS_BYTES))
    with pytest.raises(ValueError, match="key"):
        await enqueue(key="x" * 201)
    with pytest.raises(ValueError, match="key"):
        await enqueue(key="schedule:x")
    with pytest.raises(ValueError, match="time zone"):
        async with writing(alpha.engine) as connection:
            await alpha.work.enqueue(connection, "note", Note("a"), due=datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="taken"):
        alpha.work.job("note", Note)(hang)
    assert await replicas.rows() == []


@pytest.mark.usefixtures("sweeping")
async def test_a_job_waits_for_its_due_time(replicas: Replicas, clock: Clock) -> None:
    alpha = replicas.one()
    await alpha.enqueue("later", due=clock() + 100)
    async with writing(alpha.engine) as connection:
        due = datetime.fromtimestamp(clock() + 200, UTC)
        await alpha.work.enqueue(connection, "note", Note("much later"), due=due)

    async with alpha.work.running():
        await alpha.enqueue("now")
        await until(lambda: alpha.count("done") == 1)
        clock.advance(101)
        await until(lambda: alpha.count("done") == 2)
        clock.advance(100)
        await until(lambda: alpha.count("done") == 3)

    assert [word for word, _ in alpha.runs] == ["now", "later", "much later"]


async def test_a_replica_wakes_when_a_job_is_due_and_not_with_the_next_sweep(
    database_url: str, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SWEEP_S", NEVER_S)
    loop = asyncio.get_running_loop()
    engine = open_engine(database_url)
    alpha = Replica(engine, Bus(), loop.time, "alpha")  # type: ignore[arg-type]

    async with alpha.work.running():
        await alpha.enqueue("soon", due=loop.time() + 0.3)
        await until(lambda: alpha.count("done") == 1)
    await engine.dispose()


# Several replicas ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_sweep")
async def test_what_a_replica_has_no_room_for_is_run_by_others_that_get_a_hint(replicas: Replicas) -> None:
    alpha, beta = replicas.one("alpha", at_once=2), replicas.one("beta", at_once=2)
    go_on = asyncio.Event()

    async def wait(_job: Job[Note]) -> None:
        await go_on.wait()

    alpha.before = beta.before = wait
    async with alpha.work.running(), beta.work.running():
        for number in range(6):
            await alpha.enqueue(f"w{number}")
        await until(lambda: len(alpha.runs) + len(beta.runs) == 4)
        go_on.set()
        await until(lambda: alpha.count("done") + beta.count("done") == 6)

    assert (alpha.most_at_once, beta.most_at_once) == (2, 2)
    assert set((await replicas.effects()).values()) == {1}
    assert await replicas.servers() == {"alpha", "beta"}


@pytest.mark.usefixtures("no_sweep")
async def test_a_replica_that_does_no_work_calls_others(replicas: Replicas) -> None:
    alpha, beta = replicas.one("alpha"), replicas.one("beta")

    async with beta.work.running():
        await beta.enqueue("b")
        await until(lambda: beta.count("done") == 1)  # and now it waits
        await alpha.enqueue("a")
        await until(lambda: beta.count("done") == 2)

    assert replicas.bus.sent == 1


@pytest.mark.usefixtures("sweeping")
@pytest.mark.parametrize("way", ["lost", "is_down"])
async def test_without_hints_the_sweeper_finds_jobs(replicas: Replicas, way: str) -> None:
    setattr(replicas.bus, way, True)
    alpha, beta = replicas.one("alpha"), replicas.one("beta")

    with capture_logs() as logs:
        await alpha.enqueue("a")
        await until(lambda: replicas.bus.sent)
        async with beta.work.running():
            await until(lambda: beta.count("done") == 1)
        if way == "is_down":
            await until(lambda: [entry["event"] for entry in logs] == ["hint not sent"])


@pytest.mark.usefixtures("sweeping")
async def test_many_replicas_run_each_job_once(replicas: Replicas) -> None:
    three = [replicas.one(name) for name in ("alpha", "beta", "gamma")]
    words = [f"w{number}" for number in range(60)]

    async with three[0].work.running(), three[1].work.running(), three[2].work.running():
        await asyncio.gather(*(three[number % 3].enqueue(word) for number, word in enumerate(words)))
        await until(lambda: sum(replica.count("done") for replica in three) == len(words))

    assert await replicas.effects() == dict.fromkeys(words, 1)
    assert sorted(run for replica in three for run in replica.runs) == sorted((word, 1) for word in words)


async def test_of_many_that_claim_at_once_one_gets_the_job(replicas: Replicas, clock: Clock) -> None:
    alpha, beta = replicas.one("alpha"), replicas.one("beta")
    await alpha.enqueue("a")

    claims = await asyncio.gather(*(replica.claim(clock()) for replica in (alpha, beta) * 4))

    assert sum(map(len, claims)) == 1
    assert [row["attempts"] for row in await replicas.rows()] == [1]


# Leases -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sweeping")
async def test_another_replica_takes_a_job_when_its_lease_has_ended_and_not_before(
    replicas: Replicas, clock: Clock
) -> None:
    alpha, beta = replicas.one("alpha"), replicas.one("beta")
    await alpha.enqueue("a")
    assert await alpha.claim(clock())  # and then alpha dies

    async with beta.work.running():
        clock.advance(LEASE_S - 0.1)
        await beta.enqueue("b")
        await until(lambda: beta.count("done") == 1)
        clock.advance(0.2)
        await until(lambda: beta.count("done") == 2)

    assert beta.runs == [("b", 1), ("a", 2)]


async def test_a_replica_that_was_overtaken_stores_nothing(replicas: Replicas, clock: Clock) -> None:
    alpha, beta = replicas.one("alpha"), replicas.one("beta")
    await alpha.enqueue("a")
    (old,) = await alpha.claim(clock())
    clock.advance(LEASE_S)
    (new,) = await beta.claim(clock())
    late, present = Job(old, Note("a"), clock), Job(new, Note("a"), clock)

    async def store_with(step: Callable[[AsyncConnection], Awaitable[None]]) -> None:
        async with writing(alpha.engine) as connection:
            await store_effect(alpha, connection, "a")
            await step(connection)

    for step in (late.complete, late.fence):
        with pytest.raises(LeaseLost):
            await store_with(step)
    assert await replicas.effects() == {}
    async with writing(beta.engine) as connection:
        await present.fence(connection)
        await store_effect(beta, connection, "a")
        await present.complete(connection)
    assert await replicas.effects() == {"a": 1}


async def test_a_completion_whose_transaction_is_rolled_back_leaves_the_job(replicas: Replicas, clock: Clock) -> None:
    alpha = replicas.one()
    await alpha.enqueue("a")
    (claim,) = await alpha.claim(clock())

    with suppress(RuntimeError):
        async with writing(alpha.engine) as connection:
            await Job(claim, Note("a"), clock).complete(connection)
            raise RuntimeError

    assert [row["state"] for row in await replicas.rows()] == ["open"]


@pytest.mark.usefixtures("sweeping")
async def test_a_lease_is_renewed_while_the_handler_runs(
    replicas: Replicas, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "RENEW_S", 0.01)
    alpha, beta = replicas.one("alpha"), replicas.one("beta")
    go_on = asyncio.Event()

    async def wait(_job: Job[Note]) -> None:
        await go_on.wait()

    alpha.before = beta.before = wait
    async with alpha.work.running(), beta.work.running():
        await alpha.enqueue("a")
        await until(lambda: alpha.runs or beta.runs)
        for _ in range(4):
            clock.advance(8)
            renewed_until = clock() + LEASE_S

            async def renewed(until: float = renewed_until) -> bool:
                return [row["due_at"] for row in await replicas.rows()] == [until]

            await until(renewed)
        go_on.set()
        await until(lambda: alpha.count("done") + beta.count("done") == 1)

    assert [*alpha.runs, *beta.runs] == [("a", 1)]


async def test_a_handler_that_lost_its_lease_is_cancelled(
    replicas: Replicas, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "RENEW_S", 0.01)
    alpha = replicas.one()
    alpha.before = hang

    with capture_logs() as logs:
        async with alpha.work.running():
            await alpha.enqueue("a")
            await until(lambda: alpha.runs)
            async with writing(alpha.engine) as connection:
                await connection.execute(text("UPDATE allim_work_jobs SET owner = 'beta:x', due_at = due_at + 100"))
            await until(lambda: alpha.count("lost") == 1)

    assert [entry["event"] for entry in logs] == ["job taken over by another replica"]
    assert [(row["owner"], row["attempts"]) for row in await replicas.rows()] == [("beta:x", 1)]


@pytest.mark.usefixtures("sweeping")
async def test_a_clock_that_was_stepped_back_delays_no_job_but_those_with_a_due_time(
    replicas: Replicas, clock: Clock
) -> None:
    alpha, beta = replicas.one("alpha"), replicas.one("beta")
    await alpha.enqueue("claimed")
    assert await alpha.claim(clock())
    await alpha.enqueue("fresh")
    await alpha.enqueue("timed", due=clock() + 10)
    clock.advance(-3600)

    async with beta.work.running():
        await until(lambda: beta.count("done") == 2)
        clock.advance(3609)
        await beta.enqueue("next")
        await until(lambda: beta.count("done") == 3)

    assert sorted(word for word, _ in beta.runs) == ["claimed", "fresh", "next"]


# Failures -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sweeping")
async def test_a_job_that_fails_rests_longer_and_longer_and_then_is_dead_until_it_is_tried_again(
    replicas: Replicas, clock: Clock
) -> None:
    alpha = replicas.one()
    alpha.before = fail

    with capture_logs() as logs:
        async with alpha.work.running():
            job_id = await alpha.enqueue("a", key="k")
            rests = []
            for failures in (1, 2):
                await until(lambda expected=failures: alpha.count("failed") == expected)  # type: ignore[misc]
                (row,) = await replicas.rows()
                rests.append(float(str(row["due_at"])) - clock())
                clock.advance(rests[-1] + 0.01)
            await until(lambda: alpha.count("dead") == 1)
            assert await alpha.enqueue("a", key="k") == job_id
            (dead,) = await alpha.work.dead()
            alpha.before = None
            assert await alpha.work.retry(["other"]) == 0
            assert await alpha.work.retry([job_id]) == 1
            await until(lambda: alpha.count("done") == 1)

    assert [entry["event"] for entry in logs] == ["job failed", "job failed", "job failed", "job dead"]
    assert 0.5 <= rests[0] <= 1 <= rests[1] <= 2
    assert (dead.id, dead.name, dead.arguments, dead.attempts) == (job_id, "note", '["a"]', 3)
    assert dead.error == "RuntimeError: odd"
    assert alpha.runs == [("a", 1), ("a", 2), ("a", 3), ("a", 1)]
    assert await alpha.work.dead() == []
    assert await alpha.work.retry() == 0


@pytest.mark.usefixtures("sweeping")
async def test_an_error_whose_text_no_database_takes_is_stored_all_the_same(replicas: Replicas, clock: Clock) -> None:
    alpha = replicas.one()

    async def fail_oddly(_job: Job[Note]) -> None:
        raise RuntimeError("odd \0 and \ud800")

    alpha.before = fail_oddly
    async with alpha.work.running():
        await alpha.enqueue("a")
        for failures in (1, 2):
            await until(lambda expected=failures: alpha.count("failed") == expected)  # type: ignore[misc]
            clock.advance(5)
        await until(lambda: alpha.count("dead") == 1)

    assert [dead.error for dead in await alpha.work.dead()] == ["RuntimeError: odd \\0 and \\ud800"]


@pytest.mark.usefixtures("sweeping")
async def test_an_outage_puts_a_job_off_and_kills_it_never(replicas: Replicas, clock: Clock) -> None:
    alpha = replicas.one()

    async def be_away(_job: Job[Note]) -> None:
        raise Unavailable("The history does not answer.")

    alpha.before = be_away
    async with alpha.work.running():
        await alpha.enqueue("a")
        for attempts in range(1, 7):
            await until(lambda expected=attempts: alpha.count("put_off") == expected)  # type: ignore[misc]
            clock.advance(5)
        alpha.before = None
        clock.advance(5)
        await until(lambda: alpha.count("done") == 1)

    assert alpha.count("failed") == 0
    assert len(alpha.runs) == 7 or len(alpha.runs) == 8


@pytest.mark.usefixtures("sweeping")
async def test_a_job_whose_replicas_die_again_and_again_is_dead(replicas: Replicas, clock: Clock) -> None:
    alpha = replicas.one()
    job_id = await alpha.enqueue("poison")
    for _ in range(3):
        assert await alpha.claim(clock())  # and the replica dies
        clock.advance(LEASE_S)

    async with alpha.work.running():
        await until(lambda: alpha.count("dead") == 1)

    assert alpha.runs == []
    assert [(dead.id, dead.error) for dead in await alpha.work.dead()] == [
        (job_id, "the replicas that ran it died or hung")
    ]


async def test_a_handler_that_takes_too_long_is_ended(replicas: Replicas) -> None:
    alpha = replicas.one()

    async def slow(job: Job[str]) -> None:
        await asyncio.Event().wait()

    alpha.work.job("slow", str, retries=0, timeout_s=0.05)(slow)
    async with alpha.work.running():
        async with writing(alpha.engine) as connection:
            await alpha.work.enqueue(connection, "slow", "a")
        await until(alpha.work.dead)

    assert [dead.error for dead in await alpha.work.dead()] == ["TimeoutError: took longer than 0.05 s"]


async def test_a_handler_that_cancels_itself_fails_like_any_other(replicas: Replicas) -> None:
    alpha = replicas.one()

    async def cancel(job: Job[str]) -> None:
        raise asyncio.CancelledError

    alpha.work.job("odd", str, retries=0)(cancel)
    async with alpha.work.running():
        async with writing(alpha.engine) as connection:
            await alpha.work.enqueue(connection, "odd", "a")
        await until(alpha.work.dead)


async def test_arguments_that_this_version_does_not_know_fail_the_job(replicas: Replicas) -> None:
    alpha = replicas.one()
    await alpha.enqueue("a")
    async with writing(alpha.engine) as connection:
        await connection.execute(text("UPDATE allim_work_jobs SET arguments = '{\"other\": 1}'"))

    async with alpha.work.running():
        await until(lambda: alpha.count("failed") == 1)

    assert alpha.runs == []


async def test_a_job_of_a_name_that_no_replica_knows_waits(replicas: Replicas, clock: Clock) -> None:
    alpha, beta = replicas.one("alpha"), replicas.one("beta")

    async def run(job: Job[str]) -> None: ...

    alpha.work.job("new", str)(run)
    async with writing(alpha.engine) as connection:
        await alpha.work.enqueue(connection, "new", "a")
    async with beta.work.running():
        await beta.enqueue("b")
        await until(lambda: beta.count("done") == 1)

    assert [row["name"] for row in await replicas.rows()] == ["new"]


# Stop ---------------------------------------------------------------------------------------------------------


async def test_a_stop_waits_for_jobs_in_hand(replicas: Replicas) -> None:
    alpha = replicas.one()
    go_on = asyncio.Event()

    async def wait(_job: Job[Note]) -> None:
        await go_on.wait()

    alpha.before = wait
    async with alpha.work.running(grace_s=60):
        await alpha.enqueue("a")
        await until(lambda: alpha.runs)
        asyncio.get_running_loop().call_later(0.05, go_on.set)

    assert await replicas.effects() == {"a": 1}


@pytest.mark.usefixtures("no_sweep")
async def test_a_stop_gives_jobs_in_hand_to_another_replica_at_once(replicas: Replicas) -> None:
    alpha, beta = replicas.one("alpha"), replicas.one("beta")
    alpha.before = hang

    async with alpha.work.running(grace_s=0.01):
        await alpha.enqueue("a")
        await until(lambda: alpha.runs)
        async with beta.work.running():
            await beta.enqueue("b")
            await until(lambda: beta.count("done") == 1)  # and now it waits
            await alpha.work.leave(0.01)
            await until(lambda: beta.count("done") == 2)

    assert beta.runs == [("b", 1), ("a", 1)]  # the attempt that was broken off does not count
    assert await replicas.effects() == {"a": 1, "b": 1}


async def test_a_replica_that_stops_takes_no_more_jobs(replicas: Replicas) -> None:
    alpha = replicas.one()

    async with alpha.work.running():
        await alpha.work.leave(1)
        await alpha.enqueue("a")
        await alpha.work.leave(1)

    assert alpha.runs == []
    assert [row["owner"] for row in await replicas.rows()] == [None]


async def test_readiness_follows_the_loop(replicas: Replicas) -> None:
    work = replicas.one().work

    with pytest.raises(Unavailable):
        await work.check()
    async with work.running():
        await work.check()
        assert work._worker._loop is not None
        work._worker._loop.cancel()
        await until(work._worker._loop.done)
        with pytest.raises(Unavailable):
            await work.check()
    with pytest.raises(Unavailable):
        await work.check()


@pytest.mark.usefixtures("sweeping")
async def test_the_loop_outlives_an_outage_of_the_database(clock: Clock) -> None:
    away = open_engine("postgresql://nobody@127.0.0.1:1/none")
    work = Work(away, Bus(), "alpha", now=clock)
    work.job("note", Note)(fail)

    with capture_logs() as logs:
        async with work.running():
            await until(lambda: sum(entry["event"] == "work put off" for entry in logs) > 1)
            await work.check()
    await away.dispose()
