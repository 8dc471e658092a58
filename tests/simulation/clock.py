"""Time that nobody waits for: an event loop whose clock stands still until nothing is left to do, then goes on to the
next timer; and machines whose own clocks show another time.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any
from unittest.mock import patch

EPOCH_S = 1_700_000_000.0  # the wall clock when a schedule begins
LOOK_S = 2e-6  # what a look at a clock costs: code that waits for time to pass gets on
MAX_IDLE_TURNS = 200_000  # turns of the loop in which time does not go on


class Stuck(Exception):
    """The loop turns for ever, or has nothing to do and no timer."""


class Overrun(Exception):
    """The schedule does more than any may do."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without a selector. Whoever connects from it gets what `connect` makes.

    Units: `time()` in virtual seconds from the beginning; `max_turns` turns of the loop.
    """

    def __init__(self, max_turns: int) -> None:
        super().__init__()
        self.now = 0.0
        self.turns = 0
        self.max_turns = max_turns
        self._idle_turns = 0
        self._selector = self  # asked by BaseEventLoop for what has come
        self._clock_resolution = 1e-9
        self.connect: Callable[..., Any] | None = None

    def time(self) -> float:
        return self.now

    def look(self) -> float:
        """The time, for who measures how long something takes: looking costs some."""
        self.now += LOOK_S
        return self.now

    def select(self, timeout: float | None) -> list[Any]:
        """Go on to the next timer when nothing is ready."""
        self.turns += 1
        if timeout is None:
            raise Stuck("nothing is ready and nothing will be")
        if timeout > 0:
            self.now += timeout
            self._idle_turns = 0
        self._idle_turns += 1
        if self._idle_turns > MAX_IDLE_TURNS:
            raise Stuck(f"{MAX_IDLE_TURNS} turns of the loop without any time passing")
        if self.turns > self.max_turns:
            raise Overrun(f"more than {self.max_turns} turns of the loop by {self.now:.1f} s")
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """Nothing comes from outside."""

    def _write_to_self(self) -> None:
        """Nobody calls from another thread."""

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        assert self.connect is not None
        return await self.connect(protocol_factory, host, port)


class Machine:
    """A computer with a clock of its own, and what runs on it.

    Units: `skew_s` seconds that its wall clock is ahead.
    """

    def __init__(self, loop: VirtualLoop, name: str, skew_s: float = 0.0) -> None:
        self.loop = loop
        self.name = name
        self.skew_s = skew_s
        self.dead = False
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.context: Context = copy_context()
        self.context.run(_here.set, self)

    def wall_s(self) -> float:
        return EPOCH_S + self.loop.now + self.skew_s

    def run(self, coroutine: Any) -> "asyncio.Task[Any]":
        """Start something here."""
        return self.loop.create_task(coroutine, context=self.context.copy())

    def kill(self) -> None:
        """End whatever runs here. What of it goes on for a while reaches nobody."""
        self.dead = True
        for task in list(self.tasks):
            task.cancel()


_here: ContextVar[Machine] = ContextVar("machine")


def here() -> Machine | None:
    """The machine that the running code runs on."""
    return _here.get(None)


def note_tasks(loop: VirtualLoop) -> None:
    """Have each machine know its tasks."""

    def make(loop: Any, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
        machine = (options.get("context") or copy_context()).get(_here)
        if machine is not None:
            machine.tasks[task] = None
            task.add_done_callback(lambda done: machine.tasks.pop(done, None))
        return task

    loop.set_task_factory(make)


@contextmanager
def virtual_time(loop: VirtualLoop) -> Iterator[None]:
    """Let everybody in this process read the loop's clock, and who runs on a machine that machine's."""

    def wall_s() -> float:
        loop.now += LOOK_S
        machine = _here.get(None)
        return machine.wall_s() if machine is not None else EPOCH_S + loop.now

    with (
        patch.object(time, "time", wall_s),
        patch.object(time, "time_ns", lambda: round(wall_s() * 1e9)),
        patch.object(time, "monotonic", loop.look),
        patch.object(time, "perf_counter", loop.look),
    ):
        yield
