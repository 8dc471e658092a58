"""The rules of publish keys. The caller has made sure that an operator asks."""

import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from allim.access.publishers import Publisher, digest_of, new_secret
from allim.domains.keys import store
from allim.domains.keys.store import PublishKey
from allim.errors import Conflict, NotFound
from allim.paging import After, Page, one_page
from allim.storage import reading, writing

log = structlog.get_logger(__name__)

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Issued(NamedTuple):
    """A new key and its secret, which is known here and now only."""

    key: PublishKey
    secret: str


class Listing(NamedTuple):
    """One page of keys, and the cursor of the next."""

    items: list[PublishKey]
    next_cursor: str | None


class Service:
    """Makes, shows, rotates and deletes publish keys, and tells whose a key is."""

    def __init__(self, engine: AsyncEngine, now: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._now = now

    async def create(self, name: str, topics: Sequence[str], types: Sequence[str], operator: str) -> Issued:
        """A new key. Its name may be that of others: they are then keys of one publisher."""
        async with writing(self._engine) as connection:
            issued = await self._issue(connection, name, tuple(topics), tuple(types), operator)
        log.info("publish key created", key=issued.key.id, publisher=name, operator=operator)
        return issued

    async def rotate(self, key_id: str, grace_s: float, operator: str) -> Issued:
        """A successor with the same name and grants; the key itself is good for `grace_s` more.

        Raises: NotFound; Conflict for a key that has a successor already, also when it gets it at this moment.
        """
        _check_id(key_id)
        async with writing(self._engine) as connection:
            old = await store.expire(connection, key_id, self._now() + grace_s)
            if old is None:
                raise _not_rotated(await store.by_id(connection, key_id))
            issued = await self._issue(connection, old.name, old.topics, old.types, operator)
        log.info(
            "publish key rotated",
            key=key_id,
            successor=issued.key.id,
            publisher=old.name,
            operator=operator,
            grace_s=grace_s,
        )
        return issued

    async def delete(self, key_id: str, operator: str) -> None:
        """The key is gone from the store; replicas go by what they heard of it before a little longer.

        Raises: NotFound.
        """
        _check_id(key_id)
        async with writing(self._engine) as connection:
            key = await store.remove(connection, key_id)
        if key is None:
            raise _unknown()
        log.info("publish key deleted", key=key_id, publisher=key.name, operator=operator)

    async def delete_in(self, connection: AsyncConnection, operator: str) -> None:
        """Delete the keys that this operator made, inside the caller's transaction."""
        for key in await store.remove_made_by(connection, operator):
            log.info("publish key deleted", key=key.id, publisher=key.name, operator=operator)

    async def key(self, key_id: str) -> PublishKey:
        """One key, also one that has expired.

        Raises: NotFound.
        """
        _check_id(key_id)
        async with reading(self._engine) as connection:
            key = await store.by_id(connection, key_id)
        if key is None:
            raise _unknown()
        return key

    async def keys(self, page: Page) -> Listing:
        """All keys, newest first."""
        async with reading(self._engine) as connection:
            found = await store.newest(connection, page)
        return Listing(*one_page(found, page, lambda key: After(key.created_at, key.id)))

    async def publisher(self, digest: bytes) -> Publisher | None:
        """Who holds the key with this digest; None when it is unknown, deleted or expired."""
        async with reading(self._engine) as connection:
            key = await store.usable(connection, digest, self._now())
        return Publisher(key.name, key.topics, key.types) if key else None

    async def _issue(
        self,
        connection: AsyncConnection,
        name: str,
        topics: tuple[str, ...],
        types: tuple[str, ...],
        operator: str,
    ) -> Issued:
        key = PublishKey(
            id=secrets.token_urlsafe(16),
            name=name,
            topics=topics,
            types=types,
            created_at=self._now(),
            created_by=operator[:128],  # an account's id is shorter; the subjects of other issuers have no account
            expires_at=None,
        )
        secret = new_secret()
        await store.add(connection, key, digest_of(secret.encode()))
        return Issued(key, secret)


def _check_id(key_id: str) -> None:
    if not _ID.fullmatch(key_id):  # PostgreSQL does not even look for a text with a NUL
        raise _unknown()


def _unknown() -> NotFound:
    return NotFound("There is no such publish key.")


def _not_rotated(key: PublishKey | None) -> NotFound | Conflict:
    return Conflict("The key has a successor already; rotate that one.") if key else _unknown()
