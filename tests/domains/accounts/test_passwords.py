"""The hash against which the password of an unknown account is verified."""

from typing import Any

import pytest
from argon2 import PasswordHasher, extract_parameters

from allim.domains.accounts.passwords import Passwords

pytestmark = pytest.mark.anyio


class Noting(PasswordHasher):
    """Notes the hashes that were verified, and counts the passwords that were hashed."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=16, parallelism=1)
        self.verified: list[str] = []
        self.hashed = 0

    def hash(self, *arguments: Any, **named: Any) -> str:
        self.hashed += 1
        return super().hash(*arguments, **named)

    def verify(self, hash: Any, password: Any) -> Any:  # noqa: A002 - as in argon2
        self.verified.append(hash)
        return super().verify(hash, password)


async def test_an_unknown_account_costs_as_much_as_a_known_one() -> None:
    hasher = Noting()
    passwords = Passwords(hasher)
    assert hasher.hashed == 0  # a start waits for none

    known = await passwords.hash("a good password")

    assert not await passwords.verify(None, "a good password")
    assert await passwords.verify(known, "a good password")
    assert extract_parameters(hasher.verified[0]) == extract_parameters(known)
