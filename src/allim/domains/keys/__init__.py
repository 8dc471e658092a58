"""Publish keys that operators make, rotate and delete while everything runs.

It needs no accounts: an operator is the holder of a token with that role, from whichever issuer.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from allim.domains.domain import Domain, Host, Opened
from allim.domains.keys.routes import routes
from allim.domains.keys.service import Service
from allim.domains.signals import ACCOUNT_DELETED

__all__ = ["DOMAIN", "Service", "routes"]


@asynccontextmanager
async def _open(host: Host[None]) -> AsyncIterator[Opened]:
    service = Service(host.engine, now=host.now)
    host.signals.on(ACCOUNT_DELETED, service.delete_in)
    yield Opened(routes=routes(service, host.gate), publishers=service.publisher)


DOMAIN = Domain("keys", _open, migrations=Path(__file__).parent / "migrations")
