"""Snapshots: pictures of an account, generated in the background by any replica. This is the room's door."""

from allim.domains.snapshots.events import EVENTS
from allim.domains.snapshots.generation import KEYS_KEPT_S, Generation
from allim.domains.snapshots.routes import routes
from allim.domains.snapshots.service import Service
from allim.domains.snapshots.work import Worker, open_queue

__all__ = ["EVENTS", "KEYS_KEPT_S", "Generation", "Service", "Worker", "open_queue", "routes"]
