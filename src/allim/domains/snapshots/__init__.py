"""Snapshots: pictures of an account, generated in the background by any replica."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from allim.access.rates import Policy
from allim.domains.domain import Domain, Host, Opened
from allim.domains.signals import ACCOUNT_CREATED, ACCOUNT_DELETED
from allim.domains.snapshots.events import EVENTS
from allim.domains.snapshots.generation import KEYS_KEPT_S, Generation
from allim.domains.snapshots.routes import routes
from allim.domains.snapshots.service import Service
from allim.domains.snapshots.settings import SnapshotSettings

__all__ = ["DOMAIN", "KEYS_KEPT_S", "Generation", "Service", "routes"]


@asynccontextmanager
async def _open(host: Host[SnapshotSettings]) -> AsyncIterator[Opened]:
    profile = host.needs["accounts"]
    announce = partial(host.hub.publish, keep_s=KEYS_KEPT_S)
    generation = Generation(
        host.engine, host.work, announce, profile, host.server_id, host.settings.step_ms, now=host.now
    )
    service = Service(host.engine, profile, generation.enqueue, refused=host.metrics.refused, now=host.now)
    host.signals.on(ACCOUNT_CREATED, service.request_in)
    host.signals.on(ACCOUNT_DELETED, service.delete_in)
    yield Opened(routes=routes(service, host.gate, Policy("snapshots", host.settings.per_min, 60)))


DOMAIN = Domain(
    "snapshots",
    _open,
    needs=("accounts",),
    settings=SnapshotSettings,
    events=EVENTS,
    migrations=Path(__file__).parent / "migrations",
)
