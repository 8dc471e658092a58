"""Examines a session token: which check fails here."""

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import Any

from joserfc.util import urlsafe_b64decode

from allim.access.tokens import OURS, THEIRS
from allim.brokers.redis import RedisLedger
from allim.brokers.redis.rights import Rights
from allim.credentials import issuer_of, tokens_of
from allim.doctor.finding import Finding
from allim.errors import Unauthenticated, Unavailable
from allim.http.refused import REASONS
from allim.hub import Standing
from allim.identity import CLOCK_LEEWAY_S, Identity
from allim.settings import Settings

TIMEOUT_S = 5.0
_TIMES = ("iat", "nbf", "exp", "auth_time")
_TOLD = ("sub", "iss", "aud", *_TIMES, "sid", "role", "topics")
_CLOCK = "set the clocks of the issuer's machine and of this one, by NTP"
_ADVICE = {
    "too_long": "grant fewer topics",
    "malformed": "give the token alone, as it stands behind `Bearer`; a cookie's value, without its name",
    "key": "let the issuer sign with a key of ALLIM_SECRET_KEY or ALLIM_OLD_SECRET_KEYS, or drop `kid`; "
    "for an outside issuer, see its ALLIM_JWT_JWKS_URL",
    "signature": "give issuer and replicas the same ALLIM_SECRET_KEY; an old key goes into ALLIM_OLD_SECRET_KEYS",
    "issuer": "write ALLIM_JWT_ISSUER to the letter as the token has it, also a slash at its end",
    "audience": "let the issuer write ALLIM_JWT_AUDIENCE into `aud`, or set ALLIM_JWT_AUDIENCE",
    "expired": f"sign in again, or renew earlier; if it is new: {_CLOCK}",
    "not_before": _CLOCK,
    "issued_at": _CLOCK,
    "critical": "let the issuer leave `crit` out",
}


async def examine_token(token: str, settings: Settings) -> list[Finding]:
    """Return the token's claims, the check that refuses it, and whether its session was ended."""
    findings = [_says(token), _wants(settings)]
    issuer = issuer_of(settings)
    try:
        identity = await tokens_of(settings, issuer).verify(token)
    except Unauthenticated as error:
        advice = _ADVICE.get(error.reason, "let the issuer write the claim in this form")
        if error.reason == "algorithm":
            advice = _advice_on_algorithm(token, settings)
        return [*findings, Finding("token check", False, f"{error.reason}: {REASONS[error.reason]}", advice)]
    except Unavailable as error:
        said = issuer.jwks.failure if issuer else ""
        detail = f"{error.detail} {settings.jwt_jwks_url}: {said}"
        return [
            *findings,
            Finding("token check", False, detail, "see that ALLIM_JWT_JWKS_URL answers with a JWK set"),
        ]
    finally:
        if issuer is not None:
            await issuer.jwks.close()
    left_s = identity.expires_at - time.time()
    topics = ", ".join([*identity.own_topics(), *identity.topics])
    check = Finding("token check", True, f"good for {_span(left_s)}; reads {topics}; role {identity.role}")
    return [*findings, check, await _session(identity, settings)]


def _says(token: str) -> Finding:
    """The header and the claims, as far as they can be read; none of it is proven."""
    header, claims = (_part(token, number) for number in (0, 1))
    if header is None or claims is None:
        return Finding(
            "token says", False, f"nothing that can be read, in {len(token)} characters", _ADVICE["malformed"]
        )
    told = [f"{name} {header[name]}" for name in ("alg", "kid") if name in header]
    told += [f"{name} {_value(name, claims[name])}" for name in _TOLD if name in claims]
    return Finding("token says", True, "; ".join(told))


def _wants(settings: Settings) -> Finding:
    """Return the limits of the server."""
    told = [f"{OURS} by {1 + len(settings.old_secret_keys)} secret key(s)"]
    if settings.jwt_issuer is not None:
        told.append(f"{', '.join(THEIRS)} by keys of {settings.jwt_jwks_url}, with iss {settings.jwt_issuer}")
    told += [
        f"aud {settings.jwt_audience}",
        f"clocks within {CLOCK_LEEWAY_S:.0f} s; here it is {_moment(time.time())}",
    ]
    return Finding("token server", True, "takes " + "; ".join(told))


async def _session(identity: Identity, settings: Settings) -> Finding:
    """Whether the session was ended, as all replicas remember it."""
    if settings.redis_url is None:
        return Finding("token session", True, "only the running process knows whether it was ended: see --url")
    rights = Rights(settings.redis_prefix, settings.durability, quiet=True)
    ledger = RedisLedger(settings.redis_url, "doctor", prefix=settings.redis_prefix, rights=rights)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            [standing] = await ledger.standings([identity])
    except (Unavailable, TimeoutError) as error:
        return Finding(
            "token session", False, f"Redis does not tell whether it was ended: {error}", "see redis above"
        )
    finally:
        await ledger.close()
    if standing is Standing.GOOD:
        return Finding("token session", True, "not ended")
    return Finding("token session", False, f"{standing}: {REASONS[standing]}", "sign in again")


def _advice_on_algorithm(token: str, settings: Settings) -> str:
    alg = (_part(token, 0) or {}).get("alg")
    if alg in THEIRS and settings.jwt_issuer is None:
        return "set ALLIM_JWT_ISSUER and ALLIM_JWT_JWKS_URL for this issuer"
    return f"let the issuer sign by {OURS} with ALLIM_SECRET_KEY, or by {', '.join(THEIRS)} with a key of its own"


def _part(token: str, number: int) -> dict[str, Any] | None:
    try:
        part = json.loads(urlsafe_b64decode(token.split(".")[number].encode()))
    except (ValueError, IndexError, RecursionError):
        return None
    return part if isinstance(part, dict) else None


def _value(name: str, claim: object) -> str:
    if name in _TIMES and isinstance(claim, int | float) and not isinstance(claim, bool):
        since_s = time.time() - claim
        return f"{_moment(claim)} ({f'{_span(since_s)} ago' if since_s >= 0 else f'in {_span(-since_s)}'})"
    text = json.dumps(claim, ensure_ascii=True)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _moment(unix_s: float) -> str:
    try:
        return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return str(unix_s)


def _span(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
