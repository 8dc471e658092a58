"""Session tokens (JWT): issued here, or by one of the trusted issuers.

Owns allim's keys, and decides which issuer judges a token. Knows no request, no cookie and no ended session.
Source: RFC 7515 (JWS), RFC 7519 (JWT), RFC 8725 (best practices), OpenID Connect Core 2 (`auth_time`).
"""

import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import structlog
from joserfc import jwt
from joserfc.jwk import OctKey
from joserfc.jws import CompactSignature
from joserfc.util import urlsafe_b64decode, urlsafe_b64encode

from allim.access.claims import began_at, check_times, identity_of, is_meant_for
from allim.access.issuers import Issuer, by_name
from allim.access.signatures import (
    ALGORITHMS,
    MAX_TOKEN_CHARS,
    MIN_SECRET_CHARS,
    SHARED,
    bad_token,
    claims_in,
    is_signed,
    opened,
)
from allim.errors import Invalid, Unauthenticated
from allim.identity import ALLIM, USER, Identity

log = structlog.get_logger(__name__)

_OUR_ALGORITHM = ALGORITHMS.get_alg(SHARED)


class Life(NamedTuple):
    """How long a token is still valid.

    Shape: `renewal_due` when the token is past half of its life and a renewed one would be valid for longer.
    """

    expires_in_s: float
    lifetime_s: float
    renewal_due: bool


