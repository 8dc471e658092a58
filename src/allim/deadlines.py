"""Timeouts with one timer for many: a timer for each call costs as much as most of the calls themselves.

All calls of one object have the same timeout, so they expire in the order in which they began.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple


class Deadlines:
    """Sets an error on futures that are not done in time. Units: seconds, from the call of `set`."""

    def __init__(self, seconds: float, error: Callable[[], Exception] = TimeoutError) -> None:
        self._seconds = seconds
        self._error = error
        self._pending: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def set(self, future: "asyncio.Future[Any]") -> None:
        """Set the error on the future when its time is over."""
        pending, loop = self._pending, future.get_loop()
        while pending and pending[0][1].done():
            pending.popleft()
        at = loop.time() + self._seconds
        pending.append((at, future))
        if self._timer is None:
            self._timer = loop.call_at(at, self._ring, at)

    def clear(self) -> None:
        """Remove all futures."""
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
    """A timeout for blocks of many tasks with one timer: `with limit:` around the awaits of a task.

    A late task is cancelled where it waits, and leaves the block with TimeoutError.
    Units: seconds. Source: asyncio.timeout, also for its handling of a cancellation from outside.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._within: dict[asyncio.Task[Any], _Stay] = {}  # in the order of their deadlines
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
    """A task in a block. Shape: `cancelled` is the number of its pending cancellations when it entered."""

    until: float
    cancelled: int
