"""Snapshots: pictures of an account, generated in the background by any replica."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from pydantic import Field

from allim.access.rates import Policy
from allim.domains.domain import Domain, Host, Opened
from allim.domains.settings import EQUAL, DomainSettings, renamed
from allim.domains.signals import ACCOUNT_CREATED, ACCOUNT_DELETED
from allim.domains.snapshots.events import EVENTS
from allim.domains.snapshots.generation import KEYS_KEPT_S, Generation
from allim.domains.snapshots.routes import routes
from allim.domains.snapshots.service import Service

__all__ = ["DOMAIN", "KEYS_KEPT_S", "Generation", "Service", "routes"]


class SnapshotSettings(DomainSettings):
    """Units: `step_ms` in milliseconds, added to each of the three steps."""

    per_min: int = Field(20, ge=1, le=100_000, json_schema_extra=EQUAL)
    step_ms: int = Field(0, ge=0, le=60_000, json_schema_extra=renamed("ALLIM_SNAPSHOT_STEP_MS"))


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
