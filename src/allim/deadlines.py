"""Ends what takes too long, with one timer for many: a timer for each costs as much as most of what is timed.

All that is timed together has the same time, so the first to come is the first to be late.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple


class Deadlines:
    """Ends futures that are not done in time. Units: seconds, from when each is set."""

    def __init__(self, seconds: float, error: Callable[[], Exception] = TimeoutError) -> None:
        self._seconds = seconds
        self._error = error
        self._pending: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def set(self, future: "asyncio.Future[Any]") -> None:
        """Give the future the error when its time is over."""
        pending, loop = self._pending, future.get_loop()
        while pending and pending[0][1].done():
            pending.popleft()
        at = loop.time() + self._seconds
        pending.append((at, future))
        if self._timer is None:
            self._timer = loop.call_at(at, self._ring, at)

    def clear(self) -> None:
        """Forget them all."""
        self._pending.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self, at: float) -> None:
        self._timer, pending = None, self._pending
        while pending:
            until, future = pending[0]
            if not future.done():
                if until > at:
                    self._timer = future.get_loop().call_at(until, self._ring, until)
                    return
                future.set_exception(self._error())
            pending.popleft()


class TimeLimit:
    """Ends what takes longer than so many seconds: `with limit:` around what a task awaits, for many tasks at a time.

    A late task is cancelled where it waits, and leaves the block with TimeoutError.
    Units: seconds. Source: asyncio.timeout, and what it does for who is cancelled from elsewhere as well.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._within: dict[asyncio.Task[Any], _Stay] = {}  # who is in time, the first to be late first
        self._late: dict[asyncio.Task[Any], _Stay] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        assert task not in self._within
        until = loop.time() + self._seconds
        self._within[task] = _Stay(until, task.cancelling())
        if self._timer is None:
            self._timer = loop.call_at(until, self._ring, until)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._within.pop(task, None) is None:
            others = self._late.pop(task).cancelled
            if task.uncancel() <= others and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _ring(self, at: float) -> None:
        self._timer = None
        for task, stay in list(self._within.items()):
            if stay.until > at:
                self._timer = asyncio.get_running_loop().call_at(stay.until, self._ring, stay.until)
                return
            self._late[task] = self._within.pop(task)
            task.cancel()


class _Stay(NamedTuple):
    """A task's time in a block. Shape: `cancelled` is how often it was when it came."""

    until: float
    cancelled: int
