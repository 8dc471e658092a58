"""Another Redis becomes the master: by hand or by Sentinel, with the tail lost, with two masters for a while."""

import asyncio
import itertools
from collections.abc import Sequence

import pytest
from harness.proxy import fault_proxy
from harness.redis_sets import address, node, pair, sentinel_set
from harness.replicas import Replica
from harness.waiting import until
from harness.witnesses import Publisher, Witness, history, publishing, witnessing

from allim.hub import Position
from tests.system.pairs import TOPICS, publish, publish_until_accepted, two_replicas

pytestmark = pytest.mark.anyio

ORIGIN = dict.fromkeys(TOPICS, "origin")
WRITES_BACK_S = 5.0  # after a master died that Sentinel declares down after 0.5 s
CONVERTED_S = 20.0  # how long Sentinel may leave an old master a master


async def assert_reset(replicas: Sequence[Replica], last_event_ids: Sequence[str]) -> None:
    """None of these may go on as if nothing had happened, whichever replica it comes to."""
    for replica, last_event_id in itertools.product(replicas, last_event_ids):
        async with witnessing(replica.url, "42", last_event_id) as resumed:
            assert (last_event_id, resumed.resets) == (last_event_id, ORIGIN)


async def assert_whole_since_told(follower: Witness, url: str) -> list[str]:
    """What history holds and came after the last gap was told is on the stream, once; what history holds."""
    kept = [message.id for message in await history(url, "42")]
    told = max(at for at, message in enumerate(follower.messages) if message.type == "stream.gap")
    since = Position.parse(follower.messages[told].id)
    read = [message.id for message in follower.messages[told:] if message.type == "t"]
    assert read == [text for text in kept if Position.parse(text) > since]
    return kept


def publish_hundred(to: Sequence[Replica], name: str) -> list[str]:
    """In batches of ten, from either replica in turn; their positions."""
    positions = []
    for batch in range(10):
        events = [("user:42", "t", f"{name} {batch * 10 + number}") for number in range(10)]
        positions += to[batch % len(to)].publish(*events).json()["ids"]
    return positions


async def test_a_lost_tail_is_told_to_all_who_heard_it() -> None:
    """The replica is behind when the master dies: what it never got is gone, though followers have read it."""
    with (
        node() as master,
        fault_proxy(master.port) as replication,
        pair(master=master, link_port=replication.port) as redis,
        address(master) as way,
        two_replicas(way.url) as (one, two),
    ):
        async with witnessing(one.url, "42") as first, witnessing(two.url, "42") as second:
            common = publish(one, "common")
            redis.until_in_sync()
            replication.black_hole()
            lost = publish_hundred((one, two), "lost")
            for follower in (first, second):
                await follower.until_data("lost 99")
            master.kill()
            redis.promote()
            way.lead_to(redis.replica)
            back = publish_until_accepted(one, "back")
            other = publish_hundred((one, two), "other")
            for follower in (first, second):
                await follower.until_data("other 99")
                follower.positions()
                assert (follower.gaps, follower.ended) == ([(frozenset(TOPICS), "origin")], False)
                assert [m.id for m in follower.events] == [common, *lost, back, *other]

            assert [message.id for message in await history(two.url, "42")] == [common, back, *other]
            await assert_reset((one, two), [common, *lost[::10], lost[-1]])
            async with witnessing(two.url, "42", back) as resumed:
                await resumed.until_data("other 99")
                assert (resumed.opening["resume"], resumed.opening["replayed"]) == ("complete", 100)


async def accept_more(publisher: Publisher, batches: int, timeout_s: float) -> None:
    answered = len(publisher.accepted)
    await until(lambda: len(publisher.accepted) >= answered + batches, timeout_s, "batches accepted")


async def test_sentinel_replaces_a_master_that_was_killed() -> None:
    """Under load, with one of three Sentinels frozen. Writes come back by themselves, loss is told, streams stay."""
    with sentinel_set(sentinels=3) as redis, two_replicas(redis.url) as (one, two):
        urls = [one.url, two.url]
        async with witnessing(one.url, "42") as first, witnessing(two.url, "42") as second:
            async with publishing(urls, "user:42", name="a") as a, publishing(urls[::-1], "system", name="b") as b:
                await accept_more(a, 10, 20)
                redis.sentinels[0].freeze()
                redis.master.kill()
                await accept_more(a, 1, 30)
                await accept_more(b, 10, 30)
                await accept_more(a, 10, 30)
            end = publish(one, "end")
            for follower in (first, second):
                await follower.until_data("end")
                follower.positions()
                assert (set(follower.gaps), follower.ended) == ({(frozenset(TOPICS), "origin")}, False)
                kept = await assert_whole_since_told(follower, two.url)

            assert max(a.slowest_s, b.slowest_s) < WRITES_BACK_S
            accepted = a.positions | b.positions
            assert set(kept) - accepted == {end}  # no batch was stored twice
            lost = sorted(accepted - set(kept), key=Position.parse)
            await assert_reset((one, two), [kept[0], *lost[-10:]])


