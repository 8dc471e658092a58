"""The table of accounts and its queries."""

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
    Column("email", String(254), nullable=False, unique=True),
    Column("name", String(100), nullable=False),
    Column("password_hash", String(255), nullable=False),
    Column("created_at", Double, nullable=False),
)


class Account(NamedTuple):
    """A row.

    Units: `created_at` in Unix seconds.
    """

    id: str
    email: str
    name: str
    password_hash: str
    created_at: float


async def add(connection: AsyncConnection, account: Account) -> None:
    """Store a new account.

    Raises: Conflict naming `email` when it is taken, also when somebody else takes it at this moment.
    """
    try:
        await connection.execute(insert(accounts).values(**account._asdict()))
    except IntegrityError as error:
        raise email_taken() from error


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


async def replace_hash(connection: AsyncConnection, account: Account, password_hash: str) -> None:
    """Store a newer hash of the same password, unless the password was changed meanwhile."""
    unchanged = (accounts.c.id == account.id) & (accounts.c.password_hash == account.password_hash)
    await connection.execute(update(accounts).where(unchanged).values(password_hash=password_hash))
