"""The tables of snapshots and their queries. The row is the truth about who works on what.

A row's life: requested → claimed (and renewed) → generated → announced. Until it is announced somebody owes
work on it: `sweep_at` says when to look for somebody, `next_attempt_at` when an attempt may begin, `owner` and
`lease_until` who is at it. All times are Unix seconds of the one clock that the replicas share, handed in, so both
databases compare the same numbers. That clock may be stepped back: a moment further ahead than any that is written
here counts as past, or the work would rest for as long as the step.
"""

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
    delete,
    func,
    insert,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from allim.http.paging import Page
from allim.storage import metadata

LONGEST_S = 120.0  # how far ahead of the present a moment that is written here can be at most, with room to spare

PENDING = "pending"
GENERATED = "generated"

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("account_id", String(128), nullable=False),
    Column("status", String(16), nullable=False),
    Column("requested_at", Double, nullable=False),
    Column("generated_at", Double),
    Column("snapshot_count", Integer),
    Column("server_id", String(255)),
    Column("sha256", String(64)),
    Column("content", Text),
    Column("announced_at", Double),
    Column("owner", String(300)),
    Column("lease_until", Double),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", Double, nullable=False),
    Column("sweep_at", Double, nullable=False),
    UniqueConstraint("account_id", "snapshot_count"),
    Index("ix_snapshots_newest", "account_id", "requested_at", "id"),
    Index(
        "ix_snapshots_unannounced",
        "sweep_at",
        sqlite_where=text("announced_at IS NULL"),
        postgresql_where=text("announced_at IS NULL"),
    ),
)

# The counter is a row of its own: updating it is the lock that keeps two counts of one account apart.
snapshot_counts = Table(
    "snapshot_counts",
    metadata,
    Column("account_id", String(128), primary_key=True),
    Column("generated", Integer, nullable=False),
)


class Snapshot(NamedTuple):
    """What the room knows of a snapshot.

    Units: times in Unix seconds.
    """

    id: str
    account_id: str
    status: str
    requested_at: float
    generated_at: float | None
    snapshot_count: int | None
    server_id: str | None
    sha256: str | None
    content: str | None
    attempts: int


class Claim(NamedTuple):
    """The right to work on a snapshot, as long as the row still names `owner`."""

    owner: str
    snapshot: Snapshot


class LeaseLost(Exception):
    """Another replica works on the snapshot by now, or it was deleted; leave it."""


class AccountGone(Exception):
    """The snapshot's account was deleted, and the snapshot with it."""


_FIELDS = [snapshots.c[name] for name in Snapshot._fields]


async def add(connection: AsyncConnection, snapshot: Snapshot, sweep_at: float) -> None:
    """Store a request."""
    waiting = {"next_attempt_at": snapshot.requested_at, "sweep_at": sweep_at}
    await connection.execute(insert(snapshots).values(**snapshot._asdict(), **waiting))


async def lock_account(connection: AsyncConnection, account_id: str) -> None:
    """Keep every other transaction that counts, or requests, this account's snapshots waiting until this one ends."""
    await _count_up(connection, account_id, 0)


async def owed(connection: AsyncConnection, account_id: str) -> int:
    """Return the number of the account's snapshots that are not generated and announced yet."""
    mine = (snapshots.c.account_id == account_id) & snapshots.c.announced_at.is_(None)
    return await connection.scalar(select(func.count()).select_from(snapshots).where(mine)) or 0


async def drop_oldest(connection: AsyncConnection, account_id: str, upto_count: int) -> None:
    """Forget the account's announced snapshots up to this count."""
    old = (snapshots.c.account_id == account_id) & (snapshots.c.snapshot_count <= upto_count)
    await connection.execute(delete(snapshots).where(old, snapshots.c.announced_at.is_not(None)))


async def remove_account(connection: AsyncConnection, account_id: str) -> None:
    """Delete all of the account's snapshots. Whoever works on one finds its lease lost."""
    await lock_account(connection, account_id)
    await connection.execute(delete(snapshots).where(snapshots.c.account_id == account_id))
    await connection.execute(delete(snapshot_counts).where(snapshot_counts.c.account_id == account_id))


async def of_account(connection: AsyncConnection, account_id: str, snapshot_id: str) -> Snapshot | None:
    """One snapshot, if it is this account's."""
    mine = (snapshots.c.id == snapshot_id) & (snapshots.c.account_id == account_id)
    row = (await connection.execute(select(*_FIELDS).where(mine))).one_or_none()
    return Snapshot(*row) if row else None