async def test_sentinel_hands_the_mastership_over_under_load() -> None:
    """SENTINEL FAILOVER leaves the old master accepting until it is told. What it accepted alone is discarded, and
    that is told; at durability `replica` it confirms nothing alone, so nothing confirmed is lost."""
    with sentinel_set() as redis, two_replicas(redis.url, {"durability": "replica"}) as (one, two):
        async with witnessing(one.url, "42") as first, witnessing(two.url, "42") as second:
            async with (
                publishing([one.url], "user:42", name="a") as in_memory,
                publishing([two.url], "system", name="b") as replicated,
            ):
                await accept_more(in_memory, 10, 20)
                await accept_more(replicated, 10, 20)
                early = in_memory.accepted[0][0]
                await asyncio.to_thread(redis.failover)
                for follower in (first, second):
                    await follower.until_told(TOPICS, timeout_s=CONVERTED_S)
                await accept_more(replicated, 10, CONVERTED_S)
                await accept_more(in_memory, 10, CONVERTED_S)
            end = publish_until_accepted(two, "end")
            for follower in (first, second):
                await follower.until_data("end")
                follower.positions()
                assert not follower.ended
                assert {reason for _, reason in follower.gaps} == {"origin"}
                kept = await assert_whole_since_told(follower, two.url)

            assert (in_memory.durabilities, replicated.durabilities) == ({"memory"}, {"replica"})
            assert replicated.positions <= set(kept)
            assert set(kept) - in_memory.positions - replicated.positions == {end}  # no batch was stored twice
            lost = sorted(in_memory.positions - set(kept), key=Position.parse)
            await assert_reset((one, two), [early, *lost[::50], *lost[-1:]])


async def test_two_masters_for_a_while_cost_one_side_its_events_and_it_is_told() -> None:
    """The old master is cut off together with one replica, which publishes on. Healed, it follows the new one."""
    with (
        node() as master,
        fault_proxy(master.port) as replication,
        pair(master=master, link_port=replication.port) as redis,
        address(master) as cut_off_way,
        address(master) as way,
        two_replicas(cut_off_way.url, {"redis_url": way.url}) as (cut_off, other),
    ):
        async with witnessing(cut_off.url, "42") as astray, witnessing(other.url, "42") as follower:
            common = publish(cut_off, "common")
            redis.until_in_sync()
            replication.black_hole()
            redis.promote()
            way.lead_to(redis.replica)
            way.reset()
            await follower.until_told(TOPICS)
            discarded = [publish(cut_off, f"discarded {number}") for number in range(20)]
            kept = [publish_until_accepted(other, f"kept {number}") for number in range(20)]
            await astray.until_data("discarded 19")
            await follower.until_data("kept 19")
            heard = astray.last_event_id
            await until(lambda: astray.last_event_id != heard)  # a heartbeat of the side that will be discarded
            last_event_ids = [common, *discarded, heard, astray.last_event_id]
            redis.demote()
            cut_off_way.refuse()
            cut_off_way.lead_to(redis.replica)
            beats = follower.heartbeats  # the clock of the new master passes all that the other side has heard
            await until(lambda: follower.heartbeats >= beats + 2)
            cut_off_way.heal()
            await astray.until_told(TOPICS)
            after = [publish_until_accepted(cut_off, "after 0"), publish(other, "after 1")]
            for stream in (astray, follower):
                await stream.until_data("after 1")
                stream.positions()
                assert not stream.ended

            assert [message.id for message in await history(cut_off.url, "42")] == [common, *kept, *after]
            assert [m.id for m in astray.events][: 1 + len(discarded)] == [common, *discarded]
            assert set(after) <= {message.id for message in astray.events}
            assert [m.id for m in follower.events] == [common, *kept, *after]
            await assert_reset((cut_off, other), last_event_ids)


async def test_a_master_demoted_by_hand_is_left_as_soon_as_there_is_another() -> None:
    """REPLICAOF closes no connection. Until the address leads elsewhere a publish is refused; then it goes there."""
    with pair() as redis, address(redis.master) as way, two_replicas(way.url) as (one, two):
        async with witnessing(one.url, "42") as first, witnessing(two.url, "42") as second:
            before = publish(one, "before")
            redis.promote()
            redis.demote()
            refused = [to.publish(("user:42", "t", "refused")) for to in (one, two)]
            way.lead_to(redis.replica)
            after = {publish_until_accepted(to, "after") for to in (one, two)}
            for follower in (first, second):
                await follower.until_told(TOPICS)
                await follower.until_data("after")
                follower.positions()
                assert not follower.ended
                assert [message.id for message in follower.events] == [before, *after]

            assert [(answer.status_code, "retry-after" in answer.headers) for answer in refused] == [(503, True)] * 2
            assert [message.id for message in await history(one.url, "42")] == [before, *after]
            await assert_reset((one, two), [before])
