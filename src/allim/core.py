"""The core of a replica: the hub, access, and storage if a domain needs it. It knows no domain by name."""

import asyncio
import resource
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial

import structlog
from starlette.routing import BaseRoute

from allim import data_folder
from allim.access.authenticate import Authenticate
from allim.access.authorize import Authorize
from allim.access.gate import Gate, Limits
from allim.access.permission import Permission, Rule
from allim.access.publishers import Publishers
from allim.access.rates import Policy, Rates
from allim.access.tickets import Tickets
from allim.alone import alone
from allim.brokers.memory import MemoryBroker, MemoryLedger
from allim.catalogue import load
from allim.credentials import equal_settings, issuers_of, publish_keys_of, tokens_of, webhook_of
from allim.domains.domain import Domain, Host, Opened, Storage
from allim.domains.signals import Signals
from allim.errors import Unusable
from allim.http import catalogue, health, metrics, openapi, publish, ticket_routes, users
from allim.http.routing import Resource
from allim.hub import Broker, Hub, HubSettings, Ledger
from allim.hub.capacity import limit_bytes
from allim.requirements import check_version
from allim.selection import Selection
from allim.settings import Settings, SettingsError, naming
from allim.telemetry import Metrics
from allim.transports import sse
from allim.transports.control_events import CONTROL_EVENTS
from allim.transports.opening import Opener

log = structlog.get_logger(__name__)

REVOCATION_S = 30 * 86400.0  # how long an ended session is remembered; tokens of ours are shorter-lived
FILES_KEPT = 256  # open files that are no streams: Redis, the database, REST
MEMORY_SHARE = 0.8  # of the memory that the process may use, above which it takes no more streams
WORK_SHARE = 0.5  # of the drain time, for jobs in hand; the others go to another replica


