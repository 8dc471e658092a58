"""Session tokens (JWT): issued here, or by a service that holds the secret, or by one outside issuer.

Owns keys, signatures and claims. Knows no request and no cookie, and not who was signed out since.
Source: RFC 7515 (JWS), RFC 7519 (JWT), RFC 8725 (what goes wrong with them), OpenID Connect Core 2 (`auth_time`).
"""

import base64
import hashlib
import hmac
import json
import math
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from joserfc.jws import CompactSignature, JWSRegistry
from joserfc.util import urlsafe_b64decode, urlsafe_b64encode

from allim.access.jwks import Jwks
from allim.errors import Invalid, Unauthenticated
from allim.identity import CLOCK_LEEWAY_S, OPERATOR, USER, Identity

OURS = "HS256"
THEIRS = ("RS256", "ES256", "EdDSA")

_MIN_SECRET_BYTES = 32  # RFC 7518, 3.2
_MAX_TOKEN_CHARS = 8192
_MAX_TOPICS = 256
_SUBJECT = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_GRANT = re.compile(r"[a-z][a-z0-9_-]*(:(\*|[A-Za-z0-9._~-]{1,128}))?")


@dataclass(frozen=True, slots=True)
class Issuer:
    """An outside issuer whose tokens are taken as ours: it says who somebody is, what they may read, and their role.

    Shape: `name` is its tokens' `iss`, to the letter; `audience` is what their `aud` must be or contain.
    """

    name: str
    jwks: Jwks
    audience: str


class Life(NamedTuple):
    """How long a token is still valid.

    Shape: `renewal_due` when the token is past half of its life and a renewed one would be valid for longer.
    """

    expires_in_s: float
    lifetime_s: float
    renewal_due: bool


