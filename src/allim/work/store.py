"""The table of jobs and its statements. The row is the truth about a job.

A row is `open` until its job is `done` or `dead`. While it is open, `due_at` says from when on a replica may take it:
for a waiting job that is its due time or the end of its rest, for a running one the end of its lease, and `owner`
names the claim that runs it. So one condition finds the jobs that wait, and those whose replica died.

All times are Unix seconds of the clock that the replicas share, handed in, so both databases compare the same
numbers. That clock may be stepped back. `written_at` is the moment at which `due_at` was written: if it lies ahead,
the clock was stepped back since, and a lease or a rest would last for as long as the step (`release_stuck`).
"""

import secrets
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Double,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    delete,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from allim.storage import metadata

OPEN, DONE, DEAD = "open", "done", "dead"
SCHEDULED = "schedule:"  # the beginning of the key of a job that a schedule has enqueued
STEP_S = 60.0  # a moment this far ahead was written before the clock was stepped back
KEEP_DONE_S = 86400.0  # the key of a job is known for so long after it is done
KEEP_DEAD_S = 30 * 86400.0
_ERROR_CHARS = 2000

_IS_OPEN = text(f"state = '{OPEN}'")

jobs = Table(
    "allim_work_jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("key", String(255)),
    Column("arguments", Text, nullable=False),
    Column("state", String(8), nullable=False),
    Column("due_at", Double, nullable=False),
    Column("written_at", Double, nullable=False),
    Column("owner", String(300)),
    Column("attempts", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("error", Text),
    Column("ended_at", Double),
    UniqueConstraint("name", "key"),
    Index("ix_allim_work_jobs_due_at", "due_at", sqlite_where=_IS_OPEN, postgresql_where=_IS_OPEN),
    Index("ix_allim_work_jobs_written_at", "written_at", sqlite_where=_IS_OPEN, postgresql_where=_IS_OPEN),
    Index("ix_allim_work_jobs_ended_at", "ended_at"),
)


class Claim(NamedTuple):
    """The right to run a job, as long as its row names `owner`.

    Shape: `attempts` counts this one too; `failures` counts the attempts that failed, and this one until it has ended
    otherwise; `keyed` jobs stay in the table when they are done.
    """

    id: str
    name: str
    arguments: str
    owner: str
    attempts: int
    failures: int
    keyed: bool


class DeadJob(NamedTuple):
    """A job that failed too often. Units: `ended_at` in Unix seconds."""

    id: str
    name: str
    arguments: str
    attempts: int
    error: str
    ended_at: float


def new_id() -> str:
    return secrets.token_urlsafe(16)


async def add(
    connection: AsyncConnection, job_id: str, name: str, key: str | None, arguments: str, due_at: float, now: float
) -> str:
    """Store a job. Returns its ID, or that of the job that has this name and key already."""
    values: dict[str, object] = {"id": job_id, "name": name, "key": key, "arguments": arguments, "state": OPEN}
    values |= {"due_at": due_at, "written_at": now, "attempts": 0, "failures": 0}
    if key is None:
        await connection.execute(insert(jobs).values(**values))
        return job_id
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(jobs).values(**values)
    statement = statement.on_conflict_do_nothing(index_elements=[jobs.c.name, jobs.c.key]).returning(jobs.c.id)
    known = select(jobs.c.id).where(jobs.c.name == name, jobs.c.key == key)
    while True:  # a known job may be removed between the two statements
        found: str | None = await connection.scalar(statement) or await connection.scalar(known)
        if found is not None:
            return found


async def next_due(connection: AsyncConnection, names: Collection[str]) -> float | None:
    """Return when the next of the open jobs with these names may be taken; None when there is none."""
    query = select(jobs.c.due_at).where(jobs.c.state == OPEN, jobs.c.name.in_(names)).order_by(jobs.c.due_at).limit(1)
    found: float | None = await connection.scalar(query)
    return found


async def claim(
    connection: AsyncConnection, names: Collection[str], owner: str, most: int, now: float, lease_until: float
) -> list[Claim]:
    """Take up to `most` due jobs, the one that waits longest first. Jobs that another transaction holds are left."""
    due = (jobs.c.state == OPEN) & jobs.c.name.in_(names) & (jobs.c.due_at <= now)
    some = select(jobs.c.id).where(due).order_by(jobs.c.due_at).limit(most).with_for_update(skip_locked=True)
    found = list(await connection.scalars(some))
    if not found:
        return []
    taken = {"attempts": jobs.c.attempts + 1, "failures": jobs.c.failures + 1}
    statement = (
        update(jobs)
        .where(jobs.c.id.in_(found))
        .values(owner=owner, due_at=lease_until, written_at=now, **taken)
        .returning(jobs.c.id, jobs.c.name, jobs.c.arguments, jobs.c.attempts, jobs.c.failures, jobs.c.key)
    )
    rows = {row.id: row for row in await connection.execute(statement)}
    return [
        Claim(job_id, row.name, row.arguments, owner, row.attempts, row.failures, row.key is not None)
        for job_id in found
        if (row := rows[job_id])
    ]


async def renew(connection: AsyncConnection, claim: Claim, lease_until: float, now: float) -> bool:
    """Keep the claim until then, and the row locked for this transaction. Returns False when the claim is lost."""
    return await _update(connection, claim, due_at=lease_until, written_at=now)


async def complete(connection: AsyncConnection, claim: Claim, now: float) -> bool:
    """End the job as done: remove it, or keep its key. Returns False when the claim is lost."""
    if claim.keyed:
        return await _update(connection, claim, state=DONE, owner=None, error=None, ended_at=now)
    return (await connection.execute(delete(jobs).where(_is_held(claim)))).rowcount == 1


async def bury(connection: AsyncConnection, claim: Claim, error: str, now: float) -> bool:
    """End the job as dead. Returns False when the claim is lost."""
    return await _update(connection, claim, state=DEAD, owner=None, error=_storable(error), ended_at=now)


async def release(
    connection: AsyncConnection,
    claim: Claim,
    due_at: float,
    now: float,
    *,
    attempts: int,
    failures: int,
    error: str | None = None,
) -> bool:
    """Give the claim up: any replica may take the job from `due_at` on. Returns False when the claim is lost."""
    values: dict[str, Any] = {"attempts": attempts, "failures": failures}
    if error is not None:
        values["error"] = _storable(error)
    return await _update(connection, claim, owner=None, due_at=due_at, written_at=now, **values)


async def has_stuck(connection: AsyncConnection, now: float) -> bool:
    """Return whether a lease or a rest was written before the clock was stepped back."""
    return await connection.scalar(select(jobs.c.id).where(_is_stuck(now)).limit(1)) is not None


async def release_stuck(connection: AsyncConnection, now: float) -> None:
    """Make the jobs due whose lease or rest was written before the clock was stepped back."""
    await connection.execute(update(jobs).where(_is_stuck(now)).values(due_at=now, written_at=now))


async def drop_old_schedules(
    connection: AsyncConnection, name: str, key_beginnings: Sequence[str], now: float
) -> None:
    """Remove the future jobs that an earlier schedule of this name has enqueued."""
    scheduled = jobs.c.key.startswith(SCHEDULED, autoescape=True)
    present = or_(*(jobs.c.key.startswith(beginning, autoescape=True) for beginning in key_beginnings))
    future = (jobs.c.state == OPEN) & (jobs.c.attempts == 0) & (jobs.c.due_at > now)
    await connection.execute(delete(jobs).where(jobs.c.name == name, scheduled, ~present, future))


async def forget(connection: AsyncConnection, now: float) -> None:
    """Remove done and dead jobs that have been kept long enough."""
    old_done = and_(jobs.c.state == DONE, jobs.c.ended_at < now - KEEP_DONE_S)
    old_dead = and_(jobs.c.state == DEAD, jobs.c.ended_at < now - KEEP_DEAD_S)
    await connection.execute(delete(jobs).where(or_(old_done, old_dead)))


async def dead(connection: AsyncConnection, limit: int) -> list[DeadJob]:
    """Return the newest dead jobs."""
    fields = [jobs.c[name] for name in DeadJob._fields]
    query = select(*fields).where(jobs.c.state == DEAD).order_by(jobs.c.ended_at.desc()).limit(limit)
    return [DeadJob(*row) for row in await connection.execute(query)]


async def retry(connection: AsyncConnection, job_ids: Collection[str] | None) -> int:
    """Open dead jobs again, all of them if `job_ids` is None. They are due since they ended. Returns their number."""
    chosen = jobs.c.state == DEAD
    if job_ids is not None:
        chosen &= jobs.c.id.in_(job_ids)
    ended_at = jobs.c.ended_at
    opened = {"state": OPEN, "due_at": ended_at, "written_at": ended_at, "attempts": 0, "failures": 0}
    return (await connection.execute(update(jobs).where(chosen).values(**opened, ended_at=None))).rowcount


def _storable(error: str) -> str:
    """Return the beginning of an error's text, without what a database refuses: NUL and lone surrogates."""
    return error[:_ERROR_CHARS].encode(errors="backslashreplace").decode().replace("\0", "\\0")[:_ERROR_CHARS]


def _is_held(claim: Claim) -> ColumnElement[bool]:
    return (jobs.c.id == claim.id) & (jobs.c.owner == claim.owner) & (jobs.c.state == OPEN)


def _is_stuck(now: float) -> ColumnElement[bool]:
    """A job with a due time of its own that was not tried yet is not stuck: it waits for that time by the clock."""
    by_itself = or_(jobs.c.attempts > 0, jobs.c.due_at <= jobs.c.written_at)
    return (jobs.c.state == OPEN) & (jobs.c.written_at > now + STEP_S) & by_itself


async def _update(connection: AsyncConnection, claim: Claim, **values: Any) -> bool:
    return (await connection.execute(update(jobs).where(_is_held(claim)).values(**values))).rowcount == 1
