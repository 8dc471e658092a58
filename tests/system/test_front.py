"""nginx is reloaded, killed, told of other replicas; and a whole replica's streams come back at once."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness.deployment import Deployment, Nginx, deployment
from harness.followers import (
    Follower,
    following,
    publishing,
    quantile,
    statuses,
    topics_of,
    until_complete,
    until_open,
)
from harness.servers import Redis
from harness.waiting import until

pytestmark = pytest.mark.anyio

LIFETIME_S = 8  # of streams, so that old workers and removed replicas empty while a test waits
RETRY_MS = 1000
RELOADS = 10
HERD = 750  # on three replicas


@pytest.fixture(scope="module")
def started(redis: Redis) -> Iterator[Deployment]:
    settings: dict[str, Any] = {
        "heartbeat_s": 1,
        "pulse_s": 0.2,
        "retry_ms": RETRY_MS,
        "stream_lifetime_s": LIFETIME_S,
    }
    with deployment(3, redis=redis, proxied=False, redis_prefix="front", **settings) as system:
        yield system


@pytest.fixture
def system(started: Deployment) -> Deployment:
    started.heal()
    return started


def nginx_of(system: Deployment) -> Nginx:
    assert system.nginx is not None
    return system.nginx


def reasons(followers: list[Follower]) -> set[str | None]:
    """Why all ended connections ended; None for one that was cut."""
    return {c.close_reason for follower in followers for c in follower.opened if c.ended_at is not None}


async def test_ten_reloads_cut_no_stream_and_old_workers_end_with_their_streams(system: Deployment) -> None:
    nginx = nginx_of(system)
    count = len(nginx.workers())
    async with following(system.url, 100, "reload") as followers:
        async with publishing(system.url, topics_of(followers), per_s=100) as load:
            for _ in range(RELOADS):
                nginx.reload()
                await asyncio.sleep(0.2)
            most = len(nginx.workers())
            began = time.monotonic()
            await until(lambda: len(nginx.workers()) == count, LIFETIME_S + 5, "old workers gone")
            took_s = time.monotonic() - began
        await until_complete(followers, load)

    _show(f"{most} workers after {RELOADS} reloads, {count} again {took_s:.1f} s later; {load.refused=}")
    assert most > count
    assert reasons(followers) == {"rotate"}
    assert statuses(followers) == {200}


async def test_after_a_crash_of_nginx_followers_come_back_complete(system: Deployment) -> None:
    nginx = nginx_of(system)
    async with following(system.url, 100, "crash") as followers:
        async with publishing(system.urls, topics_of(followers), per_s=100) as load:
            nginx.kill()
            await until(lambda: not any(follower.open for follower in followers), 2, "every stream cut")
            await asyncio.sleep(1.5 * RETRY_MS / 1000)  # by then each has been refused once
            nginx.start()
            began = time.monotonic()
            await until_open(followers)
            took_s = time.monotonic() - began
        await until_complete(followers, load)

    _show(f"all back {took_s:.1f} s after nginx")
    assert not load.refused, "replicas have nothing to do with it"


async def test_replicas_are_added_and_removed_by_a_reload(system: Deployment) -> None:
    nginx = nginx_of(system)
    first, second, third = (replica.port for replica in system.replicas)
    nginx.configure(first, second)
    nginx.reload()
    async with following(system.url, 40, "scaled") as followers:
        async with publishing(system.urls, topics_of(followers), per_s=100) as load:
            assert _places(followers) == {first, second}

            nginx.configure(second, third)
            nginx.reload()
            await until(lambda: _places(followers) == {second, third}, LIFETIME_S + 5, "streams have moved")
            assert system.replicas[0].metric("allim_streams_open") == 0
        await until_complete(followers, load)

    assert reasons(followers) == {"rotate"}
    assert statuses(followers) == {200}
    nginx.configure(first, second, third)
    nginx.reload()


def _places(followers: list[Follower]) -> set[int]:
    """The ports of the replicas that hold the newest streams."""
    return {int(follower.opened[-1].opening["replica"].removeprefix("replica-")) for follower in followers}


async def test_the_herd_of_a_killed_replica_comes_back_spread_and_nobody_is_refused(system: Deployment) -> None:
    async with following(system.url, HERD, "herd") as followers:
        async with publishing(system.urls[1:], topics_of(followers), per_s=100) as load:
            killed = system.replicas[0]
            herd = [follower for follower in followers if _places([follower]) == {killed.port} and follower.open]
            connections = [follower.now for follower in herd]
            counts = [len(follower.connections) for follower in herd]
            killed.kill()
            killed_at = time.monotonic()
            await until(lambda: all(c.ended_at for c in connections), 2, "streams cut")
            await until_open(followers)
            returns = [follower.connections[count] for follower, count in zip(herd, counts, strict=True)]
            told_s = [follower.retry_s for follower in herd]
        await until_complete(followers, load)

    arrivals_s = sorted(returned.asked_at - killed_at for returned in returns)
    deciles = [quantile(arrivals_s, tenth / 10) for tenth in range(10)]
    busiest = max(sum(at <= other < at + 0.1 for other in told_s) for at in told_s)
    _show(
        f"{len(herd)} back at "
        + " ".join(f"{at:.2f}" for at in (*deciles, arrivals_s[-1]))
        + f"; {busiest} told to within 0.1 s"
    )
    assert len(herd) > HERD / 8
    assert all(returned.opening is not None for returned in returns), "told to come back once more"
    assert statuses(followers) == {200}
    assert arrivals_s[0] > 0.4 * RETRY_MS / 1000
    assert busiest < len(herd) / 4, "evenly spread over a second it were a tenth"


def _show(line: str) -> None:
    print(line)  # noqa: T201 - shown by `pytest -s`, and with every failure
