"""Turns at work that only a few may do at once."""

import asyncio
from collections.abc import Callable

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from allim.access import turns
from allim.access.turns import Turns
from allim.errors import TooMany, Unavailable

pytestmark = pytest.mark.anyio


class Client:
    """A client that waits for an answer until it hangs up."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    @property
    def request(self) -> Request:
        return Request({"type": "http", "method": "POST", "headers": []}, self.receive)


class Work:
    """Work that is done in turns: it ends when a test says so, and notes its name."""

    def __init__(self, at_once: int = 1, now: Callable[[], float] = lambda: 0.0) -> None:
        self.refusals = 0
        self.turns = Turns(at_once, self._refused, now)
        self.done: list[str] = []
        self.places = asyncio.Semaphore(0)

    def _refused(self) -> None:
        self.refusals += 1

    def start(self, name: str, address: str, client: Client | None = None) -> "asyncio.Task[None]":
        return asyncio.create_task(self._do(name, address, (client or Client()).request))

    async def _do(self, name: str, address: str, request: Request) -> None:
        async with self.turns.turn(request, address):
            await self.places.acquire()
            self.done.append(name)

    def finish(self, count: int = 1000) -> None:
        for _ in range(count):
            self.places.release()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_addresses_take_turns_and_within_one_the_first_is_first() -> None:
    work = Work()
    tasks = [work.start(f"a{number}", "192.0.2.1") for number in range(4)]
    await settle()
    tasks += [work.start(f"b{number}", "192.0.2.2") for number in range(2)]
    tasks += [work.start("c0", "192.0.2.3")]
    await settle()

    work.finish()
    await asyncio.gather(*tasks)

    assert work.done == ["a0", "a1", "b0", "c0", "a2", "b1", "a3"]


async def test_one_address_has_eight_waiting_and_others_are_not_refused_for_it() -> None:
    work = Work(at_once=2)
    tasks = [work.start("a", "192.0.2.1") for _ in range(10)]
    await settle()

    with pytest.raises(TooMany) as refusal:
        await work.start("a", "192.0.2.1")
    other = work.start("b", "192.0.2.2")
    await settle()
    work.finish()
    await asyncio.gather(*tasks, other)

    assert refusal.value.retry_after_s == 1
    assert work.refusals == 1
    assert len(work.done) == 11
    await work.start("a", "192.0.2.1")


async def test_subscribers_of_one_48_take_turns_as_one_and_have_more_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PATIENCE_S", 1000)
    work = Work()
    first = work.start("first", "192.0.2.1")
    await settle()
    sites = [f"2001:db8:0:{number:x}::/64" for number in range(5)]
    tasks = [work.start("site", site) for site in sites[:4] for _ in range(8)]
    await settle()

    with pytest.raises(TooMany):  # 32 of the /56 wait
        await work.start("site", sites[4])
    tasks += [work.start("other site", "2001:db8:0:100::/64"), work.start("other", "192.0.2.2")]
    await settle()
    work.finish()
    await asyncio.gather(first, *tasks)

    assert work.done[:3] == ["first", "site", "other"]


async def test_a_client_that_has_gone_is_dropped_before_its_turn() -> None:
    work = Work()
    present = Client()
    running = work.start("running", "192.0.2.1")
    await settle()
    gone = [Client() for _ in range(8)]
    waiting = [work.start("gone", "192.0.2.1", client) for client in gone]
    staying = work.start("staying", "192.0.2.2", present)
    await settle()

    for client in gone:
        client.gone.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    work.finish()
    await asyncio.gather(running, staying)

    assert [type(outcome) for outcome in outcomes] == [ClientDisconnect] * 8
    assert work.done == ["running", "staying"]
    assert work.refusals == 0


async def test_a_client_that_had_gone_before_gets_no_free_place() -> None:
    work, client = Work(), Client()
    client.gone.set()
    work.finish()

    with pytest.raises(ClientDisconnect):
        await work.start("gone", "192.0.2.1", client)
    await work.start("next", "192.0.2.1")

    assert work.done == ["next"]


async def test_a_place_given_to_one_that_is_cancelled_in_the_same_moment_goes_on() -> None:
    work = Work()
    running = work.start("running", "192.0.2.1")
    await settle()
    cancelled = work.start("cancelled", "192.0.2.2")
    next_one = work.start("next", "192.0.2.3")
    await settle()

    work.finish()
    await running  # its place has just been given on
    cancelled.cancel()
    await next_one
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await work.start("last", "192.0.2.2")

    assert work.done == ["running", "next", "last"]


async def test_a_wait_that_would_be_too_long_is_not_begun() -> None:
    seconds = [0.0]
    work = Work(now=lambda: seconds[0])
    slow = work.start("slow", "192.0.2.1")
    await settle()
    seconds[0] = 2.0  # the running turn has taken so long already
    waiting = [work.start("waits", f"192.0.2.{number}") for number in (2, 3)]
    await settle()

    with pytest.raises(Unavailable) as refusal:
        await work.start("late", "192.0.2.4")
    assert refusal.value.retry_after_s == 6
    work.finish()
    await asyncio.gather(slow, *waiting)

    assert work.done == ["slow", "waits", "waits"]


async def test_while_the_wait_is_long_the_longest_line_makes_room_for_a_shorter() -> None:
    seconds = [0.0]
    work = Work(now=lambda: seconds[0])
    slow = work.start("slow", "192.0.2.1")
    await settle()
    many = [work.start(f"a{number}", "192.0.2.2") for number in range(5)]
    await settle()
    seconds[0] = 1.0

    other = work.start("b", "192.0.2.3")
    await settle()
    with pytest.raises(Unavailable):
        await many[-1]
    with pytest.raises(Unavailable):
        await work.start("a", "192.0.2.2")
    work.finish()
    await asyncio.gather(slow, other, *many[:-1])

    assert work.done == ["slow", "a0", "b", "a1", "a2", "a3"]
    assert work.refusals == 2


async def test_how_long_a_turn_takes_is_measured() -> None:
    seconds = [0.0]
    work = Work(now=lambda: seconds[0])
    for _ in range(30):
        task = work.start("one", "192.0.2.1")
        await settle()
        seconds[0] += 10.0
        work.finish(1)
        await task

    running = work.start("running", "192.0.2.1")
    await settle()
    with pytest.raises(Unavailable):
        await work.start("late", "192.0.2.2")
    running.cancel()
