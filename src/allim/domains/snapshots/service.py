"""The rules of snapshots: who may ask for one, and see which."""

import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from allim.domains.snapshots import store
from allim.domains.snapshots.generation import Profile
from allim.domains.snapshots.store import PENDING, Snapshot
from allim.errors import Conflict, NotFound
from allim.paging import After, Page, one_page
from allim.storage import reading, writing

MAX_OWED = 5  # snapshots of an account that are requested, and not yet generated and announced

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

Enqueue = Callable[[AsyncConnection, str], Awaitable[None]]
"""`Generation.enqueue`: the snapshot is generated if the caller's transaction commits."""


class Listing(NamedTuple):
    """One page of snapshots, and the cursor of the next."""

    items: list[Snapshot]
    next_cursor: str | None


class Service:
    """Accepts requests for snapshots and shows them to their account."""

    def __init__(
        self,
        engine: AsyncEngine,
        profile: Profile,
        enqueue: Enqueue,
        now: Callable[[], float] = time.time,
        refused: Callable[[str], None] = lambda _limit: None,
    ) -> None:
        """Shape: `refused` is told the name of a limit that refused a request."""
        self._engine = engine
        self._profile = profile
        self._enqueue = enqueue
        self._now = now
        self._refused = refused

    async def request(self, account_id: str) -> Snapshot:
        """Accept a request; from here on the snapshot will be generated, whichever replicas die.

        Raises: NotFound for an identity without an account; Conflict while `MAX_OWED` of its snapshots are owed.
        """
        async with writing(self._engine) as connection:
            await store.lock_account(connection, account_id)  # requests at one moment see one another
            if await self._profile(account_id) is None:  # under the lock: the account may be deleted at this moment
                raise NotFound("There is no account for this identity.")
            if await store.owed(connection, account_id) >= MAX_OWED:
                self._refused("snapshots_pending")
                raise Conflict(f"{MAX_OWED} snapshots of this account are pending; wait until one is generated.")
            return await self._add(connection, account_id)

    async def request_in(self, connection: AsyncConnection, account_id: str) -> None:
        """Accept a new account's first request, inside the caller's transaction."""
        await self._add(connection, account_id)

    async def delete_in(self, connection: AsyncConnection, account_id: str) -> None:
        """Delete the account's snapshots inside the caller's transaction; those in work are given up."""
        await store.remove_account(connection, account_id)

    async def snapshot(self, account_id: str, snapshot_id: str) -> Snapshot:
        """One of the account's own.

        Raises: NotFound, the same for one that is not there and for somebody else's.
        """
        snapshot = None
        if _ID.fullmatch(snapshot_id):  # PostgreSQL does not even look for a text with a NUL
            async with reading(self._engine) as connection:
                snapshot = await store.of_account(connection, account_id, snapshot_id)
        if snapshot is None:
            raise NotFound("You have no such snapshot.")
        return snapshot

    async def snapshots(self, account_id: str, page: Page) -> Listing:
        """The account's own, newest first."""
        async with reading(self._engine) as connection:
            found = await store.newest(connection, account_id, page)
        return Listing(*one_page(found, page, lambda snapshot: After(snapshot.requested_at, snapshot.id)))

    async def _add(self, connection: AsyncConnection, account_id: str) -> Snapshot:
        now = self._now()
        snapshot = Snapshot(
            id=secrets.token_urlsafe(16),
            account_id=account_id,
            status=PENDING,
            requested_at=now,
            generated_at=None,
            snapshot_count=None,
            server_id=None,
            sha256=None,
            content=None,
        )
        await store.add(connection, snapshot)
        await self._enqueue(connection, snapshot.id)
        return snapshot
