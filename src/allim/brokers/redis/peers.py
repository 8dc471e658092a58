"""Replicas compare their settings, so that a difference that loses events is noticed.

Each replica keeps a card in Redis: the key it signs with, the keys it accepts, and the settings that must be equal.
A key appears as an HMAC under itself: a reader of Redis learns no more from it than from a token.
"""

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import structlog

from allim.errors import Unavailable

log = structlog.get_logger(__name__)

KEEP_PULSES = 4  # without a sign, after which a replica counts as gone
KEEP_MIN_S = 2.0


class Card(NamedTuple):
    """Shape: `signs` is the digest of the key that signs, `believes` those of all keys with valid tokens."""

    signs: str
    believes: Sequence[str]
    settings: Mapping[str, str]

    @classmethod
    def of(cls, keys: Sequence[str], settings: Mapping[str, str]) -> "Card":
        """Shape: `keys` begins with the one that signs; the old ones follow."""
        digests = [_digest(key) for key in keys]
        return cls(digests[0] if digests else "", digests, settings)

    @classmethod
    def read(cls, text: bytes) -> "Card | None":
        """Return the card, or None for one of another form, as a later version may write."""
        try:
            signs, believes, settings = json.loads(text)
            return cls(str(signs), [str(digest) for digest in believes], {**settings})
        except (ValueError, TypeError):
            return None


class Other(NamedTuple):
    """Another replica. Units: `since` in milliseconds of Redis' clock."""

    name: str
    since: int
    card: Card


class Peers:
    """This replica's card, and its differences from the others."""

    def __init__(
        self,
        replica: str,
        keys: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
        pulse_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.nonce = secrets.token_hex(8)  # of this process: it tells two with the same name apart
        self.replica = replica
        self._card = Card.of(keys, settings or {})
        self._keep_s = max(KEEP_MIN_S, KEEP_PULSES * pulse_s)
        self._clock = clock
        self._refusing = ""  # the reason why this replica is not ready
        self._differences: frozenset[str] = frozenset()
        self._twin_at: float | None = None  # time of the last pulse of another process with this name

    def sign(self, *, leaving: bool = False) -> tuple[str, str, int, str]:
        """Return the arguments of replicas.lua."""
        card = "" if leaving else json.dumps(self._card, separators=(",", ":"))
        return self.replica, self.nonce, round(self._keep_s * 1000), card

    def learn(self, reply: Sequence[Any]) -> None:
        """Compare this replica's card with those that replicas.lua returns."""
        since, entries = reply
        others = [
            Other(name.decode(), began, card)
            for name, began, text in entries
            if (card := Card.read(text)) is not None
        ]
        found = frozenset(line for other in others for line in self._compared(other.name, other.card))
        for line in sorted(found - self._differences):
            log.error("replicas differ", replica=self.replica, difference=line)
        for line in sorted(self._differences - found):
            log.info("replicas differ no more", replica=self.replica, difference=line)
        self._differences = found
        # The one that came later is the wrong one, as far as can be known: the others go on serving.
        strangers = [other.name for other in others if other.since < since and not self._believes(other.card)]
        self._refusing = _not_valid(strangers[0]) if strangers else ""

    def heard(self, nonce: str) -> bool:
        """Return whether a pulse on this replica's channel is its own; one that is not comes from a twin."""
        if nonce == self.nonce:
            return True
        if not self._has_twin():
            log.error("two replicas have one ALLIM_SERVER_ID", replica=self.replica)
        self._twin_at = self._clock()
        return False

    def check(self) -> str | None:
        """Return, for readiness, the differences that leave the replica ready.

        Raises: Unavailable when the tokens of replicas that were here before are not valid here.
        """
        if self._refusing:
            raise Unavailable(self._refusing)
        twin = [f"another running replica has ALLIM_SERVER_ID {self.replica} too"] if self._has_twin() else []
        return "; ".join([*twin, *sorted(self._differences)]) or None

    def _has_twin(self) -> bool:
        return self._twin_at is not None and self._clock() - self._twin_at <= self._keep_s

    def _believes(self, other: Card) -> bool:
        return not self._card.signs or not other.signs or other.signs in self._card.believes

    def _compared(self, name: str, other: Card) -> list[str]:
        lines = [] if self._believes(other) else [_not_valid(name)]
        for setting, here in self._card.settings.items():
            there = other.settings.get(setting, here)  # another version may not know it
            if here != there:
                lines.append(f"{setting} is {here} here and {there} on {name}")
        return lines


def _not_valid(name: str) -> str:
    return f"ALLIM_SECRET_KEY is another than on {name}, whose tokens are not valid here"


def _digest(key: str) -> str:
    return hmac.digest(key.encode(), b"allim replica card", hashlib.sha256).hex()[:32]
