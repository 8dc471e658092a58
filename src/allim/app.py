"""Composes the application: the core, then each domain. It knows no domain by name."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from allim.access.authenticate import Authenticate
from allim.access.authorize import Authorize
from allim.access.permission import Rule
from allim.core import Core
from allim.domains.domain import Domain
from allim.embedding import Embedded
from allim.errors import Unauthenticated, Unusable
from allim.http import problems
from allim.http.origins import Origins, headers_without_origin
from allim.http.refused import Refused
from allim.http.requests import Requests
from allim.http.routing import Paths, exact_paths
from allim.selection import select
from allim.server.fast_path import FastPath
from allim.settings import Settings, SettingsError, load_settings
from allim.transports import sse
from allim.variables import PREFIX

log = structlog.get_logger(__name__)


def create_app(
    settings: Settings | None = None,
    rules: Mapping[str, Rule] | None = None,
    domains: Sequence[Domain] | None = None,
    *,
    authenticate: Authenticate | None = None,
    authorize: Authorize | None = None,
) -> Starlette:
    """Return the whole application. Its routes are complete once its lifespan has begun.

    Shape: `domains` are those that ALLIM_DOMAINS names, if none are given. `rules` decide by kind of topic, the part
    before the colon, on topics that the token does not grant. `authenticate` returns the identity of a request, and
    is asked before tokens; `authorize` decides on topics that neither token nor rule grants.
    Raises: SettingsError naming the variable that is wrong.
    """
    settings = settings or load_settings()
    core = Core(settings, select(settings, domains), rules or {}, authenticate, authorize)
    resources = core.resources()
    paths = exact_paths(resources)
    refused = Refused(core.metrics.credentials_refused)
    embedded = Embedded(core.hub)

    def leaving() -> bool:
        return core.hub.draining

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with core.running(), _opened(core) as routes, core.working():
            further = [*routes, *core.closing_resources([*resources, *routes])]
            begin = app.router.routes.index(resources[-1]) + 1  # routes that were added to the application stay
            app.router.routes[begin:begin] = further
            paths.update(exact_paths(further))
            with sse.draining_on_signals(core.hub.drain), embedded.marked_running():
                yield

    app = _Application(
        embedded,
        routes=resources,
        middleware=[
            Middleware(Requests, leaving=leaving),
            Middleware(problems.UnexpectedErrors, note=refused.note),
            Middleware(Origins, listed=settings.cors_origins, headers=settings.cors_headers),
            Middleware(Paths, exact=paths),
        ],
        exception_handlers={**problems.handlers, Unauthenticated: refused.answer},
        lifespan=lifespan,
    )
    app.router.lifespan = partial(_told_in_one_line, app.router.lifespan)  # type: ignore[method-assign]
    app.router.redirect_slashes = False  # its redirects repeat the client's `Host`
    fast_handlers = {
        (method, resource.path): handler
        for resource in resources
        for method, handler in resource.fast_handlers.items()
    }
    app.state.fast_path = partial(FastPath, fast_handlers, headers_without_origin(settings.cors_origins), leaving)
    app.state.leave = core.leave
    app.state.refused = core.metrics.refused
    app.state.settings = settings
    return app


@asynccontextmanager
async def _opened(core: Core) -> AsyncIterator[list[BaseRoute]]:
    """Open the domains one after another, and give their routes. They are closed in the opposite order.

    Raises: SettingsError naming the domain that cannot be opened.
    """
    routes: list[BaseRoute] = []
    doors: dict[str, object] = {}
    async with AsyncExitStack() as stack:
        for domain in core.selection.domains:
            try:
                opened = await stack.enter_async_context(domain.open(core.host(domain, doors)))
                core.add(domain, opened)
            except SettingsError:
                raise
            except Exception as error:
                raise _not_opened(domain, error) from error
            doors[domain.name] = opened.door
            routes += opened.routes
        yield routes


def _not_opened(domain: Domain, error: Exception) -> SettingsError:
    advice = error.advice if isinstance(error, Unusable) else ""
    if not isinstance(error, ValueError):  # a fault of the domain's own
        log.error("domain failed to open", domain=domain.name, exc_info=error)
    reason = str(error) or type(error).__name__
    return SettingsError(f"{PREFIX}DOMAINS: {domain.name} cannot be opened: {reason}", advice)


class _Application(Starlette):
    """The application, which `allim.of` finds by its state."""

    def __init__(self, embedded: Embedded, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.embedded = self.state.allim = embedded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: NotRunning for a request while the lifespan does not run, as when a parent forgot it."""
        if scope["type"] != "lifespan":
            self.embedded.check_running()
        await super().__call__(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """Leave out Starlette's outermost layer, which answers unexpected errors: `UnexpectedErrors` does so."""
        outermost = super().build_middleware_stack()
        assert isinstance(outermost, ServerErrorMiddleware)
        return outermost.app


async def _told_in_one_line(lifespan: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Tell the server in one line why a start is refused, where Starlette gives it a traceback; and nothing of an end
    at once, which a second signal asks for.
    """

    async def send_line(message: Message) -> None:
        error = sys.exc_info()[1]
        if message["type"] == "lifespan.startup.failed" and isinstance(error, SettingsError):
            message = {**message, "message": f"allim: {error}{f' → {error.advice}' if error.advice else ''}"}
        elif message["type"] == "lifespan.shutdown.failed" and isinstance(error, asyncio.CancelledError):
            message = {**message, "message": ""}
        await send(message)

    await lifespan(scope, receive, send_line)
