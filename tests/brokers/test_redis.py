"""RedisBroker against a real Redis that is killed, stopped, emptied and restarted."""

import asyncio
import signal
import time

import pytest
from harness.servers import Redis, end, free_port, redis_server
from harness.streams import Lines, ListStream, identity
from harness.waiting import until

from allim.brokers.redis import RedisBroker
from allim.brokers.redis.rights import Rights
from allim.brokers.redis.scripts import Refused
from allim.brokers.redis.server import RedisServer
from allim.errors import Unavailable
from allim.hub import ZERO, Entry, Hub, Outcome, Position, Publication
from allim.hub.reads import PAGE_BYTES
from allim.telemetry import Metrics
from tests.brokers.brokers import Replica, fresh_prefix, ready, running

pytestmark = pytest.mark.anyio


async def test_a_killed_link_loses_doubles_and_reorders_nothing(redis: Redis) -> None:
    async with running(redis.url) as replica:
        one = await replica.opened(ListStream("user:42"))
        both = await replica.opened(ListStream("user:42", "system"))
        with redis.client() as client:
            for number in range(300):
                await replica.publish(number)
                await replica.publish(-number, "system")
                if number % 100 == 50:
                    client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: len(both.data) >= 600)

        assert one.data == list(range(300))
        assert both.data == [sign * number for number in range(300) for sign in (1, -1)]
        assert (one.gaps, both.gaps, one.ended, both.ended) == ([], [], False, False)
        assert replica.counted("allim_link_repairs_total") >= 1


async def test_topics_published_in_turn_are_read_at_the_cost_of_topics_published_one_after_the_other() -> None:
    topics, each = [f"t:{number}" for number in range(50)], 50
    in_turn = [topic for _ in range(each) for topic in topics]
    with redis_server() as server, server.client() as client:
        commands = {}
        for order, names in (("in turn", in_turn), ("one after the other", sorted(in_turn))):
            broker = RedisBroker(server.url, "replica-1", Metrics(), prefix=fresh_prefix())
            entries = [Entry(name, bytes(Lines("test", number))) for number, name in enumerate(names)]
            await broker.publish(Publication(entries, None, ""))
            client.execute_command("CONFIG", "RESETSTAT")
            after, complete, got = ZERO, False, 0
            while not complete:
                page = await broker.read(topics, after, 512, PAGE_BYTES)
                after, complete, got = page.until, page.complete, got + len(page.events)
            commands[order] = sum(command["calls"] for command in client.info("commandstats").values())
            assert got == len(in_turn)
            await broker.close()

    assert commands["in turn"] <= 1.5 * commands["one after the other"]
    assert commands["in turn"] <= len(in_turn)


async def test_each_killed_link_is_one_repair(redis: Redis) -> None:
    async with running(redis.url) as replica:
        stream = await replica.opened(ListStream())
        for number in range(1, 4):
            with redis.client() as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda number=number: replica.counted("allim_link_repairs_total") == number)  # type: ignore[misc]
            await replica.publish(number)
        await until(lambda: len(stream.data) == 3)

        assert stream.data == [1, 2, 3]


async def test_what_one_replica_publishes_while_another_has_no_link_arrives_there(redis: Redis) -> None:
    prefix = fresh_prefix()
    async with running(redis.url, prefix) as one, running(redis.url, prefix) as two:
        stream = await two.opened(ListStream())
        await two.broker.replace_link()
        for number in range(50):
            await one.publish(number)
        await until(lambda: len(stream.data) >= 50)

        assert stream.data == list(range(50))


async def test_a_session_ended_while_the_link_is_away_ends(redis: Redis) -> None:
    prefix = fresh_prefix()
    async with running(redis.url, prefix) as one, running(redis.url, prefix) as two:
        stream = await two.opened(ListStream())
        await two.broker.replace_link()
        await one.hub.sessions.sign_out(identity())

        await until(lambda: stream.ended)

        assert str(stream.close_reason) == "signed_out"


async def test_a_redis_that_hangs_costs_readiness_and_no_stream() -> None:
    with redis_server() as server:
        async with running(server.url) as replica, running(server.url, replica.prefix) as other:
            stream = await replica.opened(ListStream())
            await other.publish("before")
            server.process.send_signal(signal.SIGSTOP)
            try:
                pending = [asyncio.create_task(other.publish(n, key=f"k{n}")) for n in range(3)]
                await until(lambda: _not_ready(replica.hub))
                assert not stream.ended
            finally:
                server.process.send_signal(signal.SIGCONT)
            await asyncio.gather(*pending)
            await other.publish("after")
            await until(lambda: "after" in stream.data, timeout_s=20)
            await until(lambda: ready(replica.hub))

            assert stream.data == ["before", 0, 1, 2, "after"]
            assert (stream.gaps, stream.ended) == ([], False)


