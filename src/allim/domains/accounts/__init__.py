"""Accounts: registering, signing in and out. This is the room's door."""

from allim.domains.accounts.passwords import Passwords
from allim.domains.accounts.routes import routes
from allim.domains.accounts.service import FirstSnapshot, Service, profile

__all__ = ["FirstSnapshot", "Passwords", "Service", "profile", "routes"]
