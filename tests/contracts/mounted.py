"""allim inside somebody else's application, as docs/architecture.md describes it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.routing import Mount

from allim.app import create_app


def create() -> Starlette:
    allim = create_app()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with allim.router.lifespan_context(allim):  # a mounted application's own lifespan is not run
            yield

    return Starlette(routes=[Mount("/notify", allim)], lifespan=lifespan)
