"""A watch on Redis' memory: metrics, and an alarm in the log before Redis is full."""

import asyncio
from collections.abc import Callable

import structlog

from allim.brokers.redis.scripts import Script, ScriptCalls
from allim.brokers.redis.server import info_fields
from allim.errors import Unavailable

log = structlog.get_logger(__name__)

EVERY_S = 15.0
WARN_SHARE, ERROR_SHARE = 0.75, 0.9  # of `maxmemory`
CALM_SHARE = 0.05  # below a level's share, the level is left: around it there would be an alarm for each look

Report = Callable[[int, int], None]
"""Takes the bytes that Redis uses, and its limit; 0 for no limit."""


class MemoryWatch:
    """Looks every `EVERY_S` from `start` on."""

    def __init__(self, calls: ScriptCalls, report: Report) -> None:
        self._calls = calls
        self._report = report
        self._script = Script("memory")
        self._level = 0
        self.max_bytes = 0  # that Redis may use; 0 for no limit, and before the first look
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._look_on(), name="allim redis memory")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _look_on(self) -> None:
        while True:
            try:
                await self.look()
            except (Unavailable, ValueError, KeyError) as error:
                log.warning("redis does not say how full it is", error=str(error) or type(error).__name__)
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Raises: Unavailable; ValueError or KeyError when the answer of Redis lacks a field."""
        info = info_fields(await self._calls.call(self._script, [], []))
        used, most = int(info["used_memory"]), int(info["maxmemory"])
        self.max_bytes = most
        self._report(used, most)
        level = level_of(used / most if most else 0.0, self._level)
        if level != self._level:
            self._level = level
            _tell(level, used, most)


def level_of(share: float, before: int) -> int:
    """Return 0 while there is memory left, 1 from `WARN_SHARE` on, 2 from `ERROR_SHARE` on. `before` is the last
    level.
    """
    levels = enumerate((WARN_SHARE, ERROR_SHARE), start=1)
    return sum(share >= least - (CALM_SHARE if level <= before else 0.0) for level, least in levels)


def _tell(level: int, used: int, most: int) -> None:
    tell = (log.info, log.warning, log.error)[level]
    event = ("redis has room again", "redis is getting full", "redis is nearly full")[level]
    tell(event, used_mb=round(used / 1e6), max_mb=round(most / 1e6), percent=round(100 * used / most) if most else 0)
