"""Publish keys that operators make, rotate and delete while everything runs. This is the room's door."""

from allim.domains.keys.routes import routes
from allim.domains.keys.service import Service

__all__ = ["Service", "routes"]
