"""The two brokers, for one list of tests."""

import itertools
from collections.abc import AsyncIterator, Callable

import pytest

from allim.brokers.memory import MemoryBroker
from allim.brokers.redis import RedisBroker
from allim.hub import Broker
from allim.telemetry import Metrics
from tests.servers import Redis

_prefixes = (f"test{number}" for number in itertools.count())

MakeBroker = Callable[..., Broker]


@pytest.fixture(params=["memory", "redis"])
async def make_broker(request: pytest.FixtureRequest) -> AsyncIterator[MakeBroker]:
    """Makes brokers that share one store; each is closed at the end."""
    made: list[Broker] = []
    prefix = next(_prefixes)

    def make(history_events: int = 256, history_ttl_s: int = 3600) -> Broker:
        if request.param == "memory":
            broker: Broker = MemoryBroker(history_events, history_ttl_s)
        else:
            server: Redis = request.getfixturevalue("redis")
            broker = RedisBroker(
                server.url,
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