async def _not_ready(hub: Hub) -> bool:
    return not await ready(hub)


async def test_an_emptied_redis_is_a_new_origin_for_those_who_resume(redis: Redis) -> None:
    with redis_server() as server:
        async with running(server.url) as replica:
            last_event_id = await replica.publish("lost")
            with server.client() as client:
                client.flushall()
            await until(lambda: _now_is_after(replica, last_event_id))

            stream = await replica.opened(ListStream(), last_event_id)
            await replica.publish("live")
            await until(lambda: stream.data)

            assert stream.opening is not None
            assert {(reset.topic, reset.reason) for reset in stream.opening.verdict.resets} == {
                ("user:42", "origin"),
                ("system", "origin"),
            }
            assert stream.data == ["live"]


async def test_positions_go_on_rising_when_an_emptied_redis_has_a_lagging_clock() -> None:
    with redis_server() as server:
        async with running(server.url) as replica:
            stream = await replica.opened(ListStream())
            with server.client() as client:
                client.hset(f"{replica.prefix}:{{0}}:clock", "ms", int(time.time() * 1000) + 60_000)
                ahead = Position.parse(await replica.publish("from a clock a minute ahead"))
                await until(lambda: stream.data)
                client.flushall()
            await until(lambda: _clock_is_past(replica, ahead))

            later = Position.parse(await replica.publish("later"))
            await until(lambda: len(stream.data) == 2)

            assert later > ahead
            assert stream.data == ["from a clock a minute ahead", "later"]


async def _now_is_after(replica: Replica, text: str) -> bool:
    return (await replica.broker.read(["user:42"], None, 1, PAGE_BYTES)).floor > Position.parse(text)


async def _clock_is_past(replica: Replica, position: Position) -> bool:
    return (await replica.broker.read(["user:42"], None, 1, PAGE_BYTES)).now > position


async def test_another_redis_in_its_place_is_told_as_a_gap_and_the_streams_stay() -> None:
    port = free_port()
    with redis_server(port=port) as first:
        async with running(first.url) as replica:
            stream = await replica.opened(ListStream())
            await replica.publish("before")
            await until(lambda: stream.data)
            end(first.process)
            with redis_server(port=port):
                await until(lambda: stream.gaps, timeout_s=20)
                await until(lambda: ready(replica.hub))
                await replica.publish("after")
                await until(lambda: len(stream.data) == 2)

                assert stream.gaps == [(("user:42", "system"), "origin")]
                assert stream.data == ["before", "after"]
                assert not stream.ended


@pytest.mark.parametrize(("durable", "reasons"), [(False, {"origin"}), (True, set())])
async def test_a_redis_that_came_back_may_have_lost_its_end_unless_it_is_durable(
    durable: bool, reasons: set[str]
) -> None:
    port, prefix = free_port(), fresh_prefix()
    with redis_server(port=port) as first:
        async with running(first.url, prefix, durable=durable) as replica:
            last_event_id = await replica.publish("kept")
            stream = await replica.opened(ListStream())
            with first.client() as client:
                client.save()
            first.process.kill()
            first.process.wait()
            with redis_server("--dir", str(first.folder), port=port):
                await until(lambda: replica.counted("allim_link_repairs_total") >= 1)
                await until(lambda: ready(replica.hub))
                resumed = await replica.opened(ListStream(), last_event_id)
                await until(lambda: not replica.hub._dispatcher._in_doubt)  # the repair is done, and the gap told

            assert resumed.opening is not None
            assert {reset.reason for reset in resumed.opening.verdict.resets} == reasons
            assert {reason for _, reason in stream.gaps} == reasons


async def test_a_flushed_script_cache_is_harmless(redis: Redis) -> None:
    async with running(redis.url) as replica:
        stream = await replica.opened(ListStream())
        for number in range(5):
            with redis.client() as client:
                client.script_flush()
            await asyncio.gather(replica.publish(number), replica.broker.pulse())
        await until(lambda: len(stream.data) >= 5)

        assert stream.data == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("lines", [b"", b"no lines", b"data: 1\n\n", b"event: t\ndata: 1\n"])
