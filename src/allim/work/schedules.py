"""Schedules: cron expressions, in UTC, and the jobs that they enqueue.

The next job of a schedule is enqueued by every replica, under a key made from the expression and the due time, so it
is there once. It is enqueued ahead of its time: if no replica runs then, the first that starts later runs it.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from cronsim import CronSim, CronSimError
from sqlalchemy.ext.asyncio import AsyncConnection

from allim.work import store


@dataclass(frozen=True, slots=True)
class Schedule:
    """Shape: `arguments` is JSON."""

    name: str
    cron: str
    arguments: str

    def __post_init__(self) -> None:
        """Raises: ValueError when the expression is wrong, or names no moment."""
        try:
            self.next_after(0.0)
        except (CronSimError, StopIteration) as error:
            raise ValueError(f"schedule of {self.name}: {self.cron!r} is no cron expression: {error}") from error

    def next_after(self, now: float) -> float:
        """Return the next due time after `now`. Units: Unix seconds."""
        return next(CronSim(self.cron, datetime.fromtimestamp(now, UTC))).timestamp()

    @property
    def key_beginning(self) -> str:
        return f"{store.SCHEDULED}{self.cron}:"


class Schedules:
    """The schedules of this replica.

    Shape: `plan_at` is when the next jobs must be enqueued, `planned_at` when it was done last.
    Units: Unix seconds.
    """

    def __init__(self) -> None:
        self._all: list[Schedule] = []
        self.plan_at = float("inf")
        self.planned_at = float("-inf")

    def add(self, schedule: Schedule) -> None:
        """Raises: ValueError for a second schedule of one job and expression: its jobs would have the same keys."""
        if any((known.name, known.cron) == (schedule.name, schedule.cron) for known in self._all):
            raise ValueError(f"schedule of {schedule.name}: {schedule.cron!r} is there already")
        self._all.append(schedule)
        self.plan_at = 0.0

    def must_plan(self, now: float) -> bool:
        """Return whether it is time to plan. After the clock was stepped back, `plan_at` may be far ahead."""
        return now >= self.plan_at or now < self.planned_at - store.STEP_S

    async def plan(self, connection: AsyncConnection, now: float) -> float:
        """Enqueue the next job of each schedule, and remove those of earlier expressions.

        Returns when to do it again.
        """
        moments = []
        for schedule in self._all:
            due_at = schedule.next_after(now)
            key = f"{schedule.key_beginning}{due_at:.0f}"
            await store.add(connection, store.new_id(), schedule.name, key, schedule.arguments, due_at, now)
            moments.append(due_at)
        for name in {schedule.name for schedule in self._all}:
            present = [schedule.key_beginning for schedule in self._all if schedule.name == name]
            await store.drop_old_schedules(connection, name, present, now)
        return min(moments)
