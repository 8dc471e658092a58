"""Signed tokens (JWS) of which nothing is believed yet: their parts, their algorithms, and whether a key signed one.

Source: RFC 7515 (JWS), RFC 8725 (known weaknesses of JWTs).
"""

import json

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from joserfc.jws import CompactSignature, JWSRegistry

from allim.errors import Unauthenticated

SHARED = "HS256"
"""The algorithm with a key that issuer and verifier share."""

PUBLIC = ("RS256", "ES256", "EdDSA")
"""The algorithms with a public key."""

MIN_SECRET_CHARS = 32  # RFC 7518, 3.2: as many bytes as the digest has
MAX_TOKEN_CHARS = 8192

Key = OctKey | RSAKey | ECKey | OKPKey


class Algorithms(JWSRegistry):
    """The signatures that are known here."""

    # Divergence: `EdDSA` leaves the curve open, of which joserfc warns at every use; here it means Ed25519 alone.
    # It may go when issuers write `Ed25519` (RFC 9864).
    algorithms = {  # noqa: RUF012 - as the class above declares it
        **{name: JWSRegistry.algorithms[name] for name in (SHARED, "RS256", "ES256")},
        "EdDSA": JWSRegistry.algorithms["Ed25519"],
    }


# Header parameters that we do not know are ignored (RFC 7515, 4); those we must not ignore say so by `crit`.
ALGORITHMS = Algorithms(algorithms=[SHARED, *PUBLIC], strict_check_header=False)


def opened(token: str) -> CompactSignature:
    """Return the token's parts. Only the types in its header are checked.

    Raises: Unauthenticated.
    """
    if len(token) > MAX_TOKEN_CHARS:
        raise bad_token("too_long")
    try:
        envelope = jws.extract_compact(token.encode(), registry=ALGORITHMS)
        ALGORITHMS.check_header(envelope.protected)
    except (JoseError, ValueError, TypeError, RecursionError):
        raise bad_token("malformed") from None
    if "crit" in envelope.protected:
        raise bad_token("critical")  # an extension that must be understood, and we understand none
    return envelope


def is_signed(envelope: CompactSignature, key: Key) -> bool:
    """Return whether this key signed it, by the header's algorithm, which must be one for keys of this type."""
    try:
        return jws.validate_compact(envelope, key, registry=ALGORITHMS)
    except (JoseError, ValueError):
        return False


def claims_in(payload: bytes) -> dict[str, object]:
    """Return the claims that a token's payload holds.

    Raises: Unauthenticated when they are no JSON object.
    """
    try:
        claims = json.loads(payload.decode())
    except (ValueError, RecursionError):
        raise bad_token("claims") from None
    if not isinstance(claims, dict):
        raise bad_token("claims")
    return claims


def bad_token(reason: str) -> Unauthenticated:
    """Return the refusal of a token. Its text tells nothing; the reason goes to the log."""
    return Unauthenticated("The token is not valid; sign in again.", reason=reason)
