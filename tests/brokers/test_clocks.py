"""A Redis whose clock is stepped: rates, streams, histories, positions and idempotency keys."""

from collections.abc import AsyncIterator, Iterator

import pytest
from harness.clocks import ShiftedRedis, shifted_redis
from harness.streams import ListStream
from harness.waiting import until

from allim.brokers.redis import RedisBroker, RedisLedger
from allim.hub import ZERO, Broker, Demand, Entry, Ledger, Position, Publication
from allim.hub.event import encode
from allim.hub.reads import PAGE_BYTES
from allim.identity import Identity
from allim.telemetry import Metrics
from tests.brokers.brokers import fresh_prefix, running
from tests.contracts.test_broker import Ear, removed

pytestmark = pytest.mark.anyio

STEPS_BACK_S = [-5, -60, -3600]
FORWARD_S = 7200  # past the history's TTL


@pytest.fixture(scope="module")
def shifted() -> Iterator[ShiftedRedis]:
    with shifted_redis() as server:
        yield server


@pytest.fixture(autouse=True)
def right_again(shifted: ShiftedRedis) -> Iterator[None]:
    yield
    shifted.shift(0)


@pytest.fixture
async def ledger(shifted: ShiftedRedis) -> AsyncIterator[Ledger]:
    ledger = RedisLedger(shifted.url, "r", prefix=fresh_prefix())
    yield ledger
    await ledger.close()


@pytest.fixture
async def broker(shifted: ShiftedRedis) -> AsyncIterator[Broker]:
    broker = RedisBroker(shifted.url, "r", Metrics(), prefix=fresh_prefix())
    await broker.start(Ear())
    yield broker
    await broker.close()


async def publish(broker: Broker, topic: str, *data: object, key: str | None = None) -> list[Position]:
    entries = [Entry(topic, encode("t", value)) for value in data]
    return list((await broker.publish(Publication(entries, key, "fingerprint" if key else ""))).positions)


# -- Rates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", STEPS_BACK_S)
async def test_after_a_step_back_calls_are_granted_again_within_what_is_owed(
    shifted: ShiftedRedis, ledger: Ledger, step_s: int
) -> None:
    demand = Demand("stepped", 2, 1)
    for _ in range(2):
        await ledger.charge([demand])
    shifted.shift(step_s)

    refused = (await ledger.charge([demand._replace(cost=2)])).quotas[0]

    assert not refused.granted
    assert refused.retry_after_s <= 1
    assert refused.reset_s <= 1
    await until(lambda: _is_granted(ledger, demand))


@pytest.mark.parametrize("step_s", [*STEPS_BACK_S, 3600])
async def test_a_step_and_the_way_back_never_make_a_caller_wait_longer_than_the_period(
    shifted: ShiftedRedis, ledger: Ledger, step_s: int
) -> None:
    demand = Demand("there and back", 5, 60)
    for _ in range(5):
        await ledger.charge([demand])

    for at_s in (step_s, 0, -step_s, 0):
        shifted.shift(at_s)
        for _ in range(6):
            quota = (await ledger.charge([demand])).quotas[0]
            assert quota.retry_after_s <= 60
            assert quota.reset_s <= 60


async def test_a_step_forward_hands_out_no_more_than_a_full_limit(shifted: ShiftedRedis, ledger: Ledger) -> None:
    demand = Demand("forward", 5, 60)
    for _ in range(5):
        await ledger.charge([demand])
    shifted.shift(3600)

    granted = [(await ledger.charge([demand])).granted for _ in range(10)]

    assert granted == [True] * 5 + [False] * 5


async def test_an_array_above_the_limit_is_owed_for_longer_than_a_period_also_after_a_step_back(
    shifted: ShiftedRedis, ledger: Ledger
) -> None:
    await ledger.charge([Demand("array", 10, 1, cost=600)])
    shifted.shift(-3600)

    refused = (await ledger.charge([Demand("array", 10, 1)])).quotas[0]

    assert not refused.granted
    assert 50 < refused.retry_after_s <= 60


