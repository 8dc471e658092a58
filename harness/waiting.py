"""Waiting for a condition under a deadline, instead of for time to pass."""

import asyncio
import inspect
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

TICK_S = 0.01
PATIENCE_S = 60.0  # for conditions that take a moment on a quiet machine
START_S = 120.0  # for a process that starts or comes back; a test has 300 s


@overload
async def until(condition: Callable[[], Awaitable[T]], timeout_s: float = PATIENCE_S, what: str = "") -> T: ...
@overload
async def until(condition: Callable[[], T], timeout_s: float = PATIENCE_S, what: str = "") -> T: ...
async def until(condition: Callable[[], object], timeout_s: float = PATIENCE_S, what: str = "") -> object:
    """The condition's first truthy value.

    Raises: AssertionError when the deadline passes.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what or condition}"
        await asyncio.sleep(TICK_S)


def until_sync(condition: Callable[[], T], timeout_s: float = PATIENCE_S, what: str = "") -> T:
    """As `until`, for synchronous tests."""
    deadline = time.monotonic() + timeout_s
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what or condition}"
        time.sleep(TICK_S)


def accepts(port: int) -> bool:
    """Return whether a server listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
