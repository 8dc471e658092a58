"""Accounts: registering, signing in and out, also over providers; their sessions."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from allim.access.rates import Policy
from allim.domains.accounts.flows import Flows
from allim.domains.accounts.passwords import Passwords
from allim.domains.accounts.provider_routes import provider_routes
from allim.domains.accounts.routes import routes
from allim.domains.accounts.service import Service, profile
from allim.domains.accounts.settings import PROVIDERS, AccountSettings
from allim.domains.domain import Domain, Host, Opened
from allim.errors import Unusable

if TYPE_CHECKING:
    import httpx

    from allim.domains.accounts.providers import Provider

__all__ = [
    "DOMAIN",
    "Flows",
    "Passwords",
    "Service",
    "profile",
    "provider_routes",
    "routes",
]


@asynccontextmanager
async def _open(host: Host[AccountSettings]) -> AsyncIterator[Opened]:
    settings = host.settings
    service = Service(
        host.engine,
        host.tokens,
        Passwords(),
        host.signals,
        host.hub.sessions,
        settings.operators,
        settings.registration,
        now=host.now,
    )
    async with _providers(host) as providers:
        yield Opened(
            routes=[
                *routes(service, host.gate, host.tokens, Policy("accounts", settings.per_hour, 3600)),
                *provider_routes(
                    providers,
                    Flows(host.secret_keys),
                    service,
                    host.gate,
                    host.tokens.lifetime_s,
                    settings.public_url or "",
                ),
            ],
            door=partial(profile, host.engine),
        )


@asynccontextmanager
async def _providers(host: Host[AccountSettings]) -> "AsyncIterator[list[Provider]]":
    """Open the providers that have an ID and a secret.

    Raises: Unusable.
    """
    names = [name for name in PROVIDERS if getattr(host.settings, f"{name}_client_id")]
    if not names:
        yield []
        return
    from allim.domains.accounts.providers import back_channel  # with Authlib and httpx

    async with back_channel() as http:
        providers = [_provider(name, host.settings, http) for name in names]
        try:
            yield providers
        finally:
            for provider in providers:
                await provider.close()


def _provider(name: str, settings: AccountSettings, http: "httpx.AsyncClient") -> "Provider":
    """Raises: Unusable."""
    from allim.domains.accounts.providers import Provider

    issuer, client_id, client_secret = (
        getattr(settings, f"{name}_{part}") for part in ("issuer", "client_id", "client_secret")
    )
    try:
        return Provider(name, issuer, client_id, client_secret, http)
    except ValueError as error:
        raise Unusable(f"ALLIM_{name.upper()}_ISSUER: {error}") from error


DOMAIN = Domain("accounts", _open, settings=AccountSettings, migrations=Path(__file__).parent / "migrations")
"""Shape: its door is a function that returns the account with an ID as other domains show it, or None."""
