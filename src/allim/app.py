"""The wiring: every part is made and joined here. Nobody in the package imports it but `cli`.

`create_app()` is a plain ASGI application. Under `allim serve` streams are handed over; under any other server, or
mounted in another application (whose lifespan must then enter this one's), they go the portable way.
"""

import asyncio
import os
import resource
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

import httpx
import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from allim import data_folder
from allim.access.gate import Gate, Limits
from allim.access.permission import Permission, Rule
from allim.access.publishers import Publishers
from allim.access.rates import Policy, Rates
from allim.access.tickets import Tickets
from allim.alone import alone
from allim.brokers.memory import MemoryBroker, MemoryLedger
from allim.brokers.redis import RedisBroker, RedisLedger
from allim.brokers.redis.peers import Peers
from allim.brokers.redis.rights import Rights
from allim.catalogue import load
from allim.credentials import issuer_of, publish_keys_of, tokens_of
from allim.domains import accounts, keys, snapshots
from allim.errors import Unauthenticated, Unusable
from allim.http import catalogue as event_catalogue
from allim.http import health, openapi, problems, publish, ticket_routes, users
from allim.http.origins import PAGE_POLICY, Origins, headers_without_origin
from allim.http.refused import Refused
from allim.http.requests import Requests
from allim.http.routing import Answer, Paths, Resource, operation, route
from allim.hub import Broker, Hub, HubSettings, Ledger
from allim.hub.load import limit_bytes
from allim.server.fast_path import FastPath
from allim.settings import Settings, SettingsError, load_settings, naming
from allim.storage import migrate, open_engine, writable
from allim.telemetry import Metrics
from allim.transports import sse
from allim.transports.control_events import CONTROL_EVENTS
from allim.work import Work

log = structlog.get_logger(__name__)

REVOCATION_S = 30 * 86400.0  # how long an ended session is remembered; tokens of ours are shorter-lived
FILES_KEPT = 256  # open files that are no streams: Redis, the database, REST
MEMORY_SHARE = 0.8  # of what the process may hold, above which it takes no more streams
WORK_SHARE = 0.5  # of the drain time, for jobs in hand; the others go to another replica

PAGE = next(
    (
        folder
        for folder in (Path(__file__).parent / "web", Path(__file__).parents[2] / "web" / "dist")
        if (folder / "index.html").is_file()
    ),
    None,
)


