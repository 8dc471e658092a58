"""Tokens and publish keys as the settings describe them."""

from collections.abc import Callable

from allim.access.jwks import Jwks
from allim.access.publishers import SettingsKeys, read_grants
from allim.access.tokens import Issuer, Tokens
from allim.settings import Settings, naming


def issuer_of(settings: Settings, on_failure: Callable[[], None] = lambda: None) -> Issuer | None:
    """The outside issuer, if one is set. Its keys are closed by the caller."""
    if settings.jwt_issuer is None or settings.jwt_jwks_url is None:
        return None
    return Issuer(settings.jwt_issuer, Jwks(settings.jwt_jwks_url, on_failure=on_failure), settings.jwt_audience)


def tokens_of(settings: Settings, issuer: Issuer | None) -> Tokens:
    """Raises: SettingsError."""
    with naming("OLD_SECRET_KEYS"):
        return Tokens(
            (settings.secret_key, *settings.old_secret_keys),
            settings.session_lifetime_s,
            audience=settings.jwt_audience,
            max_s=settings.session_max_s,
            issuer=issuer,
        )


def publish_keys_of(settings: Settings) -> SettingsKeys:
    """Raises: SettingsError."""
    with naming("PUBLISH_GRANTS"):
        grants = read_grants(settings.publish_grants)
    with naming("PUBLISH_KEYS"):
        return SettingsKeys(settings.publish_keys, grants)
