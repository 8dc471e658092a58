"""Hashes and verifies passwords with Argon2id, away from the event loop and never too many at once.

Source: RFC 9106.
"""

from base64 import b64encode
from collections.abc import Callable
from functools import partial
from secrets import token_bytes
from typing import TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import ARGON2_VERSION

Result = TypeVar("Result")


class Passwords:
    """Hashing one password takes about 64 MiB and a core for 50 ms; `at_once` bounds both.

    Callers wait in order, and in any number: take turns before.
    """

    def __init__(self, hasher: PasswordHasher | None = None, at_once: int = 2) -> None:
        self._hasher = hasher or PasswordHasher()
        self._limiter = CapacityLimiter(at_once)
        # The password of an unknown account is verified against this, so that it takes as long as for a known one.
        self._unmatched = _unmatched(self._hasher)

    async def hash(self, password: str) -> str:
        """A salted hash that names its own parameters."""
        return await self._in_thread(partial(self._hasher.hash, password))

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether the password is the hashed one; with None it is not, after the same work."""
        work = partial(self._matches, password_hash or self._unmatched, password)
        return await self._in_thread(work) and password_hash is not None

    def is_outdated(self, password_hash: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(password_hash)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await run_sync(work, limiter=self._limiter)

    def _matches(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False


def _unmatched(hasher: PasswordHasher) -> str:
    """Return a hash with the parameters of the hasher, of no known password. To hash one would delay a start."""
    salt, digest = (b64encode(token_bytes(size)).decode().rstrip("=") for size in (hasher.salt_len, hasher.hash_len))
    parameters = f"m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}"
    return f"$argon2{hasher.type.name.lower()}$v={ARGON2_VERSION}${parameters}${salt}${digest}"