def create_app(settings: Settings | None = None, rules: Mapping[str, Rule] | None = None) -> Starlette:
    """The whole application.

    Shape: `rules` say by kind of topic, which is what stands before the colon, who may read one beside those whose
    token grants it.
    Raises: SettingsError naming the variable that is wrong.
    """
    settings = settings or load_settings()
    metrics = Metrics(settings.server_id)
    with naming("CATALOGUE", Unusable):
        catalogue = load([*snapshots.EVENTS, *CONTROL_EVENTS], settings.catalogue)
    with naming("REDIS_URL"):
        rights = Rights(settings.redis_prefix, settings.durability)
        ledger = _ledger(settings, rights)
        broker = _broker(settings, ledger, metrics, rights, catalogue.digest)
        hub = Hub(broker, ledger, metrics, _hub_settings(settings), checks=catalogue.checks)
    with naming("DATABASE_URL"):
        engine = open_engine(settings.database_url)
    settings_keys = publish_keys_of(settings)
    issuer = issuer_of(settings, metrics.issuer_keys_not_read)
    tokens = tokens_of(settings, issuer)
    tickets = Tickets(
        (settings.secret_key, *settings.old_secret_keys), settings.ticket_lifetime_s, shared_now=hub.shared_clock
    )
    rates = Rates(ledger, MemoryLedger(), metrics.refused)
    gate = Gate(tokens, tickets, rates, _limits(settings))
    permission = Permission(rules or {})

    profile = partial(accounts.profile, engine)
    announce = partial(hub.publish, keep_s=snapshots.KEYS_KEPT_S)
    work = Work(engine, hub, settings.server_id, metrics, at_once=settings.work_at_once, now=hub.shared_clock)
    generation = snapshots.Generation(
        engine, work, announce, profile, settings.server_id, settings.snapshot_step_ms, now=hub.shared_clock
    )
    snapshot_service = snapshots.Service(
        engine, profile, generation.enqueue, refused=metrics.refused, now=hub.shared_clock
    )
    key_service = keys.Service(engine, now=hub.shared_clock)
    account_service = accounts.Service(
        engine,
        tokens,
        accounts.Passwords(),
        snapshot_service,
        hub,
        settings.operators,
        on_deleted=[snapshot_service.delete_in, key_service.delete_in],
        now=hub.shared_clock,
    )
    http = accounts.back_channel()
    providers = _providers(settings, http)
    flows = accounts.Flows((settings.secret_key, *settings.old_secret_keys))
    publishers = Publishers(settings_keys, key_service.publisher, count=gate.count_unknown_key)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            if open_folder := data_folder.tighten(settings.data_dir):
                log.warning("data folder is open to others", reason=open_folder)
            with nullcontext() if settings.clustered else alone(settings.data_dir):
                with naming("DATABASE_URL", Unusable):
                    await migrate(engine)
                log.info(
                    "capacity",
                    streams=hub.settings.streams_per_replica,
                    memory_mb=round(hub.settings.memory_max_bytes / 1e6),
                    streams_per_user=hub.settings.streams_per_user,
                )
                async with hub.running(), work.running(settings.drain_s * WORK_SHARE):
                    with sse.draining_on_signals(hub.drain):
                        yield
        finally:
            if issuer is not None:
                await issuer.jwks.close()
            for provider in providers:
                await provider.close()
            await http.aclose()
            await engine.dispose()

    events_per_s = Policy("publish", settings.publish_events_per_s, 1)
    speech = sse.Speech(settings.server_id, settings.heartbeat_s, settings.retry_ms)
    checks: dict[str, health.Check] = {"hub": hub.check, "store": partial(writable, engine), "worker": work.check}
    if isinstance(broker, RedisBroker):
        checks["redis"] = broker.check
    resources = [
        *accounts.routes(account_service, gate, tokens),
        *accounts.provider_routes(
            providers, flows, account_service, gate, settings.session_lifetime_s, settings.public_url or ""
        ),
        *snapshots.routes(snapshot_service, gate, Policy("snapshots", settings.snapshots_per_min, 60)),
        *keys.routes(key_service, gate),
        *users.routes(gate, hub.kick),
        *ticket_routes.routes(gate, tickets, permission),
        *publish.routes(hub, publishers, rates, events_per_s, partial(_publisher_memory, settings, broker)),
        *sse.routes(hub, speech, gate, permission),
        *event_catalogue.routes(catalogue, PAGE),
        *health.routes(checks, asking={"store"}),
        _metrics_route(metrics),
    ]

    refused = Refused(metrics.credentials_refused)

    def leaving() -> bool:
        return hub.draining

    app = _Application(
        routes=[*resources, *openapi.routes(resources, PAGE, catalogue), *_page_routes()],
        middleware=[
            Middleware(Requests, leaving=leaving),
            Middleware(problems.UnexpectedErrors, note=refused.note),
            Middleware(Origins, listed=settings.cors_origins, headers=settings.cors_headers),
            Middleware(Paths, resources=resources),
        ],
        exception_handlers={**problems.handlers, Unauthenticated: refused.answer},
        lifespan=lifespan,
    )

    app.router.lifespan = partial(_told_in_one_line, app.router.lifespan)  # type: ignore[method-assign]
    app.router.redirect_slashes = False  # its redirects repeat what the client wrote as `Host`

    async def leave(within_s: float) -> None:
        hub.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await asyncio.gather(hub.drained(), work.leave(settings.drain_s * WORK_SHARE))

    app.state.leave = leave
    app.state.refused = metrics.refused
    fast_handlers = {
        (method, resource.path): handler
        for resource in resources
        for method, handler in resource.fast_handlers.items()
    }
    app.state.fast_path = partial(FastPath, fast_handlers, headers_without_origin(settings.cors_origins), leaving)
    return app


class _Application(Starlette):
    def build_middleware_stack(self) -> ASGIApp:
        """Without Starlette's outermost layer, which answers what nobody foresaw: `UnexpectedErrors` has done so."""
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


