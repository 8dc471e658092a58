"""Sign-ins over a provider that are under way, sealed for the browser to keep; and the person that comes of one.

It needs neither Authlib nor httpx, which a replica without a provider does not load.
Source: RFC 9700 (security of OAuth 2.0), RFC 7516 (JWE).
"""

import hmac
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwe import JWERegistry
from joserfc.jwk import OctKey

from allim.errors import AllimError, Unauthenticated

FLOW_LIFETIME_S = 600

_SEAL = {"alg": "dir", "enc": "A256GCM"}
_SEALS = JWERegistry(algorithms=list(_SEAL.values()))


class Cancelled(AllimError):
    """The person turned back at the provider."""

    code = "cancelled"


class Stale(Unauthenticated):
    """The browser came back from a provider and holds no flow that fits, or an expired one."""


class Person(NamedTuple):
    """A person that a provider has authenticated.

    Shape: `issuer` and `subject` together are unique and stay; `email` is normalised, and None unless the provider
    verified it.
    """

    issuer: str
    subject: str
    name: str
    email: str | None


class Flow(NamedTuple):
    """One sign-in under way: secrets that only the browser which began it brings back."""

    provider: str
    redirect_uri: str
    state: str
    nonce: str
    verifier: str


class Flows:
    """Begins flows, and seals them for the browser to keep: encrypted, and good for `FLOW_LIFETIME_S`.

    Shape: the first of `secret_keys` seals, every one of them opens.
    """

    def __init__(self, secret_keys: Sequence[str], now: Callable[[], float] = time.time) -> None:
        self._keys = [_sealing_key(secret) for secret in secret_keys]
        self._now = now

    def begin(self, provider: str, redirect_uri: str) -> Flow:
        """A flow with fresh secrets."""
        return Flow(provider, redirect_uri, *(secrets.token_urlsafe(32) for _ in range(3)))

    def seal(self, flow: Flow) -> str:
        """The flow as text that only `open` can read."""
        claims = {**flow._asdict(), "exp": self._now() + FLOW_LIFETIME_S}
        return jwt.encode(_SEAL, claims, self._keys[0], registry=_SEALS)

    def open(self, sealed: str, provider: str) -> Flow:
        """The flow that `seal` sealed for this provider.

        Raises: Stale.
        """
        claims = self._claims(sealed)
        if claims is None or claims["provider"] != provider:
            raise Stale("No sign-in with this provider was begun here, or it took too long.")
        return Flow(**{name: claims[name] for name in Flow._fields})

    def superfluous(self, sealed: Mapping[str, str], most: int) -> list[str]:
        """Return the names of flows that can be forgotten: those that are not valid, and of the others the oldest,
        until `most` are left.
        """
        expiry = {name: (self._claims(text) or {"exp": 0.0})["exp"] for name, text in sealed.items()}
        by_age = sorted(expiry, key=lambda name: expiry[name])
        valid = sum(exp > 0 for exp in expiry.values())
        return by_age[: len(by_age) - min(valid, most)]

    def _claims(self, sealed: str) -> dict[str, Any] | None:
        """Return the sealed claims, or None if it was not sealed here or has expired."""
        for key in self._keys:
            try:
                claims = dict(jwt.decode(sealed, key, registry=_SEALS).claims)
            except (JoseError, ValueError):
                continue
            return claims if claims["exp"] > self._now() else None
        return None


def _sealing_key(secret_key: str) -> OctKey:
    """Return a key for this purpose alone: it opens nothing else that the secret key protects."""
    return OctKey.import_key(hmac.digest(secret_key.encode(), b"allim: sign-in over a provider", sha256))
