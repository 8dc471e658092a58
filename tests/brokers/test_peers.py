"""Replicas over one Redis that are not set up alike notice it themselves."""

import re
from contextlib import AbstractAsyncContextManager

import pytest
from harness.servers import Redis
from harness.waiting import until
from structlog.testing import capture_logs

from allim.brokers.redis.peers import Peers
from allim.domains.builtin import BUILT_IN
from allim.domains.choice import known
from allim.domains.settings import variables
from allim.errors import Unavailable
from allim.selection import select
from allim.settings import Settings, load_settings
from allim.variables import PREFIX
from tests.brokers.brokers import Replica, fresh_prefix, ready, started

pytestmark = pytest.mark.anyio

ONE, TWO = "a secret key of thirty-two letters", "another key of thirty-two letters!"
ALIKE = {"ALLIM_HISTORY_TTL_S": "3600", "ALLIM_PULSE_S": "0.2"}


def running(
    redis: Redis, prefix: str, name: str, keys: tuple[str, ...] = (ONE,), **settings: str
) -> AbstractAsyncContextManager[Replica]:
    """A replica with a name, keys and settings of its own."""
    peers = Peers(name, keys, {**ALIKE, **settings}, pulse_s=0.2)
    return started(Replica(redis.url, prefix, False, peers))


async def said(replica: Replica) -> str:
    """Return the text of readiness, with `!` in front when it is red."""
    try:
        return await replica.broker.check() or "ok"
    except Unavailable as error:
        return f"!{error.detail}"


async def says(replica: Replica, text: str) -> bool:
    return text == await said(replica)


async def test_a_setting_that_differs_is_named_on_both_replicas_and_takes_neither_out(redis: Redis) -> None:
    prefix = fresh_prefix()
    with capture_logs() as lines:
        async with running(redis, prefix, "replica-1") as one:
            async with running(redis, prefix, "replica-2", ALLIM_HISTORY_TTL_S="60") as two:
                await until(lambda: says(one, "ALLIM_HISTORY_TTL_S is 3600 here and 60 on replica-2"))
                await until(lambda: says(two, "ALLIM_HISTORY_TTL_S is 60 here and 3600 on replica-1"))
            await until(lambda: says(one, "ok"))  # as soon as the other has left

    told = [(line["replica"], line["difference"]) for line in lines if line["event"] == "replicas differ"]
    assert sorted(told) == [
        ("replica-1", "ALLIM_HISTORY_TTL_S is 3600 here and 60 on replica-2"),
        ("replica-2", "ALLIM_HISTORY_TTL_S is 60 here and 3600 on replica-1"),
    ]


async def test_a_replica_that_was_killed_counts_as_gone_after_some_pulses(redis: Redis) -> None:
    prefix = fresh_prefix()
    async with running(redis, prefix, "replica-1") as one:
        async with running(redis, prefix, "replica-2", ALLIM_HISTORY_TTL_S="60") as two:
            await until(lambda: says(one, "ALLIM_HISTORY_TTL_S is 3600 here and 60 on replica-2"))
            two.broker._followed = ""  # so that it leaves without a word
        assert await said(one) != "ok"
        await until(lambda: says(one, "ok"))


async def test_with_another_secret_key_the_replica_that_came_later_is_not_ready(redis: Redis) -> None:
    prefix = fresh_prefix()
    async with running(redis, prefix, "replica-1") as one:
        async with running(redis, prefix, "replica-2", (TWO,)) as two:
            other = "ALLIM_SECRET_KEY is another than on {}, whose tokens are not valid here"
            await until(lambda: says(two, "!" + other.format("replica-1")))
            await until(lambda: says(one, other.format("replica-2")))
        await until(lambda: says(one, "ok"))


async def test_while_the_secret_key_is_changed_replica_by_replica_the_new_one_is_ready(redis: Redis) -> None:
    prefix = fresh_prefix()
    async with (
        running(redis, prefix, "replica-1", (ONE,)) as one,
        running(redis, prefix, "replica-2", (TWO, ONE)) as two,
    ):
        other = "ALLIM_SECRET_KEY is another than on replica-2, whose tokens are not valid here"
        await until(lambda: says(one, other))
        assert await said(two) == "ok"


async def test_two_running_replicas_with_one_name_both_say_so(redis: Redis) -> None:
    prefix = fresh_prefix()
    twin = "another running replica has ALLIM_SERVER_ID replica-1 too"
    with capture_logs() as lines:
        async with running(redis, prefix, "replica-1") as one:
            async with running(redis, prefix, "replica-1") as two:
                await until(lambda: says(one, twin))
                await until(lambda: says(two, twin))
            await until(lambda: says(one, "ok"))

    assert [line["event"] for line in lines if line["log_level"] == "error"] == [
        "two replicas have one ALLIM_SERVER_ID"
    ] * 2


async def test_a_replica_that_is_started_again_under_its_name_is_no_twin(redis: Redis) -> None:
    prefix = fresh_prefix()
    with capture_logs() as lines:
        async with running(redis, prefix, "replica-1", ALLIM_HISTORY_TTL_S="60") as first:
            first.broker._followed = ""  # as if killed
        async with running(redis, prefix, "replica-1") as second:
            pulses = second.counted("allim_link_repairs_total")
            await until(lambda: says(second, "ok"))

    assert pulses == 0
    assert [line for line in lines if line["log_level"] == "error"] == []


async def test_a_twins_pulse_is_not_taken_for_the_own(redis: Redis) -> None:
    prefix = fresh_prefix()
    async with running(redis, prefix, "replica-1") as one:
        with redis.client() as client:
            client.publish(f"{prefix}:{{0}}:pulse:replica-1", "99999999999999-0 another")
        await until(lambda: says(one, "another running replica has ALLIM_SERVER_ID replica-1 too"))

        assert await ready(one.hub)


async def test_no_key_can_be_read_from_redis(redis: Redis) -> None:
    prefix = fresh_prefix()
    async with running(redis, prefix, "replica-1", (ONE, TWO)):
        with redis.client() as client:
            cards = client.hgetall(f"{prefix}:{{0}}:replicas")

    assert list(cards) == [b"replica-1"]
    assert ONE.encode() not in cards[b"replica-1"]
    assert TWO.encode() not in cards[b"replica-1"]


def test_every_limit_that_is_one_over_all_replicas_is_compared() -> None:
    limit = re.compile(r"_PER_(USER|HOUR|MIN|S)$")
    own = {PREFIX + name.upper() for name in Settings.model_fields}
    of_domains = {variable.name for domain in known(BUILT_IN) for variable in variables(domain.name, domain.settings)}
    settings = load_settings({"ALLIM_SECRET_KEY": ONE})
    compared = {*settings.equal(), *select(settings).equal()}

    assert {name for name in own | of_domains if limit.search(name)} | {"ALLIM_PUBLISHER_MEMORY_MB"} <= compared


def test_the_settings_that_are_compared_hold_no_secret() -> None:
    compared = load_settings({"ALLIM_SECRET_KEY": ONE}).equal()

    assert {"ALLIM_HISTORY_EVENTS", "ALLIM_HISTORY_TTL_S", "ALLIM_PULSE_S", "ALLIM_STREAMS_PER_USER"} <= set(compared)
    assert not [name for name in compared if "KEY" in name or "SECRET" in name or "URL" in name]
