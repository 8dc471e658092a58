"""The wiring: every part is made and joined here. Nobody in the package imports it but `cli`.

`create_app()` is a plain ASGI application. Under `allim serve` streams are handed over; under any other server, or
mounted in another application (whose lifespan must then enter this one's), they go the portable way.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from allim.brokers import durability
from allim.brokers.memory import MemoryBroker
from allim.brokers.redis import RedisBroker
from allim.brokers.server import pool_of
from allim.domains import accounts, snapshots
from allim.http import health, problems, publish
from allim.http.auth import PublishKeys, Tokens
from allim.http.requests import Requests
from allim.hub import Broker, Hub, HubSettings
from allim.settings import Settings, load_settings, naming
from allim.storage import migrate, open_engine, reachable
from allim.telemetry import Metrics
from allim.transports import sse

WORK_SHARE = 0.5  # of the drain time, for snapshots in hand; what is left goes to another replica

PAGE = next(
    (
        folder
        for folder in (Path(__file__).parent / "web", Path(__file__).parents[2] / "web" / "dist")
        if (folder / "index.html").is_file()
    ),
    None,
)


def create_app(settings: Settings | None = None) -> Starlette:
    """The whole application.

    Raises: SettingsError naming the variable that is wrong.
    """
    settings = settings or load_settings()
    metrics = Metrics(settings.server_id)
    with naming("REDIS_URL"):
        hub = Hub(_broker(settings, metrics), metrics, _hub_settings(settings))
        redis_pool = pool_of(settings.redis_url) if settings.redis_url else None
    with naming("DATABASE_URL"):
        engine = open_engine(settings.database_url)
    with naming("PUBLISH_KEYS"):
        publish_keys = PublishKeys(settings.publish_keys)
    tokens = Tokens(settings.secret_key, settings.session_lifetime_s)
    profile = partial(accounts.profile, engine)

    generation = snapshots.Generation(engine, hub.publish, profile, settings.server_id, settings.snapshot_step_ms)
    queue = snapshots.open_queue(redis_pool, f"{settings.redis_prefix}:{{0}}:work", settings.server_id)
    worker = snapshots.Worker(engine, queue, generation.attempt)
    snapshot_service = snapshots.Service(engine, profile, worker.start)
    account_service = accounts.Service(engine, tokens, accounts.Passwords(), snapshot_service, hub.end_session)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            await migrate(engine)
            async with hub.running(), worker.running(settings.drain_s * WORK_SHARE):
                yield
        finally:
            await engine.dispose()

    speech = sse.Speech(settings.server_id, settings.heartbeat_s, settings.retry_ms)
    checks: dict[str, health.Check] = {"hub": hub.check, "store": partial(reachable, engine), "worker": worker.check}
    app = Starlette(
        routes=[
            *accounts.routes(account_service, tokens),
            *snapshots.routes(snapshot_service, tokens),
            *publish.routes(hub, publish_keys),
            *sse.routes(hub, speech, tokens.identify),
            *health.routes(checks),
            _metrics_route(metrics),
            *_page_routes(),
        ],
        middleware=[Middleware(Requests, leaving=lambda: hub.draining), Middleware(problems.UnexpectedErrors)],
        exception_handlers=problems.handlers,
        lifespan=lifespan,
    )

    async def leave(within_s: float) -> None:
        hub.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await asyncio.gather(hub.drained(), worker.leave(settings.drain_s * WORK_SHARE))

    app.state.leave = leave
    return app


async def check(settings: Settings) -> None:
    """What can be wrong with a setting and only shows when the other side is asked: for the start.

    Raises: SettingsError.
    """
    if settings.redis_url is not None:
        with naming("DURABILITY"):
            await durability.check(settings.redis_url, settings.durability)


def _broker(settings: Settings, metrics: Metrics) -> Broker:
    if settings.redis_url is None:
        return MemoryBroker(settings.history_events, settings.history_ttl_s)
    return RedisBroker(
        settings.redis_url,
        settings.server_id,
        metrics,
        prefix=settings.redis_prefix,
        history_events=settings.history_events,
        history_ttl_s=settings.history_ttl_s,
        durability=settings.durability,
        durable=settings.redis_durable,
    )


def _hub_settings(settings: Settings) -> HubSettings:
    return HubSettings(
        heartbeat_s=settings.heartbeat_s,
        pulse_s=settings.pulse_s,
        history_ttl_s=settings.history_ttl_s,
        max_event_bytes=settings.max_event_bytes,
        stream_buffer_bytes=settings.stream_buffer_bytes,
        stream_lifetime_s=settings.stream_lifetime_s,
        drain_s=settings.drain_s,
    )


def _metrics_route(metrics: Metrics) -> Route:
    async def show(_: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Route("/metrics", show)


def _page_routes() -> list[BaseRoute]:
    """The built page. Its paths are named one by one, so that every other unknown path is a plain 404."""
    if PAGE is None:
        return []
    page = PAGE

    async def index(_: Request) -> Response:
        return FileResponse(page / "index.html", headers={"cache-control": "no-cache"})

    async def favicon(_: Request) -> Response:
        return FileResponse(page / "favicon.svg")

    return [
        Route("/", index),
        Route("/favicon.svg", favicon),
        Mount("/assets", StaticFiles(directory=page / "assets")),
    ]
