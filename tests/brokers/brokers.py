"""Hubs over a real Redis, each a replica of its own, and what breaks the way there."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from harness.streams import ListStream, hub_settings
from harness.waiting import until

from allim.brokers.memory import MemoryLedger
from allim.brokers.redis import RedisBroker
from allim.brokers.redis.peers import Peers
from allim.errors import Unavailable
from allim.hub import Draft, Hub
from allim.telemetry import Metrics

_numbers = itertools.count()


def fresh_prefix() -> str:
    return f"brokers{next(_numbers)}"


class Replica:
    """A hub with its broker and metrics, and the keys they live under."""

    def __init__(
        self,
        url: str,
        prefix: str,
        durable: bool = False,
        peers: Peers | None = None,
        /,
        **settings: float,
    ) -> None:
        name = peers.replica if peers else f"replica-{next(_numbers)}"
        self.prefix = prefix
        self.metrics = Metrics()
        self.broker = RedisBroker(
            url, name, self.metrics, prefix=prefix, history_events=10_000, durable=durable, peers=peers
        )
        defaults = {"heartbeat_s": 1, "pulse_s": 0.2, "streams_per_user": 10_000}
        chosen = hub_settings(**{**defaults, **settings})
        self.hub = Hub(self.broker, MemoryLedger(), self.metrics, chosen)

    async def opened(self, stream: ListStream, last_event_id: str | None = None) -> ListStream:
        await self.hub.follow(stream, await self.hub.join(stream, last_event_id))
        return stream

    async def publish(self, data: object, topic: str = "user:42", key: str | None = None) -> str:
        published = await self.hub.publish([Draft(topic, "test", data)], key)
        return str(published.positions[0])

    def counted(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0


@asynccontextmanager
async def running(
    url: str, prefix: str | None = None, durable: bool = False, **settings: float
) -> AsyncIterator[Replica]:
    """A replica that has heard its own pulse, so its link stands."""
    async with started(Replica(url, prefix or fresh_prefix(), durable, **settings)) as replica:
        yield replica


@asynccontextmanager
async def started(replica: Replica) -> AsyncIterator[Replica]:
    """The replica, when it has heard its own pulse."""
    async with replica.hub.running():
        await until(lambda: ready(replica.hub))
        yield replica


async def ready(hub: Hub) -> bool:
    try:
        await hub.check()
    except Unavailable:
        return False
    return True