class Tokens:
    """Issues, renews and verifies tokens. The issuer that a token names decides which keys may have signed it.

    Allim's own tokens name `allim`. Tokens from before that name no issuer, but one of allim's keys.
    """

    def __init__(
        self,
        secret_keys: Sequence[str],
        lifetime_s: int,
        *,
        audience: str = "allim",
        max_s: int = 30 * 86400,
        issuers: Sequence[Issuer] = (),
        named_only: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        """The first key signs, all verify: a new one is put first, the old one stays until its tokens have expired.

        Shape: until 1.0 a service that holds one of `secret_keys` may sign with it: a token without `iss`, and,
        unless `named_only`, one with an unknown `iss`. Its `aud`, if there is one, must name `audience`.
        Units: `max_s` is how long after its sign-in a session may be renewed.
        Raises: ValueError when a key is short, or there twice, or there is none; the errors of `by_name`.
        """
        self._keys = {_kid(secret): _imported(secret) for secret in secret_keys}
        if not self._keys or len(self._keys) < len(secret_keys):
            raise ValueError("there must be a secret key, and none of them twice")
        self._written = {_encoded({}, kid, key).partition(".")[0]: key for kid, key in self._keys.items()}
        self._issuers = by_name(issuers, secret_keys)
        self._named_only = named_only
        self._shares_key = False  # whether a token was seen that another service signed with allim's key
        self.lifetime_s = lifetime_s
        self._audience = audience
        self.max_s = max_s
        self._now = now

    def issue(
        self,
        subject: str,
        *,
        session: str | None = None,
        role: str = USER,
        topics: Sequence[str] = (),
        auth_time: float | None = None,
        after_kick: float | None = None,
    ) -> str:
        """A token of `subject`, for a new session unless one is named, good until `auth_time + max_s` at most.

        Shape: `after_kick` is as in `Identity`.
        Units: `auth_time` in Unix seconds: when the person signed in; now, if not given.
        Raises: Unauthenticated when that is longer ago than a session may last.
        """
        claims: dict[str, object] = {"sub": subject, "sid": session or secrets.token_urlsafe(16)}
        if role != USER:
            claims["role"] = role
        if topics:
            claims["topics"] = list(topics)
        return self._signed(claims, auth_time, self.lifetime_s, after_kick)

    def renew(self, token: str, after_kick: float | None = None) -> str:
        """A new token of the same session, with the rights, the sign-in time and the audience of the old one.

        It lasts as long as the old one did from `iat` to `exp`, and never longer than ours do: a service that issues
        tokens for five minutes gets five minutes again. (So a longer `lifetime_s` counts from the next sign-in on.)
        Where `auth_time` is missing, `iat` counts as the sign-in; where both are, the first renewal does.

        Raises: Unauthenticated when it is expired or not valid, or its session has lasted `max_s`; Invalid when it is
        another issuer's, which alone can renew it.
        """
        claims, identity = self._renewable(token)
        kept: dict[str, object] = {name: claims[name] for name in ("sub", "role", "topics", "aud") if name in claims}
        lifetime_s = self._lifetime_s(identity)
        return self._signed({**kept, "sid": identity.session}, began_at(claims), lifetime_s, after_kick)

    def life(self, token: str | None, identity: Identity) -> Life:
        """Return how long a verified identity is still valid, and whether its token is to be renewed."""
        now = self._now()
        left_s, lifetime_s = identity.expires_at - now, self._lifetime_s(identity)
        if token is None or identity.issuer != ALLIM:  # its issuer alone can renew it
            return Life(left_s, lifetime_s, renewal_due=False)
        claims, _ = self._renewable(token)
        began = began_at(claims)
        longest_s = self.max_s if began is None else began + self.max_s - now
        gained_s = min(lifetime_s, longest_s) - left_s
        return Life(left_s, lifetime_s, renewal_due=left_s < lifetime_s / 2 and gained_s > 1)

    def _lifetime_s(self, identity: Identity) -> float:
        """Return how long a renewed token is valid: as long as the one before it."""
        told_s = identity.expires_at - identity.issued_at
        return min(self.lifetime_s, told_s) if identity.issued_at else self.lifetime_s

    def may_renew(self, token: str) -> Identity:
        """Return the token's identity, if the token may be renewed here.

        Raises: as `renew`.
        """
        return self._renewable(token)[1]

    def _renewable(self, token: str) -> tuple[Mapping[str, object], Identity]:
        claims = self._claims_as_written(token)
        if claims is None:
            envelope = opened(token)
            claims = claims_in(envelope.payload)
            if self._issuer_of(envelope, claims) is not None:
                raise Invalid.field("token", "was not issued here; get a new one from its issuer")
            self._check_ours(envelope, claims)
        return claims, check_times(identity_of(token, claims), claims, self._now())

    async def verify(self, token: str) -> Identity:
        """Return the token's identity. It waits for an issuer's keys alone, and only when one is not known.

        Raises: Unauthenticated, with the same text for each fault, except that an expired token is named;
        Unavailable when the issuer's keys cannot be read.
        """
        identity, claims = await self._read(token)
        return check_times(identity, claims, self._now())

    async def verify_signature(self, token: str) -> Identity:
        """Return the token's identity by its signature; its times are not judged.

        Raises: as `verify`.
        """
        return (await self._read(token))[0]

    def not_expired(self, identity: Identity) -> Identity:
        """Return an identity that came without a token, if it is good at this moment.

        Raises: Unauthenticated.
        """
        return check_times(identity, {}, self._now())

    async def close(self) -> None:
        """Stop reading the issuers' keys."""
        for issuer in self._issuers.values():
            await issuer.keys.close()

    async def _read(self, token: str) -> tuple[Identity, Mapping[str, object]]:
        """Return the identity for which the token's issuer signed, and the claims."""
        claims = self._claims_as_written(token)
        if claims is None:
            envelope = opened(token)
            claims = claims_in(envelope.payload)
            issuer = self._issuer_of(envelope, claims)
            if issuer is not None:
                return await issuer.identity(token, envelope, claims), claims
            self._check_ours(envelope, claims)
        return identity_of(token, claims), claims

    def _issuer_of(self, envelope: CompactSignature, claims: Mapping[str, object]) -> Issuer | None:
        """Return the issuer that judges the token, None for allim itself. Nothing of the token is believed yet.

        Raises: Unauthenticated when its issuer is not known here.
        """
        name = claims.get("iss")
        if name == ALLIM or (name is None and envelope.protected.get("kid") in self._keys):
            return None
        issuer = self._issuers.get(name) if name is None or isinstance(name, str) else None
        shares_key = not self._named_only and envelope.protected["alg"] == SHARED
        if issuer is None and name is not None and not shares_key:
            raise bad_token("issuer")
        return issuer

    def _signed(
        self, claims: Mapping[str, object], auth_time: float | None, lifetime_s: float, after_kick: float | None
    ) -> str:
        # With fractions, so that a sign-in can be told from a kick within the same second; and never later than now.
        issued_at = math.floor(self._now() * 1000) / 1000
        auth_time = issued_at if auth_time is None else min(auth_time, issued_at)
        expires_at = round(min(issued_at + lifetime_s, auth_time + self.max_s), 3)
        if expires_at <= issued_at:
            raise Unauthenticated("The session has lasted as long as it may; sign in again.", reason="session_max")
        signed = {"iss": ALLIM, **claims, "iat": issued_at, "exp": expires_at, "auth_time": auth_time}
        if after_kick is not None:
            signed["kick"] = after_kick
        kid, key = next(iter(self._keys.items()))
        return _encoded(signed, kid, key)

    def _claims_as_written(self, token: str) -> dict[str, object] | None:
        """Return the claims of a good token whose header is, to the letter, as we write it: to judge that anew each
        time is half of a token's cost. None for any other, to be judged from the start.
        """
        signed, _, signature = token.rpartition(".")
        header, _, payload = signed.partition(".")
        key = self._written.get(header)
        if key is None or len(token) > MAX_TOKEN_CHARS:
            return None
        try:
            ours = urlsafe_b64encode(_OUR_ALGORITHM.sign(signed.encode(), key))
            if not hmac.compare_digest(ours, signature.encode()):
                return None
            claims = claims_in(urlsafe_b64decode(payload.encode()))
        except ValueError:
            return None
        if claims.get("iss", ALLIM) != ALLIM:
            return None
        self._check_audience(claims)
        return claims

    def _check_ours(self, envelope: CompactSignature, claims: Mapping[str, object]) -> None:
        """Raises: Unauthenticated unless one of allim's keys signed the token."""
        if envelope.protected["alg"] != SHARED:
            raise bad_token("algorithm")
        kid = envelope.protected.get("kid")
        if kid is not None and kid not in self._keys:
            raise bad_token("key")
        keys = self._keys.values() if kid is None else [self._keys[kid]]
        if not any(is_signed(envelope, key) for key in keys):
            raise bad_token("signature")
        self._check_audience(claims)
        if not self._shares_key and claims.get("iss") != ALLIM and kid is None:
            self._shares_key = True
            log.warning("token signed elsewhere with ALLIM_SECRET_KEY", issuer=claims.get("iss"))

    def _check_audience(self, claims: Mapping[str, object]) -> None:
        if "aud" in claims and not is_meant_for(self._audience, claims):
            raise bad_token("audience")


def _imported(secret: str) -> OctKey:
    if len(secret.encode()) < MIN_SECRET_CHARS:
        raise ValueError(f"a secret key must have at least {MIN_SECRET_CHARS} bytes")
    return OctKey.import_key(secret.encode())


def _kid(secret: str) -> str:
    """A name for the key that tells as little of it as its signatures do."""
    return hashlib.sha256(b"allim token key\0" + secret.encode()).hexdigest()[:16]


def _encoded(claims: Mapping[str, object], kid: str, key: OctKey) -> str:
    return jwt.encode({"alg": SHARED, "kid": kid}, {**claims}, key, registry=ALGORITHMS)
