"""Deadlines of many calls with one timer."""

import asyncio
import time
from typing import Any

import pytest

from allim.brokers.scripts import Deadlines

pytestmark = pytest.mark.anyio


def future() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()


async def test_what_is_not_done_in_time_ends_in_the_order_of_the_deadlines() -> None:
    deadlines, ended = Deadlines(), []
    now = asyncio.get_running_loop().time()
    waiting = {name: future() for name in "cab"}
    for name, in_s in (("c", 0.06), ("a", 0.02), ("b", 0.04)):
        waiting[name].add_done_callback(lambda _, name=name: ended.append(name))  # type: ignore[misc]
        deadlines.set(waiting[name], now + in_s)

    answers = await asyncio.gather(*waiting.values(), return_exceptions=True)

    assert ended == ["a", "b", "c"]
    assert [type(answer) for answer in answers] == [TimeoutError] * 3


async def test_what_is_done_in_time_stays_so() -> None:
    deadlines = Deadlines()
    now = asyncio.get_running_loop().time()
    done, late = future(), future()
    deadlines.set(done, now + 0.01)
    deadlines.set(late, now + 0.03)
    done.set_result(1)

    with pytest.raises(TimeoutError):
        await late
    assert await done == 1


async def test_a_deadline_that_has_passed_ends_it_at_once() -> None:
    late = future()
    Deadlines().set(late, asyncio.get_running_loop().time() - 1)

    with pytest.raises(TimeoutError):
        await late


@pytest.mark.parametrize("anyio_backend", ["asyncio", ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"])
async def test_a_deadline_is_set_in_a_turn_that_rings_others_late() -> None:
    loop, deadlines = asyncio.get_running_loop(), Deadlines()
    now = loop.time()
    first, second, third = future(), future(), future()
    deadlines.set(first, now + 0.02)
    deadlines.set(second, now + 0.021)
    first.add_done_callback(lambda _: deadlines.set(third, now + 0.06))
    loop.call_later(0.01, time.sleep, 0.03)

    async with asyncio.timeout(1):
        answers = await asyncio.gather(first, second, third, return_exceptions=True)

    assert [type(answer) for answer in answers] == [TimeoutError] * 3