async def test_lines_written_by_a_stranger_are_skipped_and_counted(redis: Redis, lines: bytes) -> None:
    async with running(redis.url) as replica:
        first = await replica.publish(1)
        position = Position.parse(first)
        await until(lambda: _clock_is_past(replica, position))
        with redis.client() as client:
            history = f"{replica.prefix}:{{0}}:history:user:42"
            client.execute_command(
                "XADD", history, f"{position.ms}-{position.seq + 1}", "p", first, "n", 2, "d", lines
            )
        await replica.publish(2)

        stream = await replica.opened(ListStream(), first)
        await replica.publish(3)
        await until(lambda: 3 in stream.data)

        assert stream.data == [2, 3]
        assert replica.counted("allim_bad_entries_total") >= 1


@pytest.mark.parametrize(
    "message", [b"", b"garbage", b"1-0\nevent: t\ndata: 1\n\n", b"x y\nevent: t\n\n", b"\xff\xfe"]
)
async def test_announcements_by_a_stranger_are_skipped_and_counted(redis: Redis, message: bytes) -> None:
    async with running(redis.url) as replica:
        stream = await replica.opened(ListStream())
        with redis.client() as client, client.pipeline() as together:
            for _ in range(2):
                together.publish(f"{replica.prefix}:{{0}}:topic:user:42", message)
            together.execute()
        await replica.publish(1)
        await until(lambda: stream.data)

        assert stream.data == [1]
        assert replica.counted("allim_bad_entries_total") == 2
        assert replica.counted("allim_link_repairs_total") == 0


async def test_without_redis_nothing_is_promised_and_a_retry_with_its_key_is_no_double() -> None:
    port = free_port()
    with redis_server("--appendonly", "yes", "--appendfsync", "always", port=port) as first:
        async with running(first.url) as replica:
            position = await replica.publish("once", key="k")
            first.process.send_signal(signal.SIGTERM)
            first.process.wait()

            with pytest.raises(Unavailable):
                await replica.publish("never", key="other")
            with pytest.raises(Unavailable):
                await replica.publish("once", key="k")
            with redis_server("--appendonly", "yes", "--dir", str(first.folder), port=port):
                again = await until(lambda: _published(replica, "once", "k"))
                later = await until(lambda: _published(replica, "never", "other"))
                reading = await replica.broker.read(["user:42"], ZERO, 10, PAGE_BYTES)

            assert again == position
            assert [str(event.position) for event in reading.events] == [position, later]


async def _published(replica: Replica, data: str, key: str) -> str:
    try:
        return await replica.publish(data, key=key)
    except Unavailable:
        return ""


async def test_a_lost_answer_does_not_double_what_was_published_with_a_key(redis: Redis) -> None:
    with redis_server() as server:
        async with running(server.url) as replica:
            stream = await replica.opened(ListStream())
            server.process.send_signal(signal.SIGSTOP)
            task = asyncio.create_task(replica.publish("once", key="k"))
            done, _ = await asyncio.wait([task], timeout=0.3)
            server.process.send_signal(signal.SIGCONT)
            assert not done

            position = await task
            assert await replica.publish("once", key="k") == position
            await replica.publish("end")
            await until(lambda: "end" in stream.data)

            assert stream.data == ["once", "end"]


async def test_an_unreachable_redis_is_unavailable_and_not_ready() -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    replica = Replica(url, fresh_prefix())
    async with replica.hub.running():
        with pytest.raises(Unavailable):
            await replica.publish(1)
        with pytest.raises(Unavailable):
            await replica.broker.read(["a"], None, 1, PAGE_BYTES)
        assert not await ready(replica.hub)


async def test_the_keys_carry_the_prefix_and_the_shard_and_histories_are_removed_by_scripts_alone(
    redis: Redis,
) -> None:
    prefix = fresh_prefix()
    async with running(redis.url, prefix) as replica:
        await replica.publish(1, key="k")
        with redis.client() as client:
            keys = {key.decode(): client.ttl(key) for key in client.scan_iter(f"{prefix}:*")}
            due_ms = client.zscore(f"{prefix}:{{0}}:expiry", "user:42")
            left_s = due_ms / 1000 - client.time()[0]

    assert keys.pop(f"{prefix}:{{0}}:history:user:42") == -1
    assert keys.pop(f"{prefix}:{{0}}:clock") == -1
    assert 86_000 < keys.pop(f"{prefix}:{{0}}:replicas") <= 86_400
    assert keys.pop(f"{prefix}:{{0}}:expiry") == -1
    assert 3500 < left_s <= 3601
    [(idempotency, ttl)] = keys.items()
    assert idempotency.startswith(f"{prefix}:{{0}}:key:")
    assert 86000 < ttl <= 86400