async def _is_granted(ledger: Ledger, demand: Demand) -> bool:
    return (await ledger.charge([demand])).granted


# -- Streams of a user ------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", STEPS_BACK_S)
async def test_after_a_step_back_a_new_stream_displaces_the_oldest_and_not_itself(
    shifted: ShiftedRedis, ledger: Ledger, step_s: int
) -> None:
    who = Identity("42", "s1", 4e9)
    for stream in ("a", "b"):
        await ledger.admit(who, stream, 2, 900)
    shifted.shift(step_s)

    displaced = [list((await ledger.admit(who, stream, 2, 900)).displaced) for stream in ("c", "d")]

    assert displaced == [["a"], ["b"]]


# -- Histories --------------------------------------------------------------------------------------------


async def test_a_step_forward_past_the_ttl_and_back_without_a_pulse_loses_nothing(
    shifted: ShiftedRedis, broker: Broker
) -> None:
    [seen, *missed] = await publish(broker, "a", *range(6))
    shifted.shift(FORWARD_S)
    await broker.read(["a"], seen, 10, PAGE_BYTES)
    shifted.shift(0)

    page = await broker.read(["a"], seen, 10, PAGE_BYTES)

    assert ([event.position for event in page.events], page.expired) == (missed, [])


@pytest.mark.parametrize("new_event", [False, True])
async def test_what_a_step_forward_removes_is_told_when_the_clock_is_right_again(
    shifted: ShiftedRedis, broker: Broker, new_event: bool
) -> None:
    [seen, *_] = await publish(broker, "a", *range(6))
    shifted.shift(FORWARD_S)
    assert await removed(broker, "a")
    [kept] = await publish(broker, "b", "kept")
    shifted.shift(0)
    if new_event:
        await publish(broker, "a", "new")

    page = await broker.read(["a", "b"], seen, 10, PAGE_BYTES)

    assert "a" in page.expired
    assert (await broker.read(["a", "b"], kept, 10, PAGE_BYTES)).expired == []


async def test_a_stream_that_resumes_after_a_step_there_and_back_is_told_what_is_lost(shifted: ShiftedRedis) -> None:
    async with running(shifted.url) as replica:
        first = await replica.opened(ListStream())
        assert first.opening is not None
        for number in range(5):
            await replica.publish(number)
        shifted.shift(FORWARD_S)
        await until(lambda: removed(replica.broker, "user:42"))
        shifted.shift(0)

        again = await replica.opened(ListStream(), str(first.opening.position))

        assert again.opening is not None
        assert ("user:42", "expired") in [tuple(reset) for reset in again.opening.verdict.resets]
        assert (first.data, first.gaps) == ([0, 1, 2, 3, 4], [])


async def test_replicas_with_different_ttls_never_call_complete_what_is_lost(shifted: ShiftedRedis) -> None:
    prefix = fresh_prefix()
    short, long = (RedisBroker(shifted.url, "r", Metrics(), prefix=prefix, history_ttl_s=ttl) for ttl in (1, 86400))
    for one in (short, long):
        await one.start(Ear())
    [seen, *_] = await publish(short, "a", *range(51))
    await until(lambda: removed(short, "a"))

    for one in (short, long):
        assert (await one.read(["a"], seen, 100, PAGE_BYTES)).expired == ["a"]

    [kept, *missed] = await publish(long, "b", *range(5))
    for one in (short, long):
        page = await one.read(["b"], kept, 100, PAGE_BYTES)
        assert ([event.position for event in page.events], page.expired) == (missed, [])
        await one.close()


async def test_a_history_of_an_earlier_version_lasts_once_this_one_writes_to_it(
    shifted: ShiftedRedis, broker: Broker
) -> None:
    prefix = broker._keys.shard  # type: ignore[attr-defined]
    [seen] = await publish(broker, "a", 1)
    with shifted.server.client() as client:
        client.expire(prefix + "history:a", 9)

        await publish(broker, "a", 2)

        assert client.ttl(prefix + "history:a") == -1
    assert (await broker.read(["a"], seen, 10, PAGE_BYTES)).expired == []


