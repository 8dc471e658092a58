"""Tokens, publish keys and the webhook as the settings describe them."""

import hashlib
from collections.abc import Callable, Sequence

from allim.access.authorize import Webhook
from allim.access.issuers import Issuer, JwksKeys, by_name, read_issuers
from allim.access.jwks import Jwks
from allim.access.publishers import SettingsKeys, read_grants
from allim.access.tokens import Tokens
from allim.settings import Settings, naming
from allim.variables import PREFIX


def issuers_of(settings: Settings, on_failure: Callable[[], None] = lambda: None) -> list[Issuer]:
    """Return the trusted issuers. Their keys are closed by the caller, or by the tokens that get them.

    Raises: SettingsError.
    """
    with naming("ISSUERS"):
        issuers = read_issuers(settings.issuers, on_failure)
    if settings.jwt_issuer is not None and settings.jwt_jwks_url is not None:  # until 1.0
        keys = JwksKeys(Jwks(settings.jwt_jwks_url, on_failure=on_failure))
        issuers.append(Issuer(settings.jwt_issuer, keys, settings.jwt_audience))
    return issuers


def tokens_of(settings: Settings, issuers: Sequence[Issuer]) -> Tokens:
    """Raises: SettingsError."""
    keys = (settings.secret_key, *settings.old_secret_keys)
    with naming("ISSUERS"):
        by_name(issuers, keys)
    with naming("OLD_SECRET_KEYS"):
        return Tokens(
            keys,
            settings.session_lifetime_s,
            audience=settings.jwt_audience,
            max_s=settings.session_max_s,
            issuers=issuers,
            named_only=bool(settings.issuers),
        )


def equal_settings(settings: Settings, issuers: Sequence[Issuer]) -> dict[str, str]:
    """Return the settings that must be equal on all replicas, by variable; the issuers as a digest."""
    described = "\n".join(sorted(issuer.described() for issuer in issuers))
    return {**settings.equal(), f"{PREFIX}ISSUERS": hashlib.sha256(described.encode()).hexdigest()[:16]}


def webhook_of(settings: Settings, count: Callable[[str], None] = lambda _: None) -> Webhook | None:
    """Return the webhook that decides on topics, if one is set."""
    if settings.authorize_url is None:
        return None
    return Webhook(settings.authorize_url, settings.authorize_secret, count=count)


def publish_keys_of(settings: Settings) -> SettingsKeys:
    """Raises: SettingsError."""
    with naming("PUBLISH_GRANTS"):
        grants = read_grants(settings.publish_grants)
    with naming("PUBLISH_KEYS"):
        return SettingsKeys(settings.publish_keys, grants)