class Core:
    """The parts of a replica that all domains share."""

    def __init__(
        self,
        settings: Settings,
        selection: Selection,
        rules: Mapping[str, Rule],
        authenticate: Authenticate | None = None,
        authorize: Authorize | None = None,
    ) -> None:
        """Raises: SettingsError."""
        self.settings = settings
        self.selection = selection
        self.metrics = Metrics(settings.server_id)
        with naming("CATALOGUE", Unusable):
            self.catalogue = load([*selection.events(), *CONTROL_EVENTS], settings.catalogue)
        issuers = issuers_of(settings, self.metrics.issuer_keys_not_read)
        equal = equal_settings(settings, issuers) | selection.equal() | {"ALLIM_CATALOGUE": self.catalogue.digest}
        with naming("REDIS_URL"):
            self.broker, ledger, checks = _stores(settings, self.metrics, equal)
            self.hub = Hub(self.broker, ledger, self.metrics, _hub_settings(settings), checks=self.catalogue.checks)
        self.storage = self._storage() if selection.stored else None
        self.signals = Signals()
        self.secret_keys = (settings.secret_key, *settings.old_secret_keys)
        self.tokens = tokens_of(settings, issuers)
        self.webhook = webhook_of(settings, self.metrics.authorized)
        if self.webhook is not None and authorize is not None:
            raise SettingsError("ALLIM_AUTHORIZE_URL: create_app was given `authorize`, which decides instead")
        self.tickets = Tickets(self.secret_keys, settings.ticket_lifetime_s, shared_now=self.hub.shared_clock)
        self.rates = Rates(ledger, MemoryLedger(), self.metrics.refused)
        cookie = settings.cookie_name
        limits = _limits(settings)
        self.gate = Gate(self.tokens, self.tickets, self.rates, limits, cookie=cookie, authenticate=authenticate)
        self.rules = dict(rules)
        self.permission = Permission(self.rules, authorize or self.webhook)
        self.publishers = Publishers(publish_keys_of(settings), count=self.gate.count_unknown_key)
        self.checks: dict[str, health.Check] = {"hub": self.hub.check, **checks}
        if self.storage is not None:
            self.checks |= {"store": self.storage.writable, "worker": self.storage.work.check}

    def resources(self) -> list[Resource]:
        """Return the routes of the hub, which are the same whichever domains there are."""
        settings, hub, gate, permission = self.settings, self.hub, self.gate, self.permission
        events_per_s = Policy("publish", settings.publish_events_per_s, 1)
        defaults = sse.StreamDefaults(settings.server_id, settings.heartbeat_s, settings.retry_ms)
        memory = partial(_publisher_memory, settings, self.broker)
        return [
            *users.routes(gate, hub.sessions.kick),
            *ticket_routes.routes(gate, self.tickets, permission),
            *publish.routes(hub, self.publishers, self.rates, events_per_s, memory),
            *sse.routes(hub, defaults, Opener(hub, gate, permission)),
            *catalogue.routes(self.catalogue),
            *metrics.routes(self.metrics),
        ]

    def closing_resources(self, before: list[BaseRoute]) -> list[Resource]:
        """Return the routes that know all others, and all checks."""
        ready = health.routes(self.checks, asking={"store"})
        return [*ready, *openapi.routes([*before, *ready], self.catalogue, self.settings.cookie_name)]

    def host(self, domain: Domain, doors: Mapping[str, object]) -> Host[object]:
        """Return the parts that a domain is opened with. Shape: `doors` are those of the domains that are open."""
        return Host(
            domain=domain.name,
            settings=self.selection.settings[domain.name],
            hub=self.hub,
            gate=self.gate,
            tokens=self.tokens,
            rates=self.rates,
            signals=self.signals,
            metrics=self.metrics,
            server_id=self.settings.server_id,
            now=self.hub.shared_clock,
            needs={name: doors[name] for name in domain.needs},
            secret_keys=self.secret_keys,
            storage=self.storage if domain.migrations is not None else None,
        )

    def add(self, domain: Domain, opened: Opened) -> None:
        """Take over the rules, checks and publishers of an open domain.

        Raises: ValueError for a kind of topic that has a rule already, and for a name of a check that is taken.
        """
        for kind, rule in opened.rules.items():
            if kind in self.rules:
                raise ValueError(f"topics of the kind {kind!r} have a rule already")
            self.rules[kind] = rule
        for name, check in opened.checks.items():
            if name in self.checks:
                raise ValueError(f"there is a readiness check {name!r} already")
            self.checks[name] = check
        if opened.publishers is not None:
            self.publishers.add(opened.publishers)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the hub, on a database that has the tables of all domains.

        Raises: SettingsError.
        """
        settings, storage = self.settings, self.storage
        in_folder = storage is not None or settings.key_in_folder
        try:
            if in_folder and (open_folder := data_folder.tighten(settings.data_dir)):
                log.warning("data folder is open to others", reason=open_folder)
            with alone(settings.data_dir) if in_folder and not settings.clustered else nullcontext():
                if storage is not None:
                    with naming("DATABASE_URL", Unusable):
                        await storage.migrate(self.selection.migrations())
                self._log_capacity()
                async with self.hub.running():
                    yield
        finally:
            await self.tokens.close()
            if self.webhook is not None:
                await self.webhook.close()
            if storage is not None:
                await storage.engine.dispose()

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Run jobs. All handlers are registered before."""
        if self.storage is None:
            yield
            return
        async with self.storage.work.running(self.settings.drain_s * WORK_SHARE):
            yield

    async def leave(self, within_s: float) -> None:
        """End streams and jobs within so many seconds."""
        self.hub.drain()
        leaving = [self.hub.drained()]
        if self.storage is not None:
            leaving.append(self.storage.work.leave(self.settings.drain_s * WORK_SHARE))
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await asyncio.gather(*leaving)

    def _storage(self) -> Storage:
        from allim.storage import open_engine  # late, because a hub alone has no database
        from allim.work import Work

        settings = self.settings
        with naming("DATABASE_URL"):
            engine = open_engine(settings.database_url)
        at_once, now = settings.work_at_once, self.hub.shared_clock
        return Storage(engine, Work(engine, self.hub, settings.server_id, self.metrics, at_once=at_once, now=now))

    def _log_capacity(self) -> None:
        capacity = self.hub.settings
        log.info(
            "capacity",
            streams=capacity.streams_per_replica,
            memory_mb=round(capacity.memory_max_bytes / 1e6),
            streams_per_user=capacity.streams_per_user,
        )


def _stores(
    settings: Settings, metrics: Metrics, equal: Mapping[str, str]
) -> tuple[Broker, Ledger, dict[str, health.Check]]:
    """Return the broker, the ledger, and the checks of their readiness."""
    if settings.redis_url is None:
        memory = MemoryLedger()
        return MemoryBroker(settings.history_events, settings.history_ttl_s, memory), memory, {}
    check_version("redis")
    from allim.clustered import over_redis  # with redis-py, 7 MB

    broker, ledger = over_redis(settings, settings.redis_url, metrics, equal)
    return broker, ledger, {"redis": broker.check}


def _limits(settings: Settings) -> Limits:
    return Limits(
        user_calls=Policy("user", settings.user_calls_per_min, 60),
        address_calls=Policy("address", settings.address_calls_per_min, 60),
        sign_in_tries=Policy("sign-in", settings.sign_in_tries_per_min, 60),
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
