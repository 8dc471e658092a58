"""Signals between domains, inside one transaction: "an account was created", "an account was deleted".

The sender hands its open transaction to each receiver, so the data that receivers store or delete is committed with
the sender's, or not at all. Neither side imports the other, and a signal without a receiver is no fault.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

Receiver = Callable[["AsyncConnection", str], Awaitable[None]]
"""Called with the sender's transaction and the ID of the thing concerned. If it raises, nothing is stored."""

ACCOUNT_CREATED = "accounts.created"
ACCOUNT_DELETED = "accounts.deleted"


class Signals:
    """The receivers by name of signal: `<domain>.<past participle>`."""

    def __init__(self) -> None:
        self._receivers: dict[str, list[Receiver]] = defaultdict(list)

    def on(self, name: str, receiver: Receiver) -> None:
        """Call the receiver for each signal of this name, after the receivers that came before it."""
        self._receivers[name].append(receiver)

    async def send(self, connection: "AsyncConnection", name: str, subject: str) -> None:
        """Call the receivers one after another. Raises: each error of a receiver."""
        for receiver in self._receivers.get(name, ()):
            await receiver(connection, subject)
