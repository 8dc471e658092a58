"""The rules of accounts and of their sessions."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import NamedTuple, Protocol

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from allim.access.tokens import Tokens
from allim.domains.accounts import store
from allim.domains.accounts.devices import Device
from allim.domains.accounts.flows import Person
from allim.domains.accounts.models import AccountView, NewAccount, Registration, normal_email, view
from allim.domains.accounts.passwords import Passwords
from allim.domains.accounts.store import Account, SessionRow
from allim.domains.signals import ACCOUNT_CREATED, ACCOUNT_DELETED, Signals
from allim.errors import (
    Conflict,
    FieldError,
    Forbidden,
    Invalid,
    NotFound,
    RegistrationClosed,
    Unauthenticated,
    Unavailable,
)
from allim.hub import Holder, SessionState
from allim.identity import OPERATOR, USER, Identity
from allim.storage import reading, writing

log = structlog.get_logger(__name__)

MAX_SESSIONS = 100  # of an account that can be valid at the same time: a call that ends them all has to end each
RECENT_S = 600.0  # how long a sign-in counts as the proof that an account without a password is deleted by its owner
SEEN_S = 60.0  # a session is noted as seen once in so many seconds
SEEN_TIMEOUT_S = 2.0  # for noting it: nothing depends on it

Turn = Callable[[], AbstractAsyncContextManager[None]]
"""Stands around the hashing of a password and waits for the caller's turn. If it raises, nothing is hashed."""

UNKNOWN = Device()


class Sessions(Protocol):
    """The calls of the hub by which sessions end and go on. Each raises Unavailable."""

    async def sign_out(self, holder: Holder) -> None: ...
    async def kick(self, subject: str) -> None: ...
    async def extend(self, holder: Holder, expires_at: float) -> None: ...
    async def last_kick(self, subject: str) -> float | None: ...
    async def session_states(self, holders: Sequence[Holder]) -> Sequence[SessionState]: ...


class Session(NamedTuple):
    """The result of a sign-in."""

    account: AccountView
    token: str


class Renewal(NamedTuple):
    """A session's new token.

    Units: `expires_at` in Unix seconds.
    """

    token: str
    expires_at: float


