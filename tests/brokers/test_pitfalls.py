"""A Redis that is set up so that it loses events is told of in the log and in readiness."""

import pytest
from harness.servers import redis_server
from harness.waiting import until
from structlog.testing import capture_logs

from allim.brokers.redis.pitfalls import Setup, pitfalls
from tests.brokers.brokers import Replica, running
from tests.brokers.guarded import guarded_redis

pytestmark = pytest.mark.anyio

FILE = {"aof_enabled": "1"}
ALWAYS = {"appendfsync": "always", "no-appendfsync-on-rewrite": "no"}


async def says(replica: Replica, text: str) -> bool:
    return text in (await replica.broker.check() or "ok")


@pytest.mark.parametrize("policy", ["volatile-lru", "allkeys-lru", "allkeys-random", "volatile-ttl"])
async def test_a_policy_that_evicts_is_told_at_the_start_and_when_it_is_changed(policy: str) -> None:
    with redis_server("--maxmemory-policy", policy) as server, capture_logs() as lines:
        async with running(server.url) as replica:
            await until(lambda: says(replica, f"maxmemory-policy is {policy}"))
            with server.client() as client:
                client.config_set("maxmemory-policy", "noeviction")
                await replica.broker.replace_link()
                await until(lambda: says(replica, "ok"))
                client.config_set("maxmemory-policy", policy)
                await replica.broker.replace_link()
                await until(lambda: says(replica, f"maxmemory-policy is {policy}"))

    warnings = [line for line in lines if line["event"] == "redis may lose events"]
    assert [line["detail"] for line in warnings] == [f"maxmemory-policy is {policy}"] * 2
    assert "noeviction" in warnings[0]["advice"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "ALLIM_REDIS_DURABLE is true, and this Redis has no append-only file"),
        (("--appendonly", "yes"), "its append-only file is synced every second"),
        (("--appendonly", "yes", "--appendfsync", "always"), "ok"),
    ],
)
async def test_a_redis_that_is_called_durable_and_is_not(options: tuple[str, ...], told: str) -> None:
    with redis_server(*options) as server:
        async with running(server.url, durable=True) as replica:
            await until(lambda: says(replica, told))
        async with running(server.url) as replica:
            assert await replica.broker.check() is None


async def test_a_redis_that_cannot_replay_its_own_file_is_told() -> None:
    with guarded_redis() as guarded:
        async with running(guarded.url, "allim") as replica:
            assert await replica.broker.check() is None
            guarded.do("ACL", "SETUSER", "default", "reset")
            await replica.broker.replace_link()
            await until(lambda: says(replica, "Redis replays its append-only file as the user `default`"))


@pytest.mark.parametrize(
    ("info", "settings", "replay", "subjects"),
    [
        ({}, {}, "", []),
        ({"role": "slave"}, {}, "", ["role"]),
        ({"cluster_enabled": "1"}, {}, "", ["role"]),
        ({"maxmemory_policy": "noeviction"}, None, None, ["durability"]),
        (FILE, None, None, []),
        (FILE, ALWAYS, None, []),
        (FILE, ALWAYS, "no permissions", ["replay"]),
        (FILE, {**ALWAYS, "no-appendfsync-on-rewrite": "yes"}, "", ["durability"]),
        ({**FILE, "valkey_version": "9.1.2"}, ALWAYS, "no permissions", []),
        ({"aof_enabled": "0"}, {}, "no permissions", ["durability"]),
    ],
)
def test_what_is_told_of_a_setup(
    info: dict[str, str], settings: dict[str, str] | None, replay: str | None, subjects: list[str]
) -> None:
    durable = bool(info) and "role" not in info and "cluster_enabled" not in info

    assert [pitfall.subject for pitfall in pitfalls(Setup(info, settings, replay), durable=durable)] == subjects
