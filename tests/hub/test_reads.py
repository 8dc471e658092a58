"""History is read for many streams together where they want the same."""

import asyncio
from collections.abc import Sequence

import pytest

from allim.brokers.memory import MemoryBroker
from allim.errors import Unavailable
from allim.hub import ZERO, Position, Reading
from allim.hub.reads import READS_AT_ONCE, Reads

pytestmark = pytest.mark.anyio
TOPICS = ("user:42", "system")


class SlowBroker(MemoryBroker):
    """Reads only what it is let read; `asked` are the wishes in order."""

    def __init__(self) -> None:
        super().__init__(256, 3600)
        self.asked: list[tuple[tuple[str, ...], Position | None]] = []
        self.let = asyncio.Semaphore(0)
        self.away = False

    async def read(self, topics: Sequence[str], after: Position | None, max_events: int, max_bytes: int) -> Reading:
        self.asked.append((tuple(topics), after))
        await self.let.acquire()
        if self.away:
            raise Unavailable("away")
        return await super().read(topics, after, max_events, max_bytes)

    def let_all(self) -> None:
        for _ in range(1000):
            self.let.release()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def started(reads: Reads, *wishes: tuple[tuple[str, ...], Position | None]) -> list[asyncio.Task[Reading]]:
    tasks = [asyncio.create_task(reads.read(*wish)) for wish in wishes]
    await turns()
    return tasks


async def test_who_wants_what_is_being_read_shares_the_next_reading() -> None:
    broker = SlowBroker()
    reads = Reads(broker)
    [first] = await started(reads, (TOPICS, ZERO))
    others = await started(reads, *[(TOPICS, ZERO)] * 50)
    assert len(broker.asked) == 1

    broker.let.release()
    await first
    await turns()
    assert len(broker.asked) == 2
    broker.let.release()
    readings = await asyncio.gather(*others)

    assert len(broker.asked) == 2
    assert all(reading is readings[0] for reading in readings)
    assert readings[0] is not first.result(), "it was made before they asked"


async def test_the_clock_is_read_for_all_and_other_wishes_by_themselves() -> None:
    broker = SlowBroker()
    reads = Reads(broker)
    clocks = await started(reads, *[((f"user:{number}", "system"), None) for number in range(50)])
    pages = await started(reads, (TOPICS, ZERO), (TOPICS, Position(1, 0)), (("user:43", "system"), ZERO))
    broker.let_all()
    await asyncio.gather(*clocks, *pages)

    assert len(broker.asked) == 2 + 3


async def test_so_many_are_read_at_once_and_no_more() -> None:
    broker = SlowBroker()
    reads = Reads(broker)
    tasks = await started(reads, *[(TOPICS, Position(number, 0)) for number in range(2 * READS_AT_ONCE)])

    assert len(broker.asked) == READS_AT_ONCE
    broker.let_all()
    await asyncio.gather(*tasks)


async def test_who_leaves_takes_nobody_along() -> None:
    broker = SlowBroker()
    reads = Reads(broker)
    [first] = await started(reads, (TOPICS, ZERO))
    gone, stays = await started(reads, *[(TOPICS, ZERO)] * 2)
    for task in (first, gone):
        task.cancel()
    await turns()
    broker.let_all()

    assert (await stays).events == []
    assert first.cancelled()
    assert gone.cancelled()


async def test_what_cannot_be_read_is_told_to_all_and_asked_again_by_the_next() -> None:
    broker = SlowBroker()
    reads = Reads(broker)
    broker.away = True
    tasks = await started(reads, *[(TOPICS, ZERO)] * 3)
    broker.let_all()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, Unavailable)

    broker.away = False
    assert (await reads.read(TOPICS, ZERO)).complete


async def test_when_it_closes_nobody_waits() -> None:
    broker = SlowBroker()
    reads = Reads(broker)
    [first] = await started(reads, (TOPICS, ZERO))
    [waits] = await started(reads, (TOPICS, ZERO))
    broker.let.release()
    await first
    await turns()
    await reads.close()

    with pytest.raises(asyncio.CancelledError):
        await waits
