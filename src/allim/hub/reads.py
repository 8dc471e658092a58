"""Reads of history: so many at once, and the same only once, however many streams want it."""

import asyncio
from collections.abc import Sequence

from allim.hub.broker import Broker, Reading
from allim.hub.position import Position

PAGE_EVENTS = 256
PAGE_BYTES = 256 * 1024
READS_AT_ONCE = 8  # bounds, with the size of a page, how long Redis and this replica do nothing else

_Wish = tuple[tuple[str, ...], Position | None]


class Reads:
    """Pages of history after a position, for streams that are subscribed already.

    What is being read may be too old for a stream that subscribed meanwhile. So who wants what is being read waits,
    and all who wait for the same get one reading, made after that.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._slots = asyncio.Semaphore(READS_AT_ONCE)
        self._lines: dict[_Wish, list[asyncio.Future[Reading]]] = {}  # who waits for what is being read
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, topics: tuple[str, ...], after: Position | None) -> Reading:
        """One page.

        Raises: Unavailable.
        """
        wish = (topics, after) if after is not None else ((), None)  # the clock is the same for all
        line = self._lines.get(wish)
        if line is not None:
            answer: asyncio.Future[Reading] = asyncio.get_running_loop().create_future()
            line.append(answer)
            return await answer
        self._lines[wish] = []
        try:
            return await self._ask(wish)
        finally:
            if self._lines[wish]:
                task = asyncio.create_task(self._serve(wish), name="allim history read")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                del self._lines[wish]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, wish: _Wish) -> None:
        """Runs until nobody waits for this."""
        waiting: Sequence[asyncio.Future[Reading]] = ()
        try:
            while waiting := [answer for answer in self._lines[wish] if not answer.done()]:  # some may have gone
                self._lines[wish] = []
                outcome = await asyncio.gather(self._ask(wish), return_exceptions=True)
                _settle(waiting, outcome[0])
        finally:
            for answer in (*waiting, *self._lines.pop(wish)):
                answer.cancel()  # nobody reads for them any more; those that are answered stay so

    async def _ask(self, wish: _Wish) -> Reading:
        async with self._slots:
            return await self._broker.read(*wish, PAGE_EVENTS, PAGE_BYTES)


def _settle(waiting: Sequence["asyncio.Future[Reading]"], outcome: Reading | BaseException) -> None:
    for answer in waiting:
        if answer.done():
            continue
        if isinstance(outcome, BaseException):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)