class Service:
    """Registers, changes and deletes accounts, signs them in and out, and lists their sessions."""

    def __init__(
        self,
        engine: AsyncEngine,
        tokens: Tokens,
        passwords: Passwords,
        signals: Signals,
        hub: Sessions,
        operators: Collection[str] = (),
        registration: Registration = "open",
        now: Callable[[], float] = time.time,
    ) -> None:
        """Shape: `signals` tells other domains, in the same transaction, of accounts that are created or deleted."""
        self._engine = engine
        self._tokens = tokens
        self._passwords = passwords
        self._signals = signals
        self._hub = hub
        self._operators = frozenset(operators)
        self.registration = registration
        self._now = now

    def check_registration(self) -> None:
        """Raises: RegistrationClosed where no accounts are made."""
        if self.registration == "closed":
            raise RegistrationClosed("Accounts are not made here.")

    async def register(self, new: NewAccount, turn: Turn = nullcontext, device: Device = UNKNOWN) -> Session:
        """Store the account, with all that other domains add to a new one, and sign in.

        Raises: RegistrationClosed; Conflict naming `email`; the errors of `turn`.
        """
        self.check_registration()
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
        session, row = await self._begin(account, device)
        await self._open(account, row)
        return session

    async def sign_in(self, email: str, password: str, turn: Turn = nullcontext, device: Device = UNKNOWN) -> Session:
        """A new session.

        Raises: Unauthenticated, in the same words and after the same work whether the address is unknown or
        the password is wrong; the errors of `turn`.
        """
        while True:
            async with turn():  # also around the look-up: a flood is not to reach the database either
                account = await self._find(email)
                password_hash = account.password_hash if account else None
                verified = await self._passwords.verify(password_hash, password)
                if account is None or password_hash is None or not verified:
                    raise Unauthenticated("The email or the password is wrong.", reason="password")
                if self._passwords.is_outdated(password_hash):
                    account = await self._rehash(account, password)
            # The password may have been changed since it was verified: then it is verified again.
            session = await self._session(account, device)
            if session is not None:
                return session

    async def sign_in_as(self, person: Person, device: Device = UNKNOWN) -> Session:
        """A new session of the account that this person signs in to. The first time makes it, as `register` does.

        Raises: RegistrationClosed when it would make one; Conflict naming `email` when the address belongs to another
        account. The two are not joined: an address at a provider does not prove that the same person registered it
        here.
        """
        while True:
            account = await self._known(person)
            session = await self._welcome(person, device) if account is None else await self._session(account, device)
            if session is not None:  # else the account was deleted, or was made, at this moment
                return session

    async def sign_out(self, identity: Identity) -> None:
        """End the session, and its streams on every replica.

        Raises: Unavailable.
        """
        await self._hub.sign_out(identity)

    async def renew(self, token: str, check: Callable[[], Awaitable[object]], device: Device = UNKNOWN) -> Renewal:
        """A new token of the same session; its live streams go on, on every replica.

        Shape: `check` raises when the session of the old token was ended. It is asked after the last kick was looked
        up: a kick from before that moment ends the old token, and one from after it ends the new token too.
        Raises: Unauthenticated when the session has lasted as long as it may; Invalid for a token of another issuer;
        Unavailable; the errors of `check`.
        """
        after_kick = await self._hub.last_kick(self._tokens.may_renew(token).subject)
        renewed = self._tokens.renew(token, after_kick)
        await check()
        identity = await self._tokens.verify(renewed)
        await self._hub.extend(identity, identity.expires_at)
        await self.seen(identity, device)
        return Renewal(renewed, identity.expires_at)

    async def account(self, account_id: str) -> AccountView:
        """One's own account.

        Raises: NotFound for an identity without one; services may sign tokens for such.
        """
        return view(await self._own(account_id))

    async def seen(self, identity: Identity, device: Device) -> None:
        """Note that a session is in use, to the minute. Never raises: this is for the list of sessions alone."""
        try:
            async with asyncio.timeout(SEEN_TIMEOUT_S):
                await self._note_seen(identity, device)
        except (Unavailable, TimeoutError) as error:
            log.warning("session not noted as seen", user=identity.subject, error=type(error).__name__)

    async def sessions(self, account_id: str) -> list[SessionRow]:
        """Return the account's sessions that have not ended, the one that was seen last first."""
        async with reading(self._engine) as connection:
            rows = await store.sessions_of(connection, account_id)
        now = self._now()
        return await self._good([row for row in rows if row.expires_at > now])

    async def end_session(self, account_id: str, session_id: str) -> None:
        """End one of the account's sessions, and its streams on every replica.

        Raises: NotFound, the same for a session that has ended and for another account's; Unavailable.
        """
        session = next((row for row in await self.sessions(account_id) if row.id == session_id), None)
        if session is None:
            raise NotFound("You have no such session.")
        await self._hub.sign_out(session)
        log.info("session ended", user=account_id, session=session_id)

    async def change_password(self, identity: Identity, current: str, new: str, turn: Turn = nullcontext) -> None:
        """Change the password, and end the account's other sessions, also those that begin meanwhile.

        Raises: NotFound; Conflict for an account without a password; Forbidden naming `currentPassword`; Unavailable;
        the errors of `turn`.
        """
        changed = False
        while not changed:
            async with turn():
                account = await self._prove(identity.subject, current, "currentPassword")
                password_hash = await self._passwords.hash(new)
            store_hash = partial(store.replace_hash, account=account, password_hash=password_hash)
            changed = await self._without_sessions(account, self._sign_out_all, store_hash, keep=identity.session)
        log.info("password changed", user=identity.subject)

    async def delete(self, identity: Identity, password: str | None, turn: Turn = nullcontext) -> None:
        """Delete the account with all that belongs to it, and end its sessions and streams on every replica.

        Raises: NotFound; Invalid naming `password` if one is needed; Forbidden naming `password` if it is wrong, or
        if an account without a password has not signed in lately; Unavailable; the errors of `turn`.
        """
        deleted = False
        while not deleted:
            account = await self._own(identity.subject)
            if account.password_hash is None:
                await self._require_recent(identity)
            elif password is None:
                raise Invalid.field("password", "is required")
            else:
                async with turn():
                    account = await self._prove(account.id, password, "password")
            deleted = await self._without_sessions(
                account,
                partial(self._kick, account.id),
                partial(self._remove, account_id=account.id),
            )
        log.info("account deleted", user=identity.subject)

    async def _note_seen(self, identity: Identity, device: Device) -> None:
        async with reading(self._engine) as connection:
            row = await store.session_of(connection, identity.subject, identity.session)
        now = self._now()
        if row is None or (now - row.seen_at < SEEN_S and identity.expires_at <= row.expires_at):
            return
        expires_at = max(row.expires_at, identity.expires_at)
        seen = row._replace(seen_at=now, expires_at=expires_at, address=device.address, agent=device.agent)
        async with writing(self._engine) as connection:
            await store.note_seen(connection, seen)

    async def _own(self, account_id: str) -> Account:
        async with reading(self._engine) as connection:
            account = await store.by_id(connection, account_id)
        if account is None:
            raise NotFound("There is no account for this identity.")
        return account

    async def _prove(self, account_id: str, password: str, field: str) -> Account:
        """Return the account with this password."""
        account = await self._own(account_id)
        if account.password_hash is None:
            raise Conflict("This account signs in over a provider; it has no password here.")
        if not await self._passwords.verify(account.password_hash, password):
            message = "is wrong"
            raise Forbidden(f"{field}: {message}", [FieldError(field, message)])
        return account

    async def _require_recent(self, identity: Identity) -> None:
        async with reading(self._engine) as connection:
            session = await store.session_of(connection, identity.subject, identity.session)
        if session is None or abs(self._now() - session.created_at) > RECENT_S:
            minutes = round(RECENT_S / 60)
            raise Forbidden(f"Sign in again over your provider, and repeat this within {minutes} minutes.")

    async def _without_sessions(
        self,
        account: Account,
        end: Callable[[list[SessionRow]], Awaitable[None]],
        change: Callable[[AsyncConnection], Awaitable[None]],
        keep: str = "",
    ) -> bool:
        """End the account's sessions except `keep`, then change the account if no session has begun since.

        False, with the account unchanged, if it was deleted or its password changed since it was read.
        """
        ended = {keep}
        while True:
            async with reading(self._engine) as connection:
                rows = await store.sessions_of(connection, account.id)
            await end([row for row in rows if row.id not in ended])
            ended.update(row.id for row in rows)
            async with writing(self._engine) as connection:
                if not await store.hold(connection, account):
                    return False
                # While the row is locked, no session is created for it.
                if all(row.id in ended for row in await store.sessions_of(connection, account.id)):
                    await change(connection)
                    return True

    async def _sign_out_all(self, rows: list[SessionRow]) -> None:
        await asyncio.gather(*map(self._hub.sign_out, await self._good(rows)))

    async def _kick(self, account_id: str, _: list[SessionRow]) -> None:
        """End all of the account's sessions, also those that another service began."""
        await self._hub.kick(account_id)

    async def _good(self, rows: list[SessionRow]) -> list[SessionRow]:
        """Return those that have not ended."""
        states = await self._hub.session_states(rows) if rows else ()
        return [row for row, state in zip(rows, states, strict=True) if state is SessionState.GOOD]

    async def _remove(self, connection: AsyncConnection, account_id: str) -> None:
        await self._signals.send(connection, ACCOUNT_DELETED, account_id)
        await store.remove(connection, account_id)

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

    async def _welcome(self, person: Person, device: Device) -> Session | None:
        """Make the person's account; None, if it is there by now."""
        self.check_registration()
        account = Account(
            id=secrets.token_urlsafe(16),
            email=person.email,
            name=person.name,
            password_hash=None,
            created_at=self._now(),
        )
        session, row = await self._begin(account, device)
        try:
            await self._open(account, row, person)
        except Conflict:
            # Either the address is another person's, or this person's account was made a moment ago.
            if await self._known(person) is None:
                raise
            return None
        return session

    async def _open(self, account: Account, session: SessionRow, person: Person | None = None) -> None:
        """Store the account with all that belongs to it, or nothing."""
        async with writing(self._engine) as connection:
            await store.add(connection, account)
            if person is not None:
                await store.add_identity(connection, person.issuer, person.subject, account)
            await self._add_session(connection, session)
            await self._signals.send(connection, ACCOUNT_CREATED, account.id)

    async def _rehash(self, account: Account, password: str) -> Account:
        password_hash = await self._passwords.hash(password)
        async with writing(self._engine) as connection:
            await store.replace_hash(connection, account, password_hash)
        return account._replace(password_hash=password_hash)

    async def _session(self, account: Account, device: Device) -> Session | None:
        """Begin a session; None, if the account was deleted or its password changed since it was read."""
        await self._make_room(account.id)
        session, row = await self._begin(account, device, await self._hub.last_kick(account.id))
        async with writing(self._engine) as connection:
            if not await store.hold(connection, account):
                return None
            await self._add_session(connection, row)
        return session

    async def _make_room(self, account_id: str) -> None:
        """End the sessions that were not seen for longest, so that there is room for one more."""
        async with reading(self._engine) as connection:
            rows = (await store.sessions_of(connection, account_id))[MAX_SESSIONS - 1 :]
        if rows:
            await self._sign_out_all(rows)
            async with writing(self._engine) as connection:
                await store.remove_sessions(connection, [row.id for row in rows])

    async def _begin(
        self, account: Account, device: Device, after_kick: float | None = 0.0
    ) -> tuple[Session, SessionRow]:
        """Return a new session, and the row that must be stored before its token is given out."""
        role = OPERATOR if account.id in self._operators else USER
        token = self._tokens.issue(account.id, role=role, after_kick=after_kick)
        identity = await self._tokens.verify(token)
        now = self._now()
        row = SessionRow(identity.session, account.id, now, now, identity.expires_at, after_kick, *device)
        return Session(view(account), token), row

    async def _add_session(self, connection: AsyncConnection, row: SessionRow) -> None:
        await store.add_session(connection, row, row.created_at - self._tokens.max_s)


async def profile(engine: AsyncEngine, account_id: str) -> dict[str, object] | None:
    """Return an account as other domains show it; None if there is no such account.

    Shape: `id`, `email`, `name`, `createdAt`.
    """
    async with reading(engine) as connection:
        account = await store.by_id(connection, account_id)
    return view(account).model_dump(exclude={"has_password"}) if account else None
