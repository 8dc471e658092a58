"""The tables of accounts, of their sessions, and of the identities at providers that sign in to them; their queries.

A session's row says when and where it began and was last seen. Whether it has ended is for the ledger to say: a row
stays until its session can have no valid token any more.
"""

from typing import NamedTuple

from sqlalchemy import Column, Double, Index, String, Table, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from allim.errors import Conflict, FieldError
from allim.storage import metadata

accounts = Table(
    "allim_accounts",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("email", String(254), unique=True),
    Column("name", String(100), nullable=False),
    Column("password_hash", String(255)),
    Column("created_at", Double, nullable=False),
)

identities = Table(
    "allim_accounts_identities",
    metadata,
    Column("issuer", String(255), primary_key=True),
    Column("subject", String(255), primary_key=True),
    Column("account_id", String(128), nullable=False),
    Column("created_at", Double, nullable=False),
)

sessions = Table(
    "allim_accounts_sessions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("account_id", String(128), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("after_kick", Double),
    Column("address", String(64)),
    Column("agent", String(64)),
    Index("ix_allim_accounts_sessions_account_id", "account_id"),
    Index("ix_allim_accounts_sessions_created_at", "created_at"),
)

PURGED_AT_ONCE = 100


class Account(NamedTuple):
    """A row. An account that a provider's identity made has no password, and perhaps no email.

    Units: `created_at` in Unix seconds.
    """

    id: str
    email: str | None
    name: str
    password_hash: str | None
    created_at: float


class SessionRow(NamedTuple):
    """A row. It is a holder as the ledger knows them.

    Shape: `id` is the `sid` of the session's tokens; `after_kick` is as in `Identity`; `address` and `agent` tell the
    device on which the session was last seen.
    Units: times in Unix seconds; `created_at` is the sign-in, `expires_at` that of the newest token that is known.
    """

    id: str
    account_id: str
    created_at: float
    seen_at: float
    expires_at: float
    after_kick: float | None
    address: str | None
    agent: str | None

    @property
    def subject(self) -> str:
        return self.account_id

    @property
    def session(self) -> str:
        return self.id

    @property
    def issued_at(self) -> float:
        return self.created_at


async def add(connection: AsyncConnection, account: Account) -> None:
    """Store a new account.

    Raises: Conflict naming `email` when it is taken, also when somebody else takes it at this moment.
    """
    try:
        await connection.execute(insert(accounts).values(**account._asdict()))
    except IntegrityError as error:
        raise email_taken() from error


async def add_identity(connection: AsyncConnection, issuer: str, subject: str, account: Account) -> None:
    """Have this identity sign in to the new account.

    Raises: Conflict when it signs in to one already, also when that happens at this moment.
    """
    row = {"issuer": issuer, "subject": subject, "account_id": account.id, "created_at": account.created_at}
    try:
        await connection.execute(insert(identities).values(**row))
    except IntegrityError as error:
        raise Conflict("This identity signs in to an account already.") from error


def email_taken() -> Conflict:
    """There is such an account already."""
    message = "belongs to an account already"
    return Conflict(f"email: {message}", [FieldError("email", message)])


async def by_id(connection: AsyncConnection, account_id: str) -> Account | None:
    """The account with this id."""
    row = (await connection.execute(select(accounts).where(accounts.c.id == account_id))).one_or_none()
    return Account(*row) if row else None


async def by_email(connection: AsyncConnection, email: str) -> Account | None:
    """The account with this normalised address."""
    row = (await connection.execute(select(accounts).where(accounts.c.email == email))).one_or_none()
    return Account(*row) if row else None


async def by_identity(connection: AsyncConnection, issuer: str, subject: str) -> Account | None:
    """The account that this identity signs in to."""
    joined = select(accounts).join(identities, identities.c.account_id == accounts.c.id)
    found = joined.where((identities.c.issuer == issuer) & (identities.c.subject == subject))
    row = (await connection.execute(found)).one_or_none()
    return Account(*row) if row else None


async def replace_hash(connection: AsyncConnection, account: Account, password_hash: str) -> None:
    """Store another hash, of the same password or of a new one, unless the password was changed meanwhile."""
    unchanged = (accounts.c.id == account.id) & (accounts.c.password_hash == account.password_hash)
    await connection.execute(update(accounts).where(unchanged).values(password_hash=password_hash))


async def hold(connection: AsyncConnection, account: Account) -> bool:
    """Keep the account as it is until the transaction ends.

    False, if it was deleted or its password was changed since it was read.
    """
    same_hash = accounts.c.password_hash.is_not_distinct_from(account.password_hash)
    held = select(accounts.c.id).where(accounts.c.id == account.id, same_hash).with_for_update()
    return (await connection.execute(held)).one_or_none() is not None


async def remove(connection: AsyncConnection, account_id: str) -> None:
    """Delete the account, its identities and the rows of its sessions."""
    await connection.execute(delete(sessions).where(sessions.c.account_id == account_id))
    await connection.execute(delete(identities).where(identities.c.account_id == account_id))
    await connection.execute(delete(accounts).where(accounts.c.id == account_id))


async def add_session(connection: AsyncConnection, session: SessionRow, began_before: float) -> None:
    """Store a session, and delete some that began before that moment and have expired."""
    await connection.execute(insert(sessions).values(**session._asdict()))
    over = (sessions.c.created_at < began_before) & (sessions.c.expires_at < session.created_at)
    some = select(sessions.c.id).where(over).order_by(sessions.c.created_at).limit(PURGED_AT_ONCE)
    await connection.execute(delete(sessions).where(sessions.c.id.in_(some)))


async def sessions_of(connection: AsyncConnection, account_id: str) -> list[SessionRow]:
    """The account's sessions, the one that was seen last first."""
    query = select(sessions).where(sessions.c.account_id == account_id)
    rows = await connection.execute(query.order_by(sessions.c.seen_at.desc(), sessions.c.id))
    return [SessionRow(*row) for row in rows]


async def session_of(connection: AsyncConnection, account_id: str, session_id: str) -> SessionRow | None:
    """One session, if it is this account's."""
    mine = (sessions.c.id == session_id) & (sessions.c.account_id == account_id)
    row = (await connection.execute(select(sessions).where(mine))).one_or_none()
    return SessionRow(*row) if row else None


async def note_seen(connection: AsyncConnection, session: SessionRow) -> None:
    """Store when and where the session was seen, and until when its token is valid, unless a later time is known."""
    later = or_(sessions.c.seen_at < session.seen_at, sessions.c.expires_at < session.expires_at)
    changed = {name: getattr(session, name) for name in ("seen_at", "expires_at", "address", "agent")}
    await connection.execute(update(sessions).where(sessions.c.id == session.id, later).values(**changed))


async def remove_sessions(connection: AsyncConnection, ids: list[str]) -> None:
    """Forget sessions that have ended."""
    await connection.execute(delete(sessions).where(sessions.c.id.in_(ids)))