async def test_history_is_trimmed_to_its_length(redis: Redis) -> None:
    broker = RedisBroker(redis.url, "r", Metrics(), prefix=fresh_prefix(), history_events=3)
    entries = [Entry("a", bytes(Lines("t", number))) for number in range(10)]
    positions = (await broker.publish(Publication(entries, None, ""))).positions
    page = await broker.read(["a"], ZERO, 2, PAGE_BYTES)
    await broker.close()

    assert [event.position for event in page.events] == list(positions[7:9])
    assert (page.trimmed, page.kept) == (["a"], 3)


@pytest.mark.parametrize("refused", ["hset", "xadd", "rpush", "expire", "publish", "&channels"])
async def test_a_publish_that_the_user_may_not_finish_changes_nothing(redis: Redis, refused: str) -> None:
    prefix = fresh_prefix()
    channels = "resetchannels" if refused == "&channels" else "allchannels"
    user = prefix + "-user"
    with redis.client() as client:
        client.execute_command("ACL", "SETUSER", user, "on", "nopass", "~*", "allchannels", "+@all")
        broker = RedisBroker(redis.url.replace("://", f"://{user}:x@"), "r", Metrics(), prefix=prefix)
        batch = Publication([Entry(topic, bytes(Lines("t", topic))) for topic in ("a", "b", "a")], "p:k", "f")
        await broker.read(["a"], ZERO, 1, PAGE_BYTES)  # the clock is there
        before = sorted(client.scan_iter(f"{prefix}:*"))
        rule = channels if refused == "&channels" else f"-{refused}"
        client.execute_command("ACL", "SETUSER", user, rule)

        with pytest.raises(Refused, match="NOPERM"):
            await broker.publish(batch)

        assert sorted(client.scan_iter(f"{prefix}:*")) == before
        client.execute_command("ACL", "SETUSER", user, "allchannels", "+@all")
        first = await until(lambda: accepted(broker, batch), what="the right is noticed")
        again = await broker.publish(batch)
        assert first is not None
        assert list(first.positions) == list(again.positions)
        page = await broker.read(["a", "b"], ZERO, 10, PAGE_BYTES)
        assert [event.position for event in page.events] == list(first.positions)
        await broker.close()
        client.execute_command("ACL", "DELUSER", user)


async def accepted(broker: RedisBroker, publication: Publication) -> Outcome | None:
    try:
        return await broker.publish(publication)
    except Refused:
        return None


async def test_its_connections_name_their_replica(redis: Redis) -> None:
    broker = RedisBroker(redis.url, "named-replica", Metrics(), prefix=fresh_prefix())
    await broker.pulse()
    with redis.client() as client:
        names = {entry["name"] for entry in client.client_list()}
    await broker.close()

    assert "allim-named-replica" in names


async def test_a_page_that_ends_before_a_topics_first_event_moves_on(redis: Redis) -> None:
    async with running(redis.url) as replica:
        since = await replica.publish("since")
        await replica.hub.sessions.sign_out(identity(session="other"))
        await asyncio.sleep(0.005)  # another millisecond, so that the next position ends with 0
        await replica.publish("between", "system")
        for _ in range(5):
            await replica.publish("x" * 60_000)

        stream = await replica.opened(ListStream(), since)

        assert [data[:7] for data in stream.data] == ["between", *["x" * 7] * 5]


async def test_publishes_follow_the_link_to_another_redis(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_server() as new:
        async with running(redis.url) as replica:
            await replica.publish("old")
            monkeypatch.setattr(replica.broker._server, "_make", RedisServer(new.url, "test", Rights())._make)
            await replica.broker.replace_link()
            await until(lambda: replica.counted("allim_link_repairs_total") >= 1)

            position = Position.parse(await replica.publish("new"))
            page = await replica.broker.read(["user:42"], ZERO, 10, PAGE_BYTES)

            assert [event.position for event in page.events] == [position]


async def test_joins_that_give_up_leave_nothing_in_the_link() -> None:
    replica = Replica(f"redis://127.0.0.1:{free_port()}/0", fresh_prefix())
    async with replica.hub.running():
        for number in range(20):
            joining = asyncio.create_task(replica.broker.subscribe([f"user:{number}"]))
            await asyncio.sleep(0)
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
            replica.broker.unsubscribe(f"user:{number}")

        link = replica.broker._link
        assert (link._waiters, len(link._commands)) == ({}, 0)
