"""What a publish is worth: confirmed by a replica or by the disk, or not answered as stored."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from harness.redis_sets import APPEND_ALWAYS, APPEND_EVERYSEC, VALKEY, Node, Pair, node, pair
from harness.servers import free_port
from harness.streams import Lines

from allim.brokers.redis import RedisBroker
from allim.brokers.redis.durability import CONFIRM_TIMEOUT_S, Durability, check
from allim.brokers.redis.rights import Rights
from allim.errors import Unavailable
from allim.hub import Entry, Position, Publication
from allim.telemetry import Metrics
from tests.brokers.brokers import fresh_prefix

pytestmark = pytest.mark.anyio

DEADLINE_S = 10.0  # of a publish, over all its tries


@asynccontextmanager
async def broker(server: Node, durability: Durability, prefix: str | None = None) -> AsyncIterator[RedisBroker]:
    made = RedisBroker(server.url, "r", Metrics(), prefix=prefix or fresh_prefix(), durability=durability)
    try:
        yield made
    finally:
        await made.close()


async def publish(to: RedisBroker, number: int, key: str | None = None) -> str:
    outcome = await to.publish(Publication([Entry("a", bytes(Lines("t", number)))], key, key or ""))
    return str(outcome.positions[0])


@pytest.fixture(scope="module")
def replicated() -> Iterator[Pair]:
    with pair() as redis:
        yield redis


async def test_a_publish_is_confirmed_by_the_replica(replicated: Pair) -> None:
    async with broker(replicated.master, "replica") as one:
        position = await publish(one, 1)

        assert one.durability == "replica"
        with replicated.replica.client() as client:
            [history] = client.scan_iter("*:history:a")
            assert [entry[0] for entry in client.xrange(history)] == [position]


async def test_what_no_replica_confirms_is_unavailable_however_often_it_is_tried(replicated: Pair) -> None:
    """Also on a connection that itself wrote nothing: the key is known, but still nowhere else."""
    prefix = fresh_prefix()
    async with (
        broker(replicated.master, "replica", prefix) as one,
        broker(replicated.master, "replica", prefix) as two,
    ):
        await publish(one, 0)
        replicated.replica.freeze()
        try:
            began_at = time.monotonic()
            with pytest.raises(Unavailable, match="replica"):
                await publish(one, 1, "k")
            with pytest.raises(Unavailable, match="replica"):
                await publish(two, 1, "k")
            assert time.monotonic() - began_at < 2 * DEADLINE_S
        finally:
            replicated.replica.thaw()
        positions = [await publish(to, 1, "k") for to in (two, one)]
        stored = await one.read(["a"], Position(0, 0), 10, 10_000)

        assert positions[0] == positions[1]
        assert [str(event.position) for event in stored.events][1:] == positions[:1]


async def test_reads_and_pulses_do_not_wait_for_the_replica(replicated: Pair) -> None:
    async with broker(replicated.master, "replica") as one:
        position = await publish(one, 1)
        replicated.replica.freeze()
        try:
            began_at = time.monotonic()
            await one.pulse()
            stored = await one.read(["a"], Position(0, 0), 10, 10_000)
            assert time.monotonic() - began_at < CONFIRM_TIMEOUT_S
        finally:
            replicated.replica.thaw()

        assert [str(event.position) for event in stored.events] == [position]


async def test_without_a_replica_nothing_is_confirmed() -> None:
    with node() as alone:
        async with broker(alone, "replica") as one:
            with pytest.raises(Unavailable, match="replica"):
                await publish(one, 1)


@pytest.mark.parametrize(
    ("program", "options"),
    [
        pytest.param("redis-server", APPEND_ALWAYS, id="always"),
        pytest.param(VALKEY, APPEND_EVERYSEC, id="waitaof"),
    ],
)
async def test_a_disk_that_is_taken_away_while_running_is_noticed(program: str, options: tuple[str, ...]) -> None:
    with node(*options, program=program) as server:
        await check(server.url, "disk", Rights())
        async with broker(server, "disk") as one:
            first = await publish(one, 1, "k")
            with server.client() as client:
                client.config_set("appendonly", "no")
            with pytest.raises(Unavailable, match="disk"):
                await publish(one, 2)

            assert one.durability == "disk"
            assert Position.parse(first) > Position(0, 0)


@pytest.mark.parametrize(
    ("options", "reason"), [((), "append-only"), (APPEND_EVERYSEC, "appendfsync always")], ids=["none", "everysec"]
)
async def test_a_redis_that_cannot_confirm_the_disk_is_told_at_the_start(
    options: tuple[str, ...], reason: str
) -> None:
    with node(*options) as server:
        with pytest.raises(ValueError, match=reason):
            await check(server.url, "disk", Rights())
        await check(server.url, "memory", Rights())
        await check(server.url, "replica", Rights())


@pytest.mark.parametrize(
    ("program", "durability", "rule"),
    [("redis-server", "replica", "wait"), (VALKEY, "replica", "wait"), (VALKEY, "disk", "waitaof")],
)
async def test_a_user_who_may_not_wait_for_the_confirmation_stores_nothing(
    program: str, durability: Durability, rule: str
) -> None:
    with node(*APPEND_EVERYSEC, program=program) as server, server.client() as client:
        client.execute_command("ACL", "SETUSER", "u", "on", ">secret", "~*", "&*", "+@all", f"-{rule}")
        made = RedisBroker(server.url.replace("//", "//u:secret@"), "r", Metrics(), durability=durability)
        try:
            with pytest.raises(Unavailable, match="NOPERM"):
                await publish(made, 1)
            with pytest.raises(Unavailable, match=f"lacks rights: .*{rule}"):
                await made.check()
        finally:
            await made.close()

        assert client.keys("*history*") == []


async def test_a_right_to_wait_that_is_taken_away_is_no_confirmation() -> None:
    with node(*APPEND_EVERYSEC, program=VALKEY) as server, server.client() as client:
        client.execute_command("ACL", "SETUSER", "u", "on", ">secret", "~*", "&*", "+@all")
        made = RedisBroker(server.url.replace("//", "//u:secret@"), "r", Metrics(), durability="disk")
        try:
            await publish(made, 1)
            client.execute_command("ACL", "SETUSER", "u", "-waitaof")
            for number in (2, 3):
                with pytest.raises(Unavailable):
                    await publish(made, number)
            with pytest.raises(Unavailable, match=r"lacks rights: .*\+waitaof"):
                await made.check()
            assert client.xlen("allim:{0}:history:a") == 2  # the first, and the one that found out
        finally:
            await made.close()


async def test_a_redis_that_does_not_answer_yet_is_no_wrong_setting() -> None:
    await check(f"redis://127.0.0.1:{free_port()}/0", "disk", Rights())
