"""A replica that hangs: frozen behind nginx, or with an event loop that does not turn."""

import asyncio
import os
import time
from typing import Any

import httpx
import pytest
from harness.deployment import Deployment, deployment
from harness.followers import following, publishing, statuses, topics_of, until_complete, until_open
from harness.replicas import Reader, replica, token
from harness.servers import Redis
from harness.waiting import until

pytestmark = pytest.mark.anyio

READ_TIMEOUT = "proxy_read_timeout 40s;           # over two"  # that of the streams
READ_TIMEOUT_S = int(os.environ.get("TEST_READ_TIMEOUT_S", "3"))  # 40 gives the figures of production
RETRY_MS = 500
HANG_BUDGET_S = 2 * READ_TIMEOUT_S + 1.5 * RETRY_MS / 1000
BLOCKED_S = 10


async def test_streams_of_a_frozen_replica_are_cut_by_nginx_and_come_back_complete_elsewhere(redis: Redis) -> None:
    """nginx leaves it after a silence of over two heartbeats; one that asks it again waits that long once more."""
    shorter = {READ_TIMEOUT: f"proxy_read_timeout {READ_TIMEOUT_S}s;  # three"}
    settings: dict[str, Any] = {"heartbeat_s": READ_TIMEOUT_S / 3, "pulse_s": 0.2, "retry_ms": RETRY_MS}
    with deployment(2, redis=redis, proxied=False, nginx_changed=shorter, redis_prefix="hang", **settings) as system:
        frozen, other = system.replicas
        async with following(system.url, 60, "hang") as followers:
            async with publishing(other.url, topics_of(followers), per_s=100) as load:
                held = [follower for follower in followers if follower.now.opening["replica"] == _name(frozen.port)]
                assert len(held) == 30
                abandoned = [follower.now for follower in held]
                frozen.pause()
                frozen_at = time.monotonic()
                assert not await _ready(frozen.url)

                await until(lambda: all(c.ended_at for c in abandoned), READ_TIMEOUT_S + 5, "streams cut")
                cut_s = [c.ended_at - frozen_at for c in abandoned if c.ended_at]
                await until_open(held, HANG_BUDGET_S + 5)
                back_s = [follower.now.frames[0].at - frozen_at for follower in held]
                _show(f"cut after {max(cut_s):.1f} s, back after {max(back_s):.1f} s, {READ_TIMEOUT_S=}")
                await asyncio.sleep(1)

                frozen.resume()
                await until(lambda: _ready(frozen.url), what="ready again")
                await until(lambda: _open_streams(system) == len(followers), what="old streams ended")
            await until_complete(followers, load)

    assert {follower.opened[1].opening["replica"] for follower in held} == {_name(other.port)}
    assert all(connection.status in (200, 0) for connection in abandoned)
    assert statuses(followers) == {200}
    assert max(cut_s) < READ_TIMEOUT_S + 0.5
    assert max(back_s) < HANG_BUDGET_S + 1


async def test_a_blocked_event_loop_costs_readiness_and_no_event(redis: Redis) -> None:
    settings: dict[str, Any] = {"redis_url": redis.url, "redis_prefix": "blocked", "heartbeat_s": 1, "pulse_s": 0.2}
    with replica(program="tests.system.blockable", **settings) as blocked, replica(**settings) as other:
        async with following(blocked.url, 20, "blocked") as followers, httpx.AsyncClient() as http:
            async with publishing(other.url, topics_of(followers), per_s=100) as load:
                asked = http.get(f"{blocked.url}/block", params={"seconds": BLOCKED_S}, timeout=BLOCKED_S + 5)
                blocking = asyncio.create_task(asked)
                await asyncio.sleep(0.5)
                blocked_until = time.monotonic() + BLOCKED_S - 2
                while time.monotonic() < blocked_until:
                    assert not await _ready(blocked.url)
                assert (await blocking).status_code == 200
                healed_at = time.monotonic()
                await until(lambda: _ready(blocked.url), what="ready again")
                async with await Reader.open(blocked.url, token("afterwards")) as fresh:
                    await fresh.next("stream.open")
            await until_complete(followers, load)
            _show(
                f"{load.accepted} events, complete {time.monotonic() - healed_at:.2f} s after the loop turned again"
            )

    assert all(len(follower.connections) == 1 for follower in followers), "a stream was ended"


def _open_streams(system: Deployment) -> float:
    return sum(server.metric("allim_streams_open") for server in system.replicas)


def _name(port: int) -> str:
    return f"replica-{port}"


async def _ready(url: str) -> bool:
    async with httpx.AsyncClient(timeout=1) as http:
        try:
            return (await http.get(f"{url}/readyz")).status_code == 200
        except httpx.TransportError:
            return False


def _show(line: str) -> None:
    print(line)  # noqa: T201 - shown by `pytest -s`, and with every failure
