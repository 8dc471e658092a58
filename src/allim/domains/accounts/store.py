"""The tables of accounts and of the identities at providers that sign in to them, and their queries."""

from typing import NamedTuple

from sqlalchemy import Column, Double, String, Table, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from allim.errors import Conflict, FieldError
from allim.storage import metadata

accounts = Table(
    "accounts",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("email", String(254), unique=True),
    Column("name", String(100), nullable=False),
    Column("password_hash", String(255)),
    Column("created_at", Double, nullable=False),
)

identities = Table(
    "identities",
    metadata,
    Column("issuer", String(255), primary_key=True),
    Column("subject", String(255), primary_key=True),
    Column("account_id", String(128), nullable=False),
    Column("created_at", Double, nullable=False),
)


class Account(NamedTuple):
    """A row. An account that a provider's identity made has no password, and perhaps no email.

    Units: `created_at` in Unix seconds.
    """

    id: str
    email: str | None
    name: str
    password_hash: str | None
    created_at: float


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
    """Store a newer hash of the same password, unless the password was changed meanwhile."""
    unchanged = (accounts.c.id == account.id) & (accounts.c.password_hash == account.password_hash)
    await connection.execute(update(accounts).where(unchanged).values(password_hash=password_hash))
