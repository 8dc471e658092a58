"""The built page and the readable description of the API: routes alone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from allim.domains.domain import Domain, Host, Opened
from allim.domains.page import routes


@asynccontextmanager
async def _open(_: Host[None]) -> AsyncIterator[Opened]:
    yield Opened(routes=routes.routes())


DOMAIN = Domain("page", _open)

__all__ = ["DOMAIN"]
