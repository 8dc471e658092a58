"""Redis has used up its memory: sessions can be ended all the same, and one account does not fill it."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import redis as redis_py
from harness.replicas import Reader, Replica, bearer, replica, token
from harness.servers import Redis, redis_server
from harness.waiting import until

from allim.identity import OPERATOR
from tests.system.pairs import two_replicas

pytestmark = pytest.mark.anyio

SNAPSHOTS = "/api/accounts/me/snapshots"


@pytest.fixture(scope="module")
def small_redis() -> Iterator[Redis]:
    with redis_server("--maxmemory", "24mb", "--maxmemory-policy", "noeviction") as server:
        yield server


@pytest.fixture(scope="module")
def pair(small_redis: Redis) -> Iterator[tuple[Replica, Replica]]:
    with two_replicas(small_redis.url) as replicas:
        yield replicas


@contextmanager
def filled(server: Redis) -> Iterator[None]:
    """Fill the rest of the memory with other keys."""
    with server.client() as redis:
        size = 1 << 20
        for number in range(10_000):
            try:
                redis.set(f"foreign:{number}", b"x" * size)
            except redis_py.exceptions.OutOfMemoryError:
                if size < 64:
                    break
                size //= 2
        yield
        for key in redis.scan_iter("foreign:*"):
            redis.delete(key)


async def test_while_redis_is_full_sign_outs_and_kicks_end_their_streams_and_publishes_are_refused(
    small_redis: Redis, pair: tuple[Replica, Replica]
) -> None:
    one, two = pair
    mine, other, kicked = token("full-1"), token("full-1"), token("full-2")
    async with (
        await Reader.open(two.url, mine) as leaving,
        await Reader.open(two.url, other) as staying,
        await Reader.open(two.url, kicked) as kicked_out,
    ):
        with filled(small_redis):
            assert one.publish(("user:full-1", "t", "too much")).status_code == 503

            signed_out = httpx.delete(f"{one.url}/api/session", headers=bearer(mine))
            operator = bearer(token("full-operator", role=OPERATOR))
            kick = httpx.delete(f"{one.url}/api/users/full-2/streams", headers=operator)

            assert (signed_out.status_code, kick.status_code) == (204, 204)
            assert (await leaving.next("stream.close")).data["reason"] == "signed_out"
            assert (await kicked_out.next("stream.close")).data["reason"] == "kicked"
            answers = [httpx.get(f"{two.url}/events", headers=bearer(who)).status_code for who in (mine, kicked)]
            assert answers == [401, 204]
            assert one.publish(("user:full-1", "t", "too much")).status_code == 503
        assert one.publish(("user:full-1", "t", "room again")).status_code == 202
        assert (await staying.next("t")).data == "room again"


async def test_how_full_redis_is_stands_in_the_metrics(small_redis: Redis, pair: tuple[Replica, Replica]) -> None:
    assert await until(lambda: pair[0].metric("allim_redis_memory_used_bytes"))
    assert pair[0].metric("allim_redis_memory_max_bytes") == 24 << 20


async def test_an_account_has_few_snapshots_pending_a_rate_and_keys_that_end_soon(redis: Redis) -> None:
    url = redis.url
    with replica(redis_url=url, redis_prefix="quotas", snapshots_per_min=7, snapshot_step_ms=4000) as running:
        account = {"email": "ada@example.org", "name": "Ada", "password": "correct horse"}
        async with httpx.AsyncClient(base_url=running.url) as client:
            made = (await client.post("/api/accounts", json=account)).json()
            client.headers.update(bearer(made["token"]))
            answers = [await client.post(SNAPSHOTS) for _ in range(9)]

            async def all_generated() -> bool:
                items = (await client.get(SNAPSHOTS)).json()["items"]
                return all(item["status"] == "generated" for item in items)

            assert [answer.status_code for answer in answers] == [202] * 4 + [409] * 3 + [429] * 2
            assert '"snapshots";q=7;w=60' in answers[0].headers["ratelimit-policy"]
            assert int(answers[8].headers["retry-after"]) > 0
            await until(all_generated, 40)
        assert running.metric("allim_refusals_total", limit="snapshots_pending") == 3
        assert running.metric("allim_refusals_total", limit="snapshots") == 2
    with redis.client() as store:
        keys = list(store.scan_iter("quotas:{0}:key:*"))
        assert len(keys) == 4 * 5
        assert all(0 < store.ttl(key) <= 600 for key in keys)
