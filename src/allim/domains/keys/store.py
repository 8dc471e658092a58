"""The table of publish keys and its queries. A key's secret is not in it, only the secret's digest.

A key without `expires_at` is the newest of its line: rotation gives it a successor and an end, once. All times are
Unix seconds of the replicas' own clocks, handed in.
"""

import json
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    CursorResult,
    Double,
    Index,
    Row,
    String,
    Table,
    Text,
    delete,
    insert,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from allim.paging import Page
from allim.storage import metadata

publish_keys = Table(
    "allim_keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("topics", Text, nullable=False),
    Column("types", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("created_by", String(128), nullable=False),
    Column("expires_at", Double),
    Index("ix_allim_keys_newest", "created_at", "id"),
)


class PublishKey(NamedTuple):
    """What is known of a key, without its digest.

    Shape: `topics` and `types` are grants; `created_by` is the operator's subject.
    Units: times in Unix seconds; `expires_at` is None for a key that does not expire.
    """

    id: str
    name: str
    topics: tuple[str, ...]
    types: tuple[str, ...]
    created_at: float
    created_by: str
    expires_at: float | None


_FIELDS = [publish_keys.c[name] for name in PublishKey._fields]


async def add(connection: AsyncConnection, key: PublishKey, digest: bytes) -> None:
    """Store a new key."""
    grants = {"topics": json.dumps(key.topics), "types": json.dumps(key.types)}
    await connection.execute(insert(publish_keys).values(**{**key._asdict(), **grants}, digest=digest.hex()))


async def by_id(connection: AsyncConnection, key_id: str) -> PublishKey | None:
    """The key with this id, also one that has expired."""
    return _one(await connection.execute(select(*_FIELDS).where(publish_keys.c.id == key_id)))


async def usable(connection: AsyncConnection, digest: bytes, now: float) -> PublishKey | None:
    """The key with this digest, unless it has expired."""
    unexpired = or_(publish_keys.c.expires_at.is_(None), publish_keys.c.expires_at > now)
    return _one(await connection.execute(select(*_FIELDS).where(publish_keys.c.digest == digest.hex(), unexpired)))


async def newest(connection: AsyncConnection, page: Page) -> list[PublishKey]:
    """The keys on `page`, newest first, and one more if there is one."""
    query = select(*_FIELDS)
    if page.after is not None:
        order = tuple_(publish_keys.c.created_at, publish_keys.c.id)
        query = query.where(order < tuple_(page.after.time, page.after.id))
    query = query.order_by(publish_keys.c.created_at.desc(), publish_keys.c.id.desc()).limit(page.limit + 1)
    return [_key(row) for row in await connection.execute(query)]


async def expire(connection: AsyncConnection, key_id: str, expires_at: float) -> PublishKey | None:
    """Give the key an end; None when there is no such key, or it has an end already."""
    endless = (publish_keys.c.id == key_id) & publish_keys.c.expires_at.is_(None)
    statement = update(publish_keys).where(endless).values(expires_at=expires_at)
    return _one(await connection.execute(statement.returning(*_FIELDS)))


async def remove(connection: AsyncConnection, key_id: str) -> PublishKey | None:
    """Delete the key; None when there is no such key."""
    statement = delete(publish_keys).where(publish_keys.c.id == key_id)
    return _one(await connection.execute(statement.returning(*_FIELDS)))


async def remove_made_by(connection: AsyncConnection, operator: str) -> list[PublishKey]:
    """Delete the keys that this operator made; gives them."""
    statement = delete(publish_keys).where(publish_keys.c.created_by == operator)
    return [_key(row) for row in await connection.execute(statement.returning(*_FIELDS))]


def _one(result: CursorResult[Any]) -> PublishKey | None:
    row = result.one_or_none()
    return _key(row) if row else None


def _key(row: Row[Any]) -> PublishKey:
    fields = row._asdict()
    grants = {name: tuple(json.loads(fields[name])) for name in ("topics", "types")}
    return PublishKey(**{**fields, **grants})
