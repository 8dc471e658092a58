"""Snapshots: pictures of an account, generated in the background by any replica. This is the domain's door."""

from allim.domains.snapshots.events import EVENTS
from allim.domains.snapshots.generation import KEYS_KEPT_S, Generation
from allim.domains.snapshots.routes import routes
from allim.domains.snapshots.service import Service

__all__ = ["EVENTS", "KEYS_KEPT_S", "Generation", "Service", "routes"]
