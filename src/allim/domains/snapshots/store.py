"""The tables of snapshots and their queries.

A row's life: requested → generated → announced. Until it is announced, a job of `allim.work` owes the rest. Times are
Unix seconds.
"""

from typing import NamedTuple

from sqlalchemy import (
    Column,
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
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from allim.paging import Page
from allim.storage import metadata

PENDING = "pending"
GENERATED = "generated"

snapshots = Table(
    "allim_snapshots",
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
    UniqueConstraint("account_id", "snapshot_count"),
    Index("ix_allim_snapshots_newest", "account_id", "requested_at", "id"),
)

# The counter is a row of its own: updating it is the lock that keeps two counts of one account apart.
snapshot_counts = Table(
    "allim_snapshots_counts",
    metadata,
    Column("account_id", String(128), primary_key=True),
    Column("generated", Integer, nullable=False),
)


class Snapshot(NamedTuple):
    """A snapshot as it is stored.

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


class AccountGone(Exception):
    """The snapshot's account was deleted, and the snapshot with it."""


_FIELDS = [snapshots.c[name] for name in Snapshot._fields]


async def add(connection: AsyncConnection, snapshot: Snapshot) -> None:
    """Store a request."""
    await connection.execute(insert(snapshots).values(**snapshot._asdict()))


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


async def unannounced(connection: AsyncConnection, snapshot_id: str) -> Snapshot | None:
    """Return the snapshot, if it is there and not announced yet."""
    mine = (snapshots.c.id == snapshot_id) & snapshots.c.announced_at.is_(None)
    row = (await connection.execute(select(*_FIELDS).where(mine))).one_or_none()
    return Snapshot(*row) if row else None


async def finish(
    connection: AsyncConnection, snapshot: Snapshot, content: str, sha256: str, server_id: str, now: float
) -> Snapshot:
    """Turn the pending snapshot into a generated one, with the account's next count.

    Raises: AccountGone; the transaction must then be rolled back, because the count has been taken already.
    """
    count = await _count_up(connection, snapshot.account_id, 1)
    finished = {
        "status": GENERATED,
        "generated_at": now,
        "snapshot_count": count,
        "server_id": server_id,
        "sha256": sha256,
        "content": content,
    }
    pending = (snapshots.c.id == snapshot.id) & (snapshots.c.status == PENDING)
    statement = update(snapshots).where(pending).values(**finished).returning(*_FIELDS)
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise AccountGone
    return Snapshot(*row)


async def mark_announced(connection: AsyncConnection, snapshot_id: str, now: float) -> None:
    """Note that every event of the snapshot has been published."""
    await connection.execute(update(snapshots).where(snapshots.c.id == snapshot_id).values(announced_at=now))


async def _count_up(connection: AsyncConnection, account_id: str, by: int) -> int:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(snapshot_counts).values(account_id=account_id, generated=by)
    statement = statement.on_conflict_do_update(
        index_elements=[snapshot_counts.c.account_id], set_={"generated": snapshot_counts.c.generated + by}
    )
    count: int = (await connection.execute(statement.returning(snapshot_counts.c.generated))).scalar_one()
    return count
