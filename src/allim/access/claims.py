"""The claims of a verified token: their forms, the names they have at an issuer, and the identity they make.

Source: RFC 7519 (JWT), OpenID Connect Core 2 (`auth_time`).
"""

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from allim.access.signatures import bad_token
from allim.errors import Unauthenticated
from allim.hub import KEY_FORM
from allim.identity import CLOCK_LEEWAY_S, OPERATOR, USER, Identity, is_name

MAX_TOPICS = 256
_GRANT = re.compile(rf"[a-z][a-z0-9_-]*(:(\*|{KEY_FORM}))?")


class ClaimNames(NamedTuple):
    """Which claims hold the subject, the topics and the role.

    Shape: each is the name of a claim, or a path with dots into nested objects; a claim whose own name has the dots
    comes first. "" for a role that is not read. `operator` is the role that makes an operator.
    """

    subject: str = "sub"
    topics: str = "topics"
    role: str = "role"
    operator: str = OPERATOR


OUR_NAMES = ClaimNames()


def identity_of(token: str, claims: Mapping[str, object], names: ClaimNames = OUR_NAMES) -> Identity:
    """Return the identity in the claims, without judging their times.

    A token without `sid` is a session of its own, named by its signed part, so that it can be revoked.
    Raises: Unauthenticated.
    """
    topics = value_at(claims, names.topics)
    return Identity(
        subject=_name("sub", value_at(claims, names.subject)),
        session=_name("sid", claims["sid"]) if "sid" in claims else _own_session(token),
        expires_at=seconds("exp", claims.get("exp")),
        topics=() if topics is None else _topics(topics),
        role=_role(value_at(claims, names.role), names.operator) if names.role else USER,
        issued_at=seconds("iat", claims.get("iat", 0)),
        after_kick=None if claims.get("kick") is None else seconds("kick", claims["kick"]),
    )


def check_times(identity: Identity, claims: Mapping[str, object], now: float) -> Identity:
    """Return the identity if its token is valid at this moment.

    Raises: Unauthenticated.
    """
    if identity.expires_at <= now:
        raise Unauthenticated("The token has expired; sign in again.", reason="expired")
    latest = now + CLOCK_LEEWAY_S
    if seconds("nbf", claims.get("nbf", 0)) > latest:
        raise bad_token("not_before")
    # A later `iat` would be out of a kick's reach, unless the token names its last kick.
    if identity.after_kick is None and identity.issued_at > latest:
        raise bad_token("issued_at")
    return identity


def is_meant_for(audience: str, claims: Mapping[str, object]) -> bool:
    """Return whether `aud` is this audience or holds it."""
    named = claims.get("aud")
    return audience in named if isinstance(named, list) else audience == named


def value_at(claims: Mapping[str, object], path: str) -> object:
    """Return the claim of this name, or the value at this path with dots; None if there is none."""
    if path in claims or "." not in path:
        return claims.get(path)
    value: object = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def seconds(name: str, claim: object) -> float:
    """Return a moment in Unix seconds.

    Raises: Unauthenticated.
    """
    if type(claim) is float and math.isfinite(claim):
        return claim
    if type(claim) is int:
        with suppress(OverflowError):
            return float(claim)
    raise bad_token(f"claim_{name}")


def began_at(claims: Mapping[str, object]) -> float | None:
    """Return when the session began, in Unix seconds; None if its token does not say."""
    return next((seconds(name, claims[name]) for name in ("auth_time", "iat") if name in claims), None)


def is_grant(topic: object) -> bool:
    """Return whether it is a topic that a token may grant: exact, or `prefix:*`."""
    return isinstance(topic, str) and _GRANT.fullmatch(topic) is not None


def _topics(claim: object) -> tuple[str, ...]:
    if not isinstance(claim, list) or len(claim) > MAX_TOPICS or not all(map(is_grant, claim)):
        raise bad_token("claim_topics")
    return tuple(claim)


def _role(claim: object, operator: str) -> str:
    """Shape: a role, or a list of roles. Those that are not known here give no right, and refuse nothing."""
    roles = claim if isinstance(claim, list) else [claim]
    return OPERATOR if operator in roles else USER


def _name(name: str, claim: object) -> str:
    """Shape: a text, or a whole number, which becomes its decimal text."""
    text = str(claim) if type(claim) is int else claim
    if not isinstance(text, str) or not is_name(text):
        raise bad_token(f"claim_{name}")
    return text


def _own_session(token: str) -> str:
    # Of the signed part, without the signature: any client can turn an ECDSA signature into another valid one (n - s
    # for s), and would leave a revoked session with it.
    signed, _, _ = token.rpartition(".")
    return "t." + base64.urlsafe_b64encode(hashlib.sha256(signed.encode()).digest()).decode()[:22]