async def test_what_an_earlier_version_wrote_may_be_gone_without_a_trace(
    shifted: ShiftedRedis, broker: Broker
) -> None:
    prefix = broker._keys.shard  # type: ignore[attr-defined]
    [seen] = await publish(broker, "a", 1)
    with shifted.server.client() as client:
        ms = client.time()[0] * 1000 + 5000
        client.hset(prefix + "clock", mapping={"ms": ms, "seq": 0})  # as that version gives out a position
    [after] = await publish(broker, "b", 1)

    assert (await broker.read(["gone"], seen, 10, PAGE_BYTES)).expired == ["gone"]
    assert (await broker.read(["gone"], after, 10, PAGE_BYTES)).expired == []


async def test_new_topics_make_room_for_themselves_when_nobody_sends_a_pulse(shifted: ShiftedRedis) -> None:
    prefix = fresh_prefix()
    broker = RedisBroker(shifted.url, "r", Metrics(), prefix=prefix, history_ttl_s=60)
    for number in range(100):
        await publish(broker, f"old:{number}", 1)
    shifted.shift(120)

    for number in range(50):
        await publish(broker, f"new:{number}", 1)

    with shifted.server.client() as client:
        histories = {key.decode().rpartition("history:")[2] for key in client.scan_iter(f"{prefix}:*:history:*")}
        assert histories == {f"new:{number}" for number in range(50)}
        assert client.zcard(f"{prefix}:{{0}}:expiry") == 50
    await broker.close()


async def test_an_event_of_a_topic_that_was_due_stays_when_new_topics_come_with_it(
    shifted: ShiftedRedis, broker: Broker
) -> None:
    silent = [f"silent:{number}" for number in range(20)]
    for topic in silent:
        await publish(broker, topic, "before")
    shifted.shift(FORWARD_S)

    batch = [Entry(topic, encode("t", "now")) for topic in (*silent, *(f"new:{number}" for number in range(20)))]
    positions = (await broker.publish(Publication(batch, None, ""))).positions

    page = await broker.read([entry.topic for entry in batch], min(positions), 100, PAGE_BYTES)
    assert [event.position for event in page.events] == list(positions[1:])
    assert list((await broker.heads(silent)).newest) == list(positions[: len(silent)])


async def test_a_full_redis_gets_room_by_what_is_due() -> None:
    prefix = fresh_prefix()
    with shifted_redis() as shifted, shifted.server.client() as client:
        broker = RedisBroker(shifted.url, "r", Metrics(), prefix=prefix)
        await broker.start(Ear())
        [seen, *_] = await publish(broker, "a", *["x" * 1000] * 100)
        client.config_set("maxmemory", 1)
        shifted.shift(FORWARD_S)

        await broker.pulse()

        assert client.exists(f"{prefix}:{{0}}:history:a") == 0
        assert (await broker.read(["a"], seen, 10, PAGE_BYTES)).expired == ["a"]
        await broker.close()


# -- Positions, keys and the pulse ------------------------------------------------------------------------


@pytest.mark.parametrize("step_s", STEPS_BACK_S)
async def test_after_a_step_back_positions_rise_keys_hold_and_heartbeats_go_on(
    shifted: ShiftedRedis, step_s: int
) -> None:
    async with running(shifted.url) as replica:
        stream = await replica.opened(ListStream())
        first = await replica.publish("first", key="p:k")
        shifted.shift(step_s)

        assert await replica.publish("first", key="p:k") == first
        second = await replica.publish("second")
        beats = len([beat for beat in stream.heartbeats if beat])
        await until(lambda: len([beat for beat in stream.heartbeats if beat]) >= beats + 2)

        assert Position.parse(second) > Position.parse(first) > ZERO
        assert [message.id for message in stream.messages] == [first, second]
        assert (stream.gaps, stream.ended) == ([], False)
