"""What contracts are held against: the two stores, and the ways to write a stream."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from harness.replicas import Replica, replica
from harness.servers import Redis
from harness.streams import hub_settings

from allim.brokers.memory import MemoryBroker, MemoryLedger
from allim.brokers.redis import RedisBroker, RedisLedger
from allim.hub import Broker, Hub, Ledger
from allim.telemetry import Metrics

_prefixes = (f"test{number}" for number in itertools.count())

MakeBroker = Callable[..., Broker]
MakeLedger = Callable[[], Ledger]


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> Redis | None:
    """The Redis that replicas share, or None for one process by itself."""
    return None if request.param == "memory" else request.getfixturevalue("redis")


@pytest.fixture
def prefix() -> str:
    return next(_prefixes)


@pytest.fixture
async def make_ledger(store: Redis | None, prefix: str) -> AsyncIterator[MakeLedger]:
    """Makes ledgers as replicas have them: all over one store; without Redis there is one replica, and one ledger."""
    made: list[Ledger] = []

    def make() -> Ledger:
        if store is not None:
            made.append(RedisLedger(store.url, f"replica-{len(made)}", prefix=prefix))
        elif not made:
            made.append(MemoryLedger())
        return made[-1]

    yield make
    for ledger in made:
        await ledger.close()


@pytest.fixture
async def make_broker(store: Redis | None, prefix: str, make_ledger: MakeLedger) -> AsyncIterator[MakeBroker]:
    """Makes brokers that share one store, with the ledgers of `make_ledger`; each is closed at the end."""
    made: list[Broker] = []

    def make(history_events: int = 256, history_ttl_s: int = 3600) -> Broker:
        if store is None:
            broker: Broker = MemoryBroker(history_events, history_ttl_s, make_ledger())
        else:
            broker = RedisBroker(
                store.url,
                f"replica-{len(made)}",
                Metrics(),
                prefix=prefix,
                history_events=history_events,
                history_ttl_s=history_ttl_s,
            )
        made.append(broker)
        return broker

    yield make
    for broker in made:
        await broker.close()


@pytest.fixture
def broker(make_broker: MakeBroker) -> Broker:
    return make_broker()


@pytest.fixture
async def make_hub(make_broker: MakeBroker, make_ledger: MakeLedger) -> AsyncIterator[Callable[..., Hub]]:
    """Makes running hubs over one store; with Redis each is a replica of its own."""
    stops: list[asyncio.Event] = []
    tasks: list[asyncio.Task[None]] = []

    async def run(hub: Hub, running: asyncio.Event, stop: asyncio.Event) -> None:
        async with hub.running():
            running.set()
            await stop.wait()

    async def make(history_events: int = 256, **settings: float) -> Hub:
        broker = make_broker(history_events=history_events)
        defaults = {"heartbeat_s": 3, "pulse_s": 1, "streams_per_user": 1000}
        chosen = hub_settings(**{**defaults, **settings})
        hub = Hub(broker, make_ledger(), Metrics(), chosen)
        running, stop = asyncio.Event(), asyncio.Event()
        stops.append(stop)
        tasks.append(asyncio.create_task(run(hub, running, stop)))
        await running.wait()
        return hub

    yield make  # type: ignore[misc]
    for stop in stops:
        stop.set()
    await asyncio.gather(*tasks)


@pytest.fixture(scope="module", params=["handover", "portable", "mounted", "embedded"])
def server(request: pytest.FixtureRequest) -> Iterator[Replica]:
    """By handover under `allim serve`, the portable way under plain uvicorn, mounted under plain uvicorn, and mounted
    under `allim.server.run`.
    """
    with replica(
        portable=request.param == "portable",
        mounted=request.param in ("mounted", "embedded"),
        program="tests.contracts.embedded" if request.param == "embedded" else "allim serve",
        heartbeat_s=1,
        pulse_s=0.2,
        history_events=10,
        stream_buffer_bytes=65536,
    ) as running:
        yield running
