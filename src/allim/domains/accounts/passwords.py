"""Hashes and verifies passwords with Argon2id, away from the event loop and never too many at once.

Source: RFC 9106.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

Result = TypeVar("Result")

Turn = Callable[[], AbstractAsyncContextManager[None]]
"""Waits until a password may be hashed for this caller; raises what ends the wait, and then nothing is hashed."""


class Passwords:
    """Hashing one password takes about 64 MiB and a core for 50 ms; `at_once` bounds both."""

    def __init__(self, hasher: PasswordHasher | None = None, at_once: int = 2) -> None:
        self._hasher = hasher or PasswordHasher()
        self._limiter = CapacityLimiter(at_once)
        # Somebody unknown is verified against this, so that it takes as long as for somebody known.
        self._nobodys_hash = self._hasher.hash("nobody")

    async def hash(self, password: str, turn: Turn = nullcontext) -> str:
        """A salted hash that names its own parameters.

        Raises: what `turn` raises.
        """
        return await self._in_turn(partial(self._hasher.hash, password), turn)

    async def verify(self, password_hash: str | None, password: str, turn: Turn = nullcontext) -> bool:
        """Whether the password is the hashed one; with None it is not, after the same work.

        Raises: what `turn` raises.
        """
        work = partial(self._matches, password_hash or self._nobodys_hash, password)
        return await self._in_turn(work, turn) and password_hash is not None

    def is_outdated(self, password_hash: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(password_hash)

    async def _in_turn(self, work: Callable[[], Result], turn: Turn) -> Result:
        async with turn():
            return await run_sync(work, limiter=self._limiter)

    def _matches(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False
