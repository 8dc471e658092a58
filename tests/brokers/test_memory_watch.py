"""An alarm is raised before Redis is full, and once."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator

import pytest
from harness.servers import Redis, redis_server
from structlog.testing import capture_logs

from allim.brokers.redis.memory_watch import MemoryWatch, level_of
from allim.brokers.redis.rights import Rights
from allim.brokers.redis.scripts import ScriptCalls
from allim.brokers.redis.server import RedisServer
from allim.telemetry import Metrics

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def own_redis() -> Iterator[Redis]:
    with redis_server() as server:
        yield server


@pytest.fixture
async def calls(own_redis: Redis) -> AsyncIterator[ScriptCalls]:
    server = RedisServer(own_redis.url, "memory-watch", Rights())
    calls = ScriptCalls(server, lambda _run_id: ())
    yield calls
    await calls.close()
    await server.close()


@pytest.mark.parametrize(
    ("share", "before", "level"),
    [
        (0.0, 0, 0), (0.74, 0, 0), (0.75, 0, 1), (0.89, 1, 1), (0.9, 1, 2), (1.1, 0, 2),
        (0.86, 2, 2), (0.84, 2, 1), (0.71, 1, 1), (0.69, 1, 0), (0.69, 2, 0),
    ],
)  # fmt: skip
def test_a_level_is_reached_at_its_share_and_left_below_it(share: float, before: int, level: int) -> None:
    assert level_of(share, before) == level


async def test_a_redis_that_fills_is_told_once_a_level_and_in_the_metrics(
    own_redis: Redis, calls: ScriptCalls
) -> None:
    metrics = Metrics()
    watch = MemoryWatch(calls, metrics.redis_memory)
    with own_redis.client() as redis, capture_logs() as logged:
        redis.setrange("filler", 20_000_000, "x")  # beside which the buffers of a connection are little
        for used in (0.5, 0.8, 0.8, 0.95, 0.95, 0.8, 0.5):
            redis.config_set("maxmemory", int(redis.info("memory")["used_memory"] / used))
            await watch.look()
        redis.config_set("maxmemory", 100_000_000)
        await watch.look()

        told = [(line["log_level"], line["event"]) for line in logged]
        assert told == [
            ("warning", "redis is getting full"),
            ("error", "redis is nearly full"),
            ("warning", "redis is getting full"),
            ("info", "redis has room again"),
        ]
        text = metrics.text().decode()
        assert re.search(r"^allim_redis_memory_max_bytes 1e\+08$", text, re.MULTILINE)
        assert re.search(r"^allim_redis_memory_used_bytes [1-9]", text, re.MULTILINE)
        redis.config_set("maxmemory", 0)


async def test_a_redis_without_a_limit_is_never_full(own_redis: Redis, calls: ScriptCalls) -> None:
    seen: list[tuple[int, int]] = []
    with own_redis.client() as redis, capture_logs() as logged:
        redis.config_set("maxmemory", 0)
        await MemoryWatch(calls, lambda used, most: seen.append((used, most))).look()

    assert [most for _, most in seen] == [0]
    assert logged == []


async def test_it_looks_when_it_starts_and_ends_when_it_is_closed(calls: ScriptCalls) -> None:
    looked = asyncio.Event()
    watch = MemoryWatch(calls, lambda _used, _most: looked.set())
    watch.start()

    async with asyncio.timeout(5):
        await looked.wait()
    await watch.close()


def test_a_replica_without_redis_tells_nothing_of_it() -> None:
    assert b"redis_memory" not in Metrics().text()
