"""The public keys of an outside token issuer, which it publishes at its JWKS address.

Decides when they are fetched and which of them may be used. Knows no token and no claim.
Source: RFC 7517 (JWK), RFC 7518 6 (RSA, EC), RFC 8037 (Ed25519).
"""

import asyncio
import json
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import structlog
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey
from joserfc.util import base64_to_int

from allim.access.fetch import read_bounded
from allim.errors import Unavailable

if TYPE_CHECKING:  # late, because most replicas ask no issuer
    import httpx

log = structlog.get_logger(__name__)

PublicKey = RSAKey | ECKey | OKPKey

_MAX_BYTES = 256 * 1024
RSA_BITS = range(2048, 8193)  # RFC 7518, 3.3; above, a single signature costs too much
_PUBLIC_MEMBERS = frozenset({"kty", "crv", "n", "e", "x", "y"})


class Jwks:
    """An issuer's public keys: fetched when first needed, and then kept up to date.

    A set older than `max_age_s` is fetched again in the background and used meanwhile; if the issuer cannot be
    reached, the old set stays in use. A token with an unknown key name causes a fetch at once, so that a new key
    works from its first token on. There is at most one fetch per `floor_s`, successful or not, so invented key names
    cost the issuer nothing. All requests that need a fetch wait for the same one.

    A key that the issuer withdraws is trusted for up to `max_age_s`. An answer without any usable key counts as a
    failure, because it is more often a mistake than the wish to lock out all users.
    """

    def __init__(
        self,
        url: str,
        client: "httpx.AsyncClient | None" = None,
        *,
        max_age_s: float = 3600,
        floor_s: float = 30,
        timeout_s: float = 5,
        now: Callable[[], float] = time.monotonic,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        import httpx

        self.url = url
        self._client = client or httpx.AsyncClient()
        self._owns_client = client is None
        self._max_age_s = max_age_s
        self._floor_s = floor_s
        self._timeout_s = timeout_s
        self._now = now
        self._on_failure = on_failure
        self._keys: dict[tuple[str | None, str], PublicKey] = {}
        self._fetching: asyncio.Task[None] | None = None
        self._asked_at = self._fetched_at = -math.inf
        self._reachable = False  # whether the last fetch succeeded
        self.failure = ""  # why the last fetch failed
        self._closed = False

    async def key(self, kid: str | None, alg: str) -> PublicKey | None:
        """Return the issuer's key of this name for this algorithm; without a name, its only key for it. None if there
        is none.

        Raises: Unavailable if the key is unknown and the issuer's keys could not be read: it may be a new one.
        """
        key = self._find(kid, alg)
        if key is None:
            if fetching := self._fetch_if_due():
                await asyncio.wait({fetching})  # not `await fetching`: neither side's cancellation is the other's
            key = self._find(kid, alg)
        elif self._now() - self._fetched_at > self._max_age_s:
            self._fetch_if_due()
        if key is None and not self._reachable:
            next_fetch_in_s = max(1, self._asked_at + self._floor_s - self._now())
            raise Unavailable("The keys of the token's issuer cannot be read.", math.ceil(next_fetch_in_s))
        return key

    async def close(self) -> None:
        """Cancel a fetch that is under way, and make no further ones."""
        self._closed = True
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})
        if self._owns_client:
            await self._client.aclose()

    def _find(self, kid: str | None, alg: str) -> PublicKey | None:
        if kid is not None:
            return self._keys.get((kid, alg))
        fitting = [key for (_, key_alg), key in self._keys.items() if key_alg == alg]
        return fitting[0] if len(fitting) == 1 else None

    def _fetch_if_due(self) -> asyncio.Task[None] | None:
        """Return the fetch under way; start one unless the last is too recent."""
        if self._fetching is None and not self._closed and self._now() - self._asked_at >= self._floor_s:
            self._asked_at = self._now()
            self._fetching = asyncio.create_task(self._fetch(), name="allim issuer keys")
        return self._fetching

    async def _fetch(self) -> None:
        import httpx

        try:
            content = await self._read()
            self._keys = await asyncio.to_thread(parse, content)  # 0.3 ms for each RSA key
            self._fetched_at, self._reachable = self._now(), True
            log.info("issuer keys read", keys=len(self._keys))
        except (httpx.HTTPError, TimeoutError, ValueError, RecursionError) as error:
            self._failed(str(error) or type(error).__name__)
            log.warning("issuer keys not read", error=self.failure)
        except Exception as error:
            self._failed(str(error) or type(error).__name__)
            log.exception("issuer keys not read")
        finally:
            self._fetching = None

    def _failed(self, why: str) -> None:
        self._reachable, self.failure = False, why
        self._on_failure()

    async def _read(self) -> bytes:
        # One deadline for the whole answer, since httpx's own starts again with each byte.
        request = self._client.build_request("GET", self.url, headers={"accept-encoding": "identity"}, timeout=None)
        async with asyncio.timeout(self._timeout_s):
            return await read_bounded(self._client, request, _MAX_BYTES)


def parse(content: bytes) -> dict[tuple[str | None, str], PublicKey]:
    """Return the usable keys of a JWK set by name and algorithm; others are ignored (RFC 7517, 5).

    Raises: ValueError when it is not a JWK set or holds no usable key; RecursionError when it is nested deeply.
    """
    jwk_set = json.loads(content)
    if not isinstance(jwk_set, dict) or not isinstance(jwks := jwk_set.get("keys"), list):
        raise ValueError("not a JWK set")  # noqa: TRY004 - the content is wrong, not the caller
    found = [usable for jwk in jwks if (usable := _usable(jwk))]
    if not found:
        raise ValueError("a JWK set without a usable key")
    return {(kid, alg): key for kid, alg, key in reversed(found)}  # of two with one name, the first


def _usable(jwk: Any) -> tuple[str | None, str, PublicKey] | None:
    """Return a key's name, algorithm and value if it verifies a supported signature, else None."""
    match jwk:
        case {"kty": "RSA"}:
            alg = "RS256"
        case {"kty": "EC", "crv": "P-256"}:
            alg = "ES256"
        case {"kty": "OKP", "crv": "Ed25519"}:
            alg = "EdDSA"
        case _:
            return None
    kid = jwk.get("kid")
    if not (kid is None or isinstance(kid, str)) or not _verifies(jwk, alg):
        return None
    try:
        return kid, alg, _import(jwk)
    except (JoseError, ValueError, TypeError, KeyError):
        return None


def _verifies(jwk: dict[str, Any], alg: str) -> bool:
    """Whether the key's owner means it for such signatures."""
    operations = jwk.get("key_ops", ["verify"])
    return (
        jwk.get("use", "sig") == "sig"
        and jwk.get("alg", alg) == alg
        and isinstance(operations, list)
        and "verify" in operations
    )


def _import(jwk: dict[str, Any]) -> PublicKey:
    if jwk["kty"] == "RSA" and base64_to_int(str(jwk.get("n"))).bit_length() not in RSA_BITS:
        raise ValueError("an RSA key of a size that is not taken")
    # Nothing else of it is read: not a private part published by mistake, no certificate, no odd extension.
    key = JWKRegistry.import_key({name: jwk[name] for name in _PUBLIC_MEMBERS & jwk.keys()})
    assert isinstance(key, PublicKey)
    return key
