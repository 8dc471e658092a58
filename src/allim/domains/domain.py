"""The contract of a domain: its declaration, the `Host` that it is opened with, and the `Opened` that it gives.

docs/domains.md shows a whole domain. A domain imports this module in its `__init__.py`; its stores and services need
nothing of it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from starlette.routing import BaseRoute

from allim.access.gate import Gate
from allim.access.permission import Rule
from allim.access.publishers import Lookup
from allim.access.rates import Rates
from allim.access.tokens import Tokens
from allim.catalogue import EventType
from allim.domains.settings import DomainSettings
from allim.domains.signals import Signals
from allim.http.health import Check
from allim.hub import Hub
from allim.telemetry import Metrics

if TYPE_CHECKING:  # a hub alone has no database
    from sqlalchemy.ext.asyncio import AsyncEngine

    from allim.work import Work

SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True, slots=True)
class Storage:
    """The database and the background work of the domains that declare `migrations`."""

    engine: "AsyncEngine"
    work: "Work"

    async def writable(self) -> None:
        """Raises: Unavailable when the database takes no writes."""
        from allim.storage import writable

        await writable(self.engine)

    async def migrate(self, folders: Mapping[str, Path]) -> None:
        """Return when the schema is the newest. Raises: Unusable."""
        from allim.storage import migrate

        await migrate(self.engine, folders)


@dataclass(frozen=True, slots=True)
class Host(Generic[SettingsT]):
    """The parts of a replica that a domain is opened with.

    Shape: `needs` holds the doors of the domains that this one declares to need; `secret_keys` are the own signing
    keys, the newest first; `now` gives Unix seconds by the clock that the replicas share.
    """

    domain: str
    settings: SettingsT
    hub: Hub
    gate: Gate
    tokens: Tokens
    rates: Rates
    signals: Signals
    metrics: Metrics
    server_id: str
    now: Callable[[], float]
    needs: Mapping[str, Any]
    secret_keys: Sequence[str]
    storage: Storage | None

    @property
    def engine(self) -> "AsyncEngine":
        """The database. Raises: ValueError if the domain declares no `migrations`."""
        return self._storage().engine

    @property
    def work(self) -> "Work":
        """Durable background work. Raises: ValueError if the domain declares no `migrations`."""
        return self._storage().work

    def _storage(self) -> Storage:
        if self.storage is None:
            raise ValueError("a domain that stores something or has jobs declares its `migrations`")
        return self.storage


@dataclass(frozen=True, slots=True)
class Opened:
    """The parts that an open domain gives to the replica.

    Shape: `routes` that are `Resource`s are described in OpenAPI; `rules` decide on topics by kind: the part
    before the colon; `door` is for the domains that need this one; `checks` of readiness by name; `publishers` finds
    the owner of a publish key that the settings do not know.
    """

    routes: Sequence[BaseRoute] = ()
    rules: Mapping[str, Rule] = field(default_factory=dict)
    door: object = None
    checks: Mapping[str, Check] = field(default_factory=dict)
    publishers: Lookup | None = None


@dataclass(frozen=True, slots=True)
class Domain:
    """A module with its own routes, events, tables, settings and background work.

    Shape: `name` is 1 to 32 of a-z 0-9 _; `needs` are names of other domains; `events` are
    checked when they are published, and described in the catalogue; `migrations` is a folder of Alembic
    versions, whose tables are named `allim_<name>` or begin with `allim_<name>_`.
    """

    name: str
    open: Callable[[Host[Any]], AbstractAsyncContextManager[Opened]]
    needs: tuple[str, ...] = ()
    settings: type[DomainSettings] | None = None
    events: tuple[EventType, ...] = ()
    migrations: Path | None = None