class Tokens:
    """Issues, renews and verifies tokens. The algorithm decides whose key may have signed, and nothing else does.

    HS256: one of our keys. RS256, ES256, EdDSA: a key of the outside issuer. Anything else: nobody.
    """

    def __init__(
        self,
        secret_keys: Sequence[str],
        lifetime_s: int,
        *,
        audience: str = "allim",
        max_s: int = 30 * 86400,
        issuer: Issuer | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """The first key signs, all verify: a new one is put first, the old one stays until its tokens have expired.

        Units: `max_s` is how long after its sign-in a session may be renewed.
        Raises: ValueError when a key is short, or there twice, or there is none.
        """
        self._keys = {_kid(secret): _imported(secret) for secret in secret_keys}
        if not self._keys or len(self._keys) < len(secret_keys):
            raise ValueError("there must be a secret key, and none of them twice")
        self._written = {_encoded({}, kid, key).partition(".")[0]: key for kid, key in self._keys.items()}
        self.lifetime_s = lifetime_s
        self._audience = audience
        self.max_s = max_s
        self._issuer = issuer
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
        an outside issuer's, who alone can renew it.
        """
        claims, identity = self._renewable(token)
        kept: dict[str, object] = {name: claims[name] for name in ("sub", "role", "topics", "aud") if name in claims}
        lifetime_s = self._lifetime_s(identity)
        return self._signed({**kept, "sid": identity.session}, _began_at(claims), lifetime_s, after_kick)

    def life(self, token: str, identity: Identity) -> Life:
        """Return how long a token is still valid, whose identity has been verified."""
        now = self._now()
        left_s, lifetime_s = identity.expires_at - now, self._lifetime_s(identity)
        try:
            claims, _ = self._renewable(token)
        except Invalid:  # its issuer alone can renew it
            return Life(left_s, lifetime_s, renewal_due=False)
        began_at = _began_at(claims)
        longest_s = self.max_s if began_at is None else began_at + self.max_s - now
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
        envelope = _opened(token)
        if self._issuer and envelope.protected["alg"] in THEIRS:
            raise Invalid.field("token", "was not issued here; get a new one from its issuer")
        claims = self._claims_by_us(envelope)
        return claims, self._identity(token, claims)

    async def verify(self, token: str) -> Identity:
        """Who the token speaks for. It waits for an outside issuer's keys alone, and only when one is not known.

        A token without `sid` is a session of its own, named by what is signed in it, so that it can be revoked.

        Raises: Unauthenticated, in the same words whatever is wrong, except that an expired token is named;
        Unavailable when the issuer's keys cannot be read.
        """
        return self._identity(token, await self._signed_claims(token))

    async def verify_signature(self, token: str) -> Identity:
        """Return the token's identity by its signature; its times are not judged.

        Raises: as `verify`.
        """
        return _identity_of(token, await self._signed_claims(token))

    async def _signed_claims(self, token: str) -> Mapping[str, object]:
        claims = self._claims_as_written(token)
        if claims is not None:
            return claims
        envelope = _opened(token)
        if envelope.protected["alg"] == OURS:
            return self._claims_by_us(envelope)
        # A `kick` of the outside issuer has another meaning.
        return {**await self._claims_by_issuer(envelope), "kick": None}

    def _signed(
        self, claims: Mapping[str, object], auth_time: float | None, lifetime_s: float, after_kick: float | None
    ) -> str:
        # With fractions, so that a sign-in can be told from a kick within the same second; and never later than now.
        issued_at = math.floor(self._now() * 1000) / 1000
        auth_time = issued_at if auth_time is None else min(auth_time, issued_at)
        expires_at = round(min(issued_at + lifetime_s, auth_time + self.max_s), 3)
        if expires_at <= issued_at:
            raise Unauthenticated("The session has lasted as long as it may; sign in again.", reason="session_max")
        times = {"iat": issued_at, "exp": expires_at, "auth_time": auth_time}
        if after_kick is not None:
            times["kick"] = after_kick
        kid, key = next(iter(self._keys.items()))
        return _encoded({**claims, **times}, kid, key)

    def _claims_as_written(self, token: str) -> dict[str, object] | None:
        """The claims of a good token whose header is, to the letter, as we write it: to judge that anew each time is
        half of a token's cost. None for any other, to be judged from the start.
        """
        signed, _, signature = token.rpartition(".")
        header, _, payload = signed.partition(".")
        key = self._written.get(header)
        if key is None or len(token) > _MAX_TOKEN_CHARS:
            return None
        try:
            ours = urlsafe_b64encode(_OUR_ALGORITHM.sign(signed.encode(), key))
            if not hmac.compare_digest(ours, signature.encode()):
                return None
            claims = _claims(urlsafe_b64decode(payload.encode()))
        except ValueError:
            return None
        return self._meant_for_us(claims)

    def _claims_by_us(self, envelope: CompactSignature) -> dict[str, object]:
        kid = envelope.protected.get("kid")
        if kid is not None and kid not in self._keys:
            raise _bad_token("key")
        keys = self._keys.values() if kid is None else [self._keys[kid]]
        if not any(_is_signed(envelope, key) for key in keys):
            raise _bad_token("signature")
        return self._meant_for_us(_claims(envelope.payload))

    def _meant_for_us(self, claims: dict[str, object]) -> dict[str, object]:
        if self._issuer and claims.get("iss") == self._issuer.name:
            raise _bad_token("issuer")  # its tokens are signed with keys that we do not hold
        if "aud" in claims and not _is_meant_for(self._audience, claims):
            raise _bad_token("audience")
        return claims

    async def _claims_by_issuer(self, envelope: CompactSignature) -> dict[str, object]:
        header, claims = envelope.protected, _claims(envelope.payload)
        if self._issuer is None or header["alg"] not in THEIRS:
            raise _bad_token("algorithm")
        if claims.get("iss") != self._issuer.name:
            raise _bad_token("issuer")  # first of all: such a token is no reason to ask this issuer for its keys
        key = await self._issuer.jwks.key(header.get("kid"), header["alg"])
        if key is None:
            raise _bad_token("key")
        if not _is_signed(envelope, key):
            raise _bad_token("signature")
        if not _is_meant_for(self._issuer.audience, claims):
            raise _bad_token("audience")
        return claims

    def _identity(self, token: str, claims: Mapping[str, object]) -> Identity:
        now, identity = self._now(), _identity_of(token, claims)
        if identity.expires_at <= now:
            raise Unauthenticated("The token has expired; sign in again.", reason="expired")
        latest = now + CLOCK_LEEWAY_S
        if _seconds("nbf", claims.get("nbf", 0)) > latest:
            raise _bad_token("not_before")
        # A later `iat` would be out of a kick's reach, unless the token names its last kick.
        if identity.after_kick is None and identity.issued_at > latest:
            raise _bad_token("issued_at")
        return identity


class Algorithms(JWSRegistry):
    """The signatures that are known here."""

    # Divergence: `EdDSA` leaves the curve open, of which joserfc warns at every use; here it means Ed25519 alone.
    # It may go when issuers write `Ed25519` (RFC 9864).
    algorithms = {  # noqa: RUF012 - as the class above declares it
        **{name: JWSRegistry.algorithms[name] for name in (OURS, "RS256", "ES256")},
        "EdDSA": JWSRegistry.algorithms["Ed25519"],
    }


# Header parameters that we do not know are ignored (RFC 7515, 4); those we must not ignore say so by `crit`.
_ALGORITHMS = Algorithms(algorithms=[OURS, *THEIRS], strict_check_header=False)
_OUR_ALGORITHM = _ALGORITHMS.get_alg(OURS)


def _imported(secret: str) -> OctKey:
    if len(secret.encode()) < _MIN_SECRET_BYTES:
        raise ValueError(f"a secret key must have at least {_MIN_SECRET_BYTES} bytes")
    return OctKey.import_key(secret.encode())


def _kid(secret: str) -> str:
    """A name for the key that tells as little of it as its signatures do."""
    return hashlib.sha256(b"allim token key\0" + secret.encode()).hexdigest()[:16]


def _encoded(claims: Mapping[str, object], kid: str, key: OctKey) -> str:
    return jwt.encode({"alg": OURS, "kid": kid}, {**claims}, key, registry=_ALGORITHMS)


def _opened(token: str) -> CompactSignature:
    """The token's parts, of which nothing is to be believed yet, but that the header has the right types."""
    if len(token) > _MAX_TOKEN_CHARS:
        raise _bad_token("too_long")
    try:
        envelope = jws.extract_compact(token.encode(), registry=_ALGORITHMS)
        _ALGORITHMS.check_header(envelope.protected)
    except (JoseError, ValueError, TypeError, RecursionError):
        raise _bad_token("malformed") from None
    if "crit" in envelope.protected:
        raise _bad_token("critical")  # an extension that must be understood, and we understand none
    return envelope


def _is_signed(envelope: CompactSignature, key: OctKey | RSAKey | ECKey | OKPKey) -> bool:
    """Whether this key signed it, by the header's algorithm, which must be one for keys of this type."""
    try:
        return jws.validate_compact(envelope, key, registry=_ALGORITHMS)
    except (JoseError, ValueError):
        return False


def _claims(payload: bytes) -> dict[str, object]:
    try:
        claims = json.loads(payload.decode())
    except (ValueError, RecursionError):
        raise _bad_token("claims") from None
    if not isinstance(claims, dict):
        raise _bad_token("claims")
    return claims


def _own_session(token: str) -> str:
    # Of what is signed, without the signature: anybody can turn an ECDSA signature into another that fits (n - s for
    # s), and with it would get out of a revoked session.
    signed, _, _ = token.rpartition(".")
    return "t." + base64.urlsafe_b64encode(hashlib.sha256(signed.encode()).digest()).decode()[:22]


def _is_meant_for(audience: str, claims: Mapping[str, object]) -> bool:
    named = claims.get("aud")
    return audience in named if isinstance(named, list) else audience == named


def _identity_of(token: str, claims: Mapping[str, object]) -> Identity:
    """Return the identity in the claims, without judging their times."""
    return Identity(
        subject=_matching("sub", _SUBJECT, claims.get("sub")),
        session=_matching("sid", _SUBJECT, claims["sid"]) if "sid" in claims else _own_session(token),
        expires_at=_seconds("exp", claims.get("exp")),
        topics=_topics(claims.get("topics", [])),
        role=_role(claims.get("role", USER)),
        issued_at=_seconds("iat", claims.get("iat", 0)),
        after_kick=None if claims.get("kick") is None else _seconds("kick", claims["kick"]),
    )


def _seconds(name: str, claim: object) -> float:
    if type(claim) is float and math.isfinite(claim):
        return claim
    if type(claim) is int:
        with suppress(OverflowError):
            return float(claim)
    raise _bad_token(f"claim_{name}")


def _began_at(claims: Mapping[str, object]) -> float | None:
    """Return when the session began, in Unix seconds; None if its token does not say."""
    return next((_seconds(name, claims[name]) for name in ("auth_time", "iat") if name in claims), None)


def _topics(claim: object) -> tuple[str, ...]:
    if not isinstance(claim, list) or len(claim) > _MAX_TOPICS:
        raise _bad_token("claim_topics")
    return tuple(_matching("topics", _GRANT, topic) for topic in claim)


def _role(claim: object) -> str:
    if claim == OPERATOR:
        return OPERATOR
    if claim == USER:
        return USER
    raise _bad_token("claim_role")


def _matching(name: str, form: re.Pattern[str], claim: object) -> str:
    if not isinstance(claim, str) or not form.fullmatch(claim):
        raise _bad_token(f"claim_{name}")
    return claim


def _bad_token(reason: str) -> Unauthenticated:
    return Unauthenticated("The token is not valid; sign in again.", reason=reason)
