"""Examines a session token: which check fails here."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from joserfc.util import urlsafe_b64decode

from allim.access.claims import value_at
from allim.access.issuers import Issuer, JwksKeys
from allim.access.signatures import SHARED
from allim.brokers.redis import RedisLedger
from allim.brokers.redis.rights import Rights
from allim.credentials import issuers_of, tokens_of
from allim.doctor.finding import Finding
from allim.errors import Unauthenticated, Unavailable
from allim.http.refused import REASONS
from allim.hub import SessionState
from allim.identity import ALLIM, CLOCK_LEEWAY_S, Identity
from allim.settings import Settings

TIMEOUT_S = 5.0
_TIMES = ("iat", "nbf", "exp", "auth_time")
_TOLD = ("sub", "iss", "aud", *_TIMES, "sid", "role", "topics")
_CLOCK = "set the clocks of the issuer's machine and of this one, by NTP"
_ADVICE = {
    "too_long": "grant fewer topics",
    "malformed": "give the token alone, as it stands behind `Bearer`; a cookie's value, without its name",
    "key": "see that the issuer's `jwksUrl` lists this `kid`; of allim's own: ALLIM_SECRET_KEY has changed, and the "
    "old key is not in ALLIM_OLD_SECRET_KEYS",
    "signature": "give the issuer's entry in ALLIM_ISSUERS the key that it signs with; of allim's own: an old key "
    'goes into ALLIM_OLD_SECRET_KEYS. A token without `iss` belongs to the entry with `"issuer": null`',
    "issuer": "list the issuer in ALLIM_ISSUERS, to the letter as the token has it, also a slash at its end; "
    '`"issuer": null` is for tokens without `iss`',
    "audience": "write what the token has in `aud` as `audience` into the issuer's entry in ALLIM_ISSUERS",
    "algorithm": "let the issuer sign by an algorithm for which its entry in ALLIM_ISSUERS has keys",
    "expired": f"sign in again, or renew earlier; if it is new: {_CLOCK}",
    "not_before": _CLOCK,
    "issued_at": _CLOCK,
    "critical": "let the issuer leave `crit` out",
}


async def examine_token(token: str, settings: Settings) -> list[Finding]:
    """Return the token's claims, the check that refuses it, and whether its session was ended."""
    issuers = issuers_of(settings)
    findings = [_says(token), _wants(token, settings, issuers)]
    tokens = tokens_of(settings, issuers)
    try:
        identity = await tokens.verify(token)
    except Unauthenticated as error:
        advice = _ADVICE.get(error.reason, "let the issuer write the claim in this form")
        return [*findings, Finding("token check", False, f"{error.reason}: {REASONS[error.reason]}", advice)]
    except Unavailable as error:
        advice = "see that the issuer's `jwksUrl` answers with a JWK set"
        return [*findings, Finding("token check", False, f"{error.detail} {_not_read(issuers)}", advice)]
    finally:
        await tokens.close()
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


def _wants(token: str, settings: Settings, issuers: Sequence[Issuer]) -> Finding:
    """Return the tokens that the server takes from this token's issuer, or the issuers that it knows."""
    name = (_part(token, 1) or {}).get("iss")
    entry = next((issuer for issuer in issuers if issuer.name == name), None)
    if entry is not None:
        told = _entry(entry, _part(token, 1) or {})
    elif name is None or name == ALLIM:
        told = [f"{SHARED} by {1 + len(settings.old_secret_keys)} secret key(s) of allim itself"]
    else:
        told = [f"tokens of {', '.join([ALLIM, *(_named(issuer.name) for issuer in issuers)])}"]
    told.append(f"clocks within {CLOCK_LEEWAY_S:.0f} s; here it is {_moment(time.time())}")
    return Finding("token server", True, "takes " + "; ".join(told))


def _entry(issuer: Issuer, claims: Mapping[str, object]) -> list[str]:
    where = f" by keys of {issuer.keys.jwks.url}" if isinstance(issuer.keys, JwksKeys) else ""
    names = issuer.names
    says = {"subject": names.subject, "topics": names.topics, "role": names.role}
    return [
        f"{', '.join(issuer.keys.algorithms)}{where} of {_named(issuer.name)}",
        f"aud {issuer.audience}" if issuer.audience else "no aud",
        *(f"{name} in {path}: {_value('', value_at(claims, path))}" for name, path in says.items() if path),
    ]


def _named(name: str | None) -> str:
    return "tokens without iss" if name is None else name


def _not_read(issuers: Sequence[Issuer]) -> str:
    """Return why the keys of issuers could not be read."""
    sets = [issuer.keys.jwks for issuer in issuers if isinstance(issuer.keys, JwksKeys)]
    return "; ".join(f"{jwks.url}: {jwks.failure}" for jwks in sets if jwks.failure)


async def _session(identity: Identity, settings: Settings) -> Finding:
    """Whether the session was ended, as all replicas remember it."""
    if settings.redis_url is None:
        return Finding("token session", True, "only the running process knows whether it was ended: see --url")
    rights = Rights(settings.redis_prefix, settings.durability, quiet=True)
    ledger = RedisLedger(settings.redis_url, "doctor", prefix=settings.redis_prefix, rights=rights)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            [state] = await ledger.session_states([identity])
    except (Unavailable, TimeoutError) as error:
        return Finding(
            "token session", False, f"Redis does not tell whether it was ended: {error}", "see redis above"
        )
    finally:
        await ledger.close()
    if state is SessionState.GOOD:
        return Finding("token session", True, "not ended")
    return Finding("token session", False, f"{state}: {REASONS[state]}", "sign in again")


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
