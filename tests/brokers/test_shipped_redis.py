"""The Redis of docker-compose.yml keeps its data over a restart, with its user rules and its append-only file."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from harness.redis_sets import VALKEY

from allim.brokers.redis import RedisBroker
from allim.hub import ZERO, Entry, Publication
from allim.telemetry import Metrics
from tests.brokers.guarded import Guarded, guarded_redis

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["redis", "valkey"])
def shipped(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    program = "redis-server" if request.param == "redis" else VALKEY
    with guarded_redis(program) as guarded:
        yield guarded


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
async def test_the_shipped_redis_keeps_what_it_accepted_over_a_restart(shipped: Guarded, by: signal.Signals) -> None:
    single = Publication([Entry("user:42", lines("single"))], None, "")
    keyed = Publication([Entry("user:42", lines("keyed"))], "tests:one", "fingerprint")
    batch = Publication([Entry(topic, lines(topic)) for topic in ("user:42", "news", "user:42")], "tests:two", "b")
    before = RedisBroker(shipped.url, "replica-1", Metrics(), durable=True)
    accepted = [
        *(await before.publish(single)).positions,
        *(await before.publish(keyed)).positions,
        *(await before.publish(batch)).positions,
    ]
    await before.close()
    keys = kept(shipped)
    assert len(keys) == 6  # the clock, two histories and when they are due, two idempotency keys

    shipped.restart(by)

    assert kept(shipped) == keys
    after = RedisBroker(shipped.url, "replica-1", Metrics(), durable=True)
    try:
        reading = await after.read(["user:42", "news"], ZERO, 100, 1_000_000)
        repeated = [*(await after.publish(keyed)).positions, *(await after.publish(batch)).positions]
        numbers = [history(shipped, topic) for topic in ("user:42", "news")]
    finally:
        await after.close()
    assert [event.position for event in reading.events] == accepted
    assert repeated == accepted[1:]
    assert numbers == [["1", "2", "3", "4"], ["1"]]
    assert reading.floor < accepted[0]


def lines(text: str) -> bytes:
    return f'event: t\ndata: "{text}"\n\n'.encode()


def kept(shipped: Guarded) -> dict[str, bool]:
    """Every key, and whether it ends by itself."""
    return {name: shipped.admin.ttl(name) > 0 for name in sorted(shipped.admin.scan_iter())}


def history(shipped: Guarded, topic: str) -> list[str]:
    """The numbers of a history's entries."""
    entries: Any = shipped.admin.xrange(f"allim:{{0}}:history:{topic}")
    return [fields["n"] for _, fields in entries]
