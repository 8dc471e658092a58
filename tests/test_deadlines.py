"""What takes too long ends, and many deadlines have one timer."""

import asyncio
import time
from typing import Any

import pytest

from allim.deadlines import Deadlines, TimeLimit
from allim.errors import Unavailable

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize(
        "anyio_backend", ["asyncio", ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"]
    ),
]


def future() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


# Futures ------------------------------------------------------------------------------------------------------------


async def test_what_is_not_done_in_time_ends_in_the_order_in_which_it_was_set() -> None:
    loop, deadlines = asyncio.get_running_loop(), Deadlines(0.03)
    ended: list[tuple[str, float]] = []
    waiting = {name: future() for name in "abc"}
    for name, one in waiting.items():
        since = loop.time()
        one.add_done_callback(lambda _, name=name, since=since: ended.append((name, loop.time() - since)))  # type: ignore[misc]
        deadlines.set(one)
        await asyncio.sleep(0.01)

    answers = await asyncio.gather(*waiting.values(), return_exceptions=True)

    assert [name for name, _ in ended] == ["a", "b", "c"]
    assert all(after_s >= 0.029 for _, after_s in ended)  # uvloop counts whole milliseconds
    assert [type(answer) for answer in answers] == [TimeoutError] * 3


async def test_it_gives_the_error_that_was_asked_for() -> None:
    late = future()
    Deadlines(0.01, lambda: Unavailable("it did not answer")).set(late)

    with pytest.raises(Unavailable, match="did not answer"):
        await late


async def test_what_is_done_in_time_stays_so() -> None:
    deadlines = Deadlines(0.02)
    first, done, late = future(), future(), future()
    for one in (first, done, late):
        deadlines.set(one)
    first.set_result(1)
    done.cancel()

    with pytest.raises(TimeoutError):
        await late
    assert await first == 1
    assert done.cancelled()


async def test_what_is_done_is_not_kept_until_its_time_is_over() -> None:
    deadlines = Deadlines(60)
    for _ in range(1000):
        one = future()
        deadlines.set(one)
        one.set_result(None)

    assert len(deadlines._pending) == 1
    deadlines.clear()


async def test_a_deadline_is_set_in_a_turn_that_rings_others_late() -> None:
    loop, deadlines = asyncio.get_running_loop(), Deadlines(0.02)
    first, second, third = future(), future(), future()
    deadlines.set(first)
    loop.call_later(0.001, deadlines.set, second)
    first.add_done_callback(lambda _: deadlines.set(third))
    loop.call_later(0.01, time.sleep, 0.03)

    async with asyncio.timeout(1):
        answers = await asyncio.gather(first, second, third, return_exceptions=True)

    assert [type(answer) for answer in answers] == [TimeoutError] * 3


async def test_what_is_forgotten_does_not_end() -> None:
    deadlines, one = Deadlines(0.01), future()
    deadlines.set(one)
    deadlines.clear()
    await asyncio.sleep(0.03)

    assert not one.done()


# Tasks --------------------------------------------------------------------------------------------------------------


async def wait_within(limit: TimeLimit, seconds: float) -> str:
    with limit:
        await asyncio.sleep(seconds)
    return "in time"


async def test_who_is_late_ends_and_who_is_in_time_does_not() -> None:
    limit = TimeLimit(0.05)

    outcomes = await asyncio.gather(
        *[wait_within(limit, seconds) for seconds in (0.01, 10, 0.02, 10)], return_exceptions=True
    )

    assert [str(outcome) or type(outcome) for outcome in outcomes] == [
        "in time",
        TimeoutError,
        "in time",
        TimeoutError,
    ]


async def test_each_has_its_own_time_from_when_it_came() -> None:
    limit, ended = TimeLimit(0.05), []

    async def come(after_s: float) -> None:
        await asyncio.sleep(after_s)
        came_at = time.monotonic()
        with pytest.raises(TimeoutError), limit:
            await asyncio.sleep(10)
        ended.append((after_s, time.monotonic() - came_at))

    await asyncio.gather(come(0.03), come(0), come(0.2))

    assert [after_s for after_s, _ in ended] == [0, 0.03, 0.2]
    assert all(lasted_s > 0.045 for _, lasted_s in ended)


async def test_a_task_goes_on_after_it_was_late() -> None:
    limit = TimeLimit(0.01)
    for _ in range(2):
        with pytest.raises(TimeoutError), limit:
            await asyncio.sleep(10)

    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
    assert await wait_within(limit, 0) == "in time"


async def test_an_error_of_its_own_is_what_it_leaves_with() -> None:
    limit = TimeLimit(0.01)

    with pytest.raises(ValueError, match="mine"), limit:
        raise ValueError("mine")

    async def fail() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"), limit:
        await fail()
    await asyncio.sleep(0)  # raises what is left of a cancellation


async def test_who_is_cancelled_from_elsewhere_is_cancelled() -> None:
    limit = TimeLimit(0.03)
    before, both = (asyncio.create_task(wait_within(limit, 10)) for _ in range(2))
    await asyncio.sleep(0.01)
    before.cancel()
    asyncio.get_running_loop().call_later(0.01, time.sleep, 0.03)
    asyncio.get_running_loop().call_later(0.01, both.cancel)

    outcomes = await asyncio.gather(before, both, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 2


async def test_a_limit_within_another_is_the_one_that_ends() -> None:
    inner, outer = TimeLimit(0.02), TimeLimit(1)

    with outer:
        for _ in range(2):
            with pytest.raises(TimeoutError), inner:
                await asyncio.sleep(10)
    with pytest.raises(TimeoutError), outer, TimeLimit(10):
        await asyncio.sleep(10)


async def test_there_is_one_timer_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, loop, timers = TimeLimit(0.05), asyncio.get_running_loop(), []
    call_at = loop.call_at

    def count(at: float, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        timers.append(at)
        return call_at(at, *args, **kwargs)

    monkeypatch.setattr(loop, "call_at", count)
    for _ in range(100):
        with limit:
            pass

    assert len(timers) == 1
