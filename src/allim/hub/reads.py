"""Reads of history: a bounded number at a time, and each page once, however many streams need it."""

import asyncio
from collections.abc import Sequence

from allim.hub.broker import Broker, Reading
from allim.hub.position import Position

PAGE_EVENTS = 256
PAGE_BYTES = 256 * 1024
READS_AT_ONCE = 8  # with the size of a page, this bounds how long other requests wait in Redis and here

_Request = tuple[tuple[str, ...], Position | None]


class Reads:
    """Pages of history after a position, for streams that are subscribed already.

    A page that is being read may be too old for a stream that subscribed meanwhile. So a stream that needs the same
    page waits, and all streams that wait for it get one reading, made after the present one.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._slots = asyncio.Semaphore(READS_AT_ONCE)
        self._waiting: dict[_Request, list[asyncio.Future[Reading]]] = {}  # per page that is being read
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, topics: tuple[str, ...], after: Position | None) -> Reading:
        """Read one page.

        Raises: Unavailable.
        """
        request = (topics, after) if after is not None else ((), None)  # the clock is the same for all
        waiting = self._waiting.get(request)
        if waiting is not None:
            answer: asyncio.Future[Reading] = asyncio.get_running_loop().create_future()
            waiting.append(answer)
            return await answer
        self._waiting[request] = []
        try:
            return await self._ask(request)
        finally:
            if self._waiting[request]:
                task = asyncio.create_task(self._serve(request), name="allim history read")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                del self._waiting[request]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, request: _Request) -> None:
        """Read the page again and again until no stream waits for it."""
        waiting: Sequence[asyncio.Future[Reading]] = ()
        try:
            while waiting := [answer for answer in self._waiting[request] if not answer.done()]:
                self._waiting[request] = []
                outcome = await asyncio.gather(self._ask(request), return_exceptions=True)
                _resolve(waiting, outcome[0])
        finally:
            for answer in (*waiting, *self._waiting.pop(request)):
                answer.cancel()  # has no effect on those that are answered

    async def _ask(self, request: _Request) -> Reading:
        async with self._slots:
            return await self._broker.read(*request, PAGE_EVENTS, PAGE_BYTES)


def _resolve(waiting: Sequence["asyncio.Future[Reading]"], outcome: Reading | BaseException) -> None:
    for answer in waiting:
        if answer.done():
            continue
        if isinstance(outcome, BaseException):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)
