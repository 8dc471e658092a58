"""Accounts: registering, signing in and out, also over providers; their sessions. This is the room's door."""

from allim.domains.accounts.passwords import Passwords
from allim.domains.accounts.provider_routes import provider_routes
from allim.domains.accounts.providers import NAMES as PROVIDERS
from allim.domains.accounts.providers import Flows, Provider, back_channel
from allim.domains.accounts.routes import routes
from allim.domains.accounts.service import FirstSnapshot, Service, profile

__all__ = [
    "PROVIDERS",
    "FirstSnapshot",
    "Flows",
    "Passwords",
    "Provider",
    "Service",
    "back_channel",
    "profile",
    "provider_routes",
    "routes",
]