def _broker(settings: Settings, ledger: Ledger, metrics: Metrics, rights: Rights, declared: str) -> Broker:
    if settings.redis_url is None:
        return MemoryBroker(settings.history_events, settings.history_ttl_s, ledger)
    return RedisBroker(
        settings.redis_url,
        settings.server_id,
        metrics,
        prefix=settings.redis_prefix,
        history_events=settings.history_events,
        history_ttl_s=settings.history_ttl_s,
        durability=settings.durability,
        durable=settings.redis_durable,
        rights=rights,
        peers=Peers(
            settings.server_id,
            (settings.secret_key, *settings.old_secret_keys),
            {**settings.equal(), "ALLIM_CATALOGUE": declared},
            settings.pulse_s,
        ),
    )


def _ledger(settings: Settings, rights: Rights) -> Ledger:
    if settings.redis_url is None:
        return MemoryLedger()
    return RedisLedger(settings.redis_url, settings.server_id, prefix=settings.redis_prefix, rights=rights)


def _providers(settings: Settings, http: httpx.AsyncClient) -> list[accounts.Provider]:
    """Those that have an ID and a secret."""
    found = []
    for name in accounts.PROVIDERS:
        issuer, client_id, client_secret = (
            getattr(settings, f"{name}_{part}") for part in ("issuer", "client_id", "client_secret")
        )
        if client_id and client_secret:
            with naming(f"{name.upper()}_ISSUER"):
                found.append(accounts.Provider(name, issuer, client_id, client_secret, http))
    return found


def _limits(settings: Settings) -> Limits:
    return Limits(
        user_calls=Policy("user", settings.user_calls_per_min, 60),
        address_calls=Policy("address", settings.address_calls_per_min, 60),
        sign_in_tries=Policy("sign-in", settings.sign_in_tries_per_min, 60),
        new_accounts=Policy("accounts", settings.accounts_per_hour, 3600),
        ended_calls=Policy("ended", settings.address_calls_per_min, 60),
        unknown_keys=Policy("unknown-key", settings.address_calls_per_min, 60),
    )


def _publisher_memory(settings: Settings, broker: Broker) -> Policy | None:
    """The limit of a publisher's memory: the setting, or half of the store's memory; None while neither is known."""
    granted = settings.publisher_memory_mb * 1_000_000 or broker.memory_max_bytes // 2
    return Policy("publish-memory", granted, settings.history_ttl_s) if granted else None


def _hub_settings(settings: Settings) -> HubSettings:
    return HubSettings(
        heartbeat_s=settings.heartbeat_s,
        pulse_s=settings.pulse_s,
        max_event_bytes=settings.max_event_bytes,
        stream_buffer_bytes=settings.stream_buffer_bytes,
        stream_lifetime_s=settings.stream_lifetime_s,
        drain_s=settings.drain_s,
        streams_per_user=settings.streams_per_user,
        streams_per_address=settings.streams_per_address,
        streams_per_replica=settings.streams_per_replica or max(1, _file_limit() - FILES_KEPT),
        memory_max_bytes=settings.memory_max_mb * 1_000_000 or int(limit_bytes() * MEMORY_SHARE),
        revocation_s=max(REVOCATION_S, settings.session_lifetime_s),
    )


def _file_limit() -> int:
    """Open files this process may have once it has raised its limit, which it does when it serves."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def _metrics_route(metrics: Metrics) -> Resource:
    @operation(answers={200: Answer("Prometheus text.", str, media_type="text/plain")})
    async def show_metrics(_: Request) -> Response:
        """Show the replica's metrics."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return route("/metrics", tag="Running it", get=show_metrics)


def _page_routes() -> list[BaseRoute]:
    """The built page. Its paths are named one by one, so that every other unknown path is a plain 404."""
    if PAGE is None:
        return []
    page = PAGE

    async def index(_: Request) -> Response:
        headers = {"cache-control": "no-cache", "content-security-policy": PAGE_POLICY}
        return FileResponse(page / "index.html", headers=headers)

    async def favicon(_: Request) -> Response:
        return FileResponse(page / "favicon.svg", headers={"cache-control": "no-cache"})

    return [
        Route("/", index),
        Route("/favicon.svg", favicon),
        Mount("/assets", _Assets(directory=page / "assets")),
    ]


class _Assets(StaticFiles):
    """Built files whose names hold a hash of their content: a name never stands for other content.

    A replica with another build answers 404, and no cache may keep that: nginx then asks another replica.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["answer_headers"]["cache-control"] = "no-store"
        await super().__call__(scope, receive, send)

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response