async def newest(connection: AsyncConnection, account_id: str, page: Page) -> list[Snapshot]:
    """The account's snapshots on `page`, newest first, and one more if there is one. Without content."""
    order = tuple_(snapshots.c.requested_at, snapshots.c.id)
    fields = [field if field is not snapshots.c.content else text("NULL AS content") for field in _FIELDS]
    query = select(*fields).where(snapshots.c.account_id == account_id)
    if page.after is not None:
        query = query.where(order < tuple_(page.after.time, page.after.id))
    query = query.order_by(snapshots.c.requested_at.desc(), snapshots.c.id.desc()).limit(page.limit + 1)
    return [Snapshot(*row) for row in await connection.execute(query)]


async def generated_count(connection: AsyncConnection, account_id: str) -> int:
    """How many snapshots of the account have been generated."""
    query = select(snapshot_counts.c.generated).where(snapshot_counts.c.account_id == account_id)
    return await connection.scalar(query) or 0


async def claim(
    connection: AsyncConnection, snapshot_id: str, owner: str, now: float, lease_until: float
) -> Claim | None:
    """Take the snapshot, unless it is finished, somebody else's, or resting after a failure."""
    free = or_(snapshots.c.lease_until.is_(None), _is_past(snapshots.c.lease_until, now))
    statement = (
        update(snapshots)
        .where(_unannounced(snapshot_id), free, _is_past(snapshots.c.next_attempt_at, now))
        .values(
            owner=owner,
            lease_until=lease_until,
            sweep_at=lease_until,
            attempts=snapshots.c.attempts + 1,
        )
        .returning(*_FIELDS)
    )
    row = (await connection.execute(statement)).one_or_none()
    return Claim(owner, Snapshot(*row)) if row else None


async def renew(connection: AsyncConnection, claim: Claim, lease_until: float) -> bool:
    """Keep the claim until then; False when it is lost."""
    return await _update_claimed(connection, claim, lease_until=lease_until, sweep_at=lease_until)


async def release(connection: AsyncConnection, claim: Claim, next_attempt_at: float) -> bool:
    """Give the claim up; anybody may try from `next_attempt_at` on."""
    return await _update_claimed(
        connection,
        claim,
        owner=None,
        lease_until=None,
        next_attempt_at=next_attempt_at,
        sweep_at=next_attempt_at,
    )


async def finish(
    connection: AsyncConnection, claim: Claim, content: str, sha256: str, server_id: str, now: float
) -> Snapshot:
    """Turn the pending snapshot into a generated one, with the account's next count.

    Raises: LeaseLost; the transaction must then be rolled back, for the count has been taken already.
    """
    count = await _count_up(connection, claim.snapshot.account_id, 1)
    finished = {
        "status": GENERATED,
        "generated_at": now,
        "snapshot_count": count,
        "server_id": server_id,
        "sha256": sha256,
        "content": content,
    }
    mine = _unannounced(claim.snapshot.id) & (snapshots.c.owner == claim.owner)
    statement = update(snapshots).where(mine, snapshots.c.status == PENDING).values(**finished)
    row = (await connection.execute(statement.returning(*_FIELDS))).one_or_none()
    if row is None:
        raise LeaseLost
    return Snapshot(*row)


async def mark_announced(connection: AsyncConnection, snapshot_id: str, now: float) -> None:
    """Nobody owes work on it any more. Not fenced: whoever published it, it is published."""
    done = {"announced_at": now, "owner": None, "lease_until": None}
    await connection.execute(update(snapshots).where(_unannounced(snapshot_id)).values(**done))


async def take_unattended(connection: AsyncConnection, now: float, look_again_at: float) -> list[str]:
    """Ids of snapshots that nobody works on, each given to only one of the replicas that ask at once."""
    due = (snapshots.c.announced_at.is_(None)) & _is_past(snapshots.c.sweep_at, now)
    some = select(snapshots.c.id).where(due).order_by(snapshots.c.sweep_at).limit(100)
    statement = update(snapshots).where(snapshots.c.id.in_(some), due).values(sweep_at=look_again_at)
    return list(await connection.scalars(statement.returning(snapshots.c.id)))


def _is_past(moment: Column[float], now: float) -> ColumnElement[bool]:
    return or_(moment <= now, moment > now + LONGEST_S)


def _unannounced(snapshot_id: str) -> ColumnElement[bool]:
    return (snapshots.c.id == snapshot_id) & snapshots.c.announced_at.is_(None)


async def _update_claimed(connection: AsyncConnection, claim: Claim, **values: Any) -> bool:
    mine = _unannounced(claim.snapshot.id) & (snapshots.c.owner == claim.owner)
    return (await connection.execute(update(snapshots).where(mine).values(**values))).rowcount == 1


async def _count_up(connection: AsyncConnection, account_id: str, by: int) -> int:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(snapshot_counts).values(account_id=account_id, generated=by)
    statement = statement.on_conflict_do_update(
        index_elements=[snapshot_counts.c.account_id], set_={"generated": snapshot_counts.c.generated + by}
    )
    count: int = (await connection.execute(statement.returning(snapshot_counts.c.generated))).scalar_one()
    return count
