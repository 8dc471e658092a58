"""Accounts: registering, signing in and out, also over providers; their sessions."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx

from allim.access.rates import Policy
from allim.domains.accounts.flows import Flows
from allim.domains.accounts.passwords import Passwords
from allim.domains.accounts.provider_routes import provider_routes
from allim.domains.accounts.providers import NAMES, Provider, back_channel
from allim.domains.accounts.routes import routes
from allim.domains.accounts.service import Service, profile
from allim.domains.accounts.settings import AccountSettings
from allim.domains.domain import Domain, Host, Opened
from allim.errors import Unusable

__all__ = [
    "DOMAIN",
    "Flows",
    "Passwords",
    "Provider",
    "Service",
    "back_channel",
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
    async with back_channel() as http:
        providers = _providers(host, http)
        flows = Flows(host.secret_keys)
        try:
            yield Opened(
                routes=[
                    *routes(service, host.gate, host.tokens, Policy("accounts", settings.per_hour, 3600)),
                    *provider_routes(
                        providers, flows, service, host.gate, host.tokens.lifetime_s, settings.public_url or ""
                    ),
                ],
                door=partial(profile, host.engine),
            )
        finally:
            for provider in providers:
                await provider.close()


def _providers(host: Host[AccountSettings], http: httpx.AsyncClient) -> list[Provider]:
    """Return the providers that have an ID and a secret.

    Raises: Unusable.
    """
    found = []
    for name in NAMES:
        issuer, client_id, client_secret = (
            getattr(host.settings, f"{name}_{part}") for part in ("issuer", "client_id", "client_secret")
        )
        if not client_id:
            continue
        try:
            found.append(Provider(name, issuer, client_id, client_secret, http))
        except ValueError as error:
            raise Unusable(f"ALLIM_{name.upper()}_ISSUER: {error}") from error
    return found


DOMAIN = Domain("accounts", _open, settings=AccountSettings, migrations=Path(__file__).parent / "migrations")
"""Shape: its door is a function that returns the account with an ID as other domains show it, or None."""
