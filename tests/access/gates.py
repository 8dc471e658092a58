"""A gate over memory, who comes through it, and ledgers that do not answer."""

import asyncio
from collections.abc import Sequence

from allim.access.authenticate import Authenticate
from allim.access.gate import COOKIE, Gate, Limits
from allim.access.rates import Policy, Rates
from allim.access.tickets import Tickets
from allim.access.tokens import Tokens
from allim.brokers.memory import MemoryLedger
from allim.errors import Unavailable
from allim.hub import Demand, Grant, Holder, Ledger
from allim.identity import USER

SECRET = "0123456789abcdef0123456789abcdef"
TOKENS = Tokens([SECRET], lifetime_s=3600)
AMPLE = Policy("ample", 1_000_000, 1)
ROOMY = Policy("roomy", 1_000_000_000, 3600)


def gate_of(ledger: Ledger | None = None, **limits: Policy) -> Gate:
    """Without further word, nobody meets a limit."""
    ample = {name: AMPLE._replace(name=name) for name in Limits._fields}
    return Gate(TOKENS, Tickets([SECRET], 30), rates_of(ledger), Limits(**{**ample, **limits}))


def gate_beside(authenticate: Authenticate | None = None, cookie: str = COOKIE, ledger: Ledger | None = None) -> Gate:
    """A gate of an application with its own users."""
    limits = Limits(*[AMPLE] * len(Limits._fields))
    tickets = Tickets([SECRET], 30)
    return Gate(TOKENS, tickets, rates_of(ledger), limits, cookie=cookie, authenticate=authenticate)


def rates_of(ledger: Ledger | None = None, refused: list[str] | None = None) -> Rates:
    return Rates(ledger or MemoryLedger(), MemoryLedger(), (refused if refused is not None else []).append)


def bearer(subject: str, role: str = USER) -> dict[str, str]:
    return {"authorization": f"Bearer {TOKENS.issue(subject, role=role)}"}


class AwayLedger(MemoryLedger):
    """Its store is away."""

    async def charge(self, demands: Sequence[Demand], holder: Holder | None = None) -> Grant:
        raise Unavailable("away")


class HangingLedger(MemoryLedger):
    """Its store says nothing."""

    async def charge(self, demands: Sequence[Demand], holder: Holder | None = None) -> Grant:
        await asyncio.Event().wait()
        raise AssertionError("it hangs for ever")
