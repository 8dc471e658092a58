"""The rules of accounts."""

import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import NamedTuple, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from allim.domains.accounts import store
from allim.domains.accounts.models import AccountView, NewAccount, normal_email, view
from allim.domains.accounts.passwords import Passwords
from allim.domains.accounts.providers import Person
from allim.domains.accounts.store import Account
from allim.errors import Conflict, NotFound, Unauthenticated
from allim.http.tokens import Tokens
from allim.identity import OPERATOR, USER, Identity
from allim.storage import reading, writing

EndSession = Callable[[Identity], Awaitable[None]]
"""Ends the identity's session, and its streams on every replica."""

ExtendSession = Callable[[Identity, float], Awaitable[None]]
"""Lets the live streams of the identity's session go on until then (Unix seconds)."""

Turn = Callable[[], AbstractAsyncContextManager[None]]
"""Stands around the hashing of a password and waits for the caller's turn. If it raises, nothing is hashed."""


LastKick = Callable[[str], Awaitable[float | None]]
"""The moment of the user's last kick; 0 when there was none, None when it cannot be known now."""


class FirstSnapshot(Protocol):
    """What a new account wants from the room of snapshots."""

    async def request_in(self, connection: AsyncConnection, account_id: str) -> str:
        """Store the request in the account's own transaction; the snapshot's id."""

    @property
    def start(self) -> Callable[[str], Awaitable[None]]:
        """After the commit: have it generated soon. Never raises, for it will be found anyway."""


class Session(NamedTuple):
    """Somebody who has just signed in."""

    account: AccountView
    token: str


class Renewal(NamedTuple):
    """A session's new token.

    Units: `expires_at` in Unix seconds.
    """

    token: str
    expires_at: float


class Service:
    """Registers accounts, signs them in and out."""

    def __init__(
        self,
        engine: AsyncEngine,
        tokens: Tokens,
        passwords: Passwords,
        snapshots: FirstSnapshot,
        end_session: EndSession,
        extend_session: ExtendSession,
        last_kick: LastKick,
        operators: Collection[str] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._tokens = tokens
        self._passwords = passwords
        self._snapshots = snapshots
        self._end_session = end_session
        self._extend_session = extend_session
        self._last_kick = last_kick
        self._operators = frozenset(operators)
        self._now = now

    async def register(self, new: NewAccount, turn: Turn = nullcontext) -> Session:
        """Store the account and the request for its first snapshot, both or neither, and sign in.

        Raises: Conflict naming `email`; the errors of `turn`.
        """
        async with turn():
            async with reading(self._engine) as connection:
                if await store.by_email(connection, new.email):  # hashing is dear; most repeats end here
                    raise store.email_taken()
            password_hash = await self._passwords.hash(new.password)
        account = Account(
            id=secrets.token_urlsafe(16),
            email=new.email,
            name=new.name,
            password_hash=password_hash,
            created_at=self._now(),
        )
        await self._open(account)
        return await self._session(account)

    async def sign_in(self, email: str, password: str, turn: Turn = nullcontext) -> Session:
        """A new session.

        Raises: Unauthenticated, in the same words and after the same work whether the address is unknown or
        the password is wrong; the errors of `turn`.
        """
        async with turn():  # also around the look-up: a flood is not to reach the database either
            account = await self._find(email)
            password_hash = account.password_hash if account else None
            verified = await self._passwords.verify(password_hash, password)
            if account is None or password_hash is None or not verified:
                raise Unauthenticated("The email or the password is wrong.")
            if self._passwords.is_outdated(password_hash):
                await self._rehash(account, password)
        return await self._session(account)

    async def sign_in_as(self, person: Person) -> Session:
        """A new session of the account that this person signs in to. The first time makes it, as `register` does.

        Raises: Conflict naming `email` when the address belongs to another account. The two are not joined: to
        have an address at a provider does not prove to be the one who registered it here.
        """
        account = await self._known(person) or await self._welcome(person)
        return await self._session(account)

    async def sign_out(self, identity: Identity) -> None:
        """End the session, and its streams on every replica.

        Raises: Unavailable.
        """
        await self._end_session(identity)

    async def renew(self, token: str, check: Callable[[], Awaitable[object]]) -> Renewal:
        """A new token of the same session; its live streams go on, on every replica.

        Shape: `check` raises when the session of the old token was ended. It is asked after the last kick was looked
        up: a kick from before that moment ends the old token, and one from after it ends the new token too.
        Raises: Unauthenticated when the session has lasted as long as it may; Invalid for a token of another issuer;
        Unavailable; what `check` raises.
        """
        after_kick = await self._last_kick(self._tokens.may_renew(token).subject)
        renewed = self._tokens.renew(token, after_kick)
        await check()
        identity = await self._tokens.verify(renewed)
        await self._extend_session(identity, identity.expires_at)
        return Renewal(renewed, identity.expires_at)

    async def account(self, account_id: str) -> AccountView:
        """One's own account.

        Raises: NotFound for an identity without one; services may sign tokens for such.
        """
        async with reading(self._engine) as connection:
            account = await store.by_id(connection, account_id)
        if account is None:
            raise NotFound("There is no account for this identity.")
        return view(account)

    async def _find(self, email: str) -> Account | None:
        try:
            normal = normal_email(email)
        except ValueError:
            return None
        async with reading(self._engine) as connection:
            return await store.by_email(connection, normal)

    async def _known(self, person: Person) -> Account | None:
        async with reading(self._engine) as connection:
            return await store.by_identity(connection, person.issuer, person.subject)

    async def _welcome(self, person: Person) -> Account:
        account = Account(
            id=secrets.token_urlsafe(16),
            email=person.email,
            name=person.name,
            password_hash=None,
            created_at=self._now(),
        )
        try:
            await self._open(account, person)
        except Conflict:
            # Either the address is somebody else's, or this same person was welcomed a moment ago.
            known = await self._known(person)
            if known is None:
                raise
            return known
        return account

    async def _open(self, account: Account, person: Person | None = None) -> None:
        """Store the account with all that belongs to it, or nothing."""
        async with writing(self._engine) as connection:
            await store.add(connection, account)
            if person is not None:
                await store.add_identity(connection, person.issuer, person.subject, account)
            snapshot_id = await self._snapshots.request_in(connection, account.id)
        await self._snapshots.start(snapshot_id)

    async def _rehash(self, account: Account, password: str) -> None:
        password_hash = await self._passwords.hash(password)
        async with writing(self._engine) as connection:
            await store.replace_hash(connection, account, password_hash)

    async def _session(self, account: Account) -> Session:
        role = OPERATOR if account.id in self._operators else USER
        after_kick = await self._last_kick(account.id)
        return Session(view(account), self._tokens.issue(account.id, role=role, after_kick=after_kick))


async def profile(engine: AsyncEngine, account_id: str) -> dict[str, object] | None:
    """What a snapshot pictures of an account; None when there is no such account.

    Shape: `id`, `email`, `name`, `createdAt`. A function of its own, because snapshots need it before there
    is a `Service`, which itself needs snapshots.
    """
    async with reading(engine) as connection:
        account = await store.by_id(connection, account_id)
    return view(account).model_dump() if account else None
