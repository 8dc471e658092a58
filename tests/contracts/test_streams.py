"""What every stream is promised by the hub, over memory and over Redis."""

import asyncio
from collections.abc import Callable

import pytest
from harness.streams import ListStream, identity
from harness.waiting import until

from allim.errors import Unavailable
from allim.hub import CloseReason, Draft, Hub, Position

pytestmark = pytest.mark.anyio

MakeHub = Callable[..., "asyncio.Future[Hub]"]


async def opened(hub: Hub, stream: ListStream, last_event_id: str | None = None) -> ListStream:
    await hub.follow(stream, await hub.join(stream, last_event_id))
    return stream


def draft(data: object, topic: str = "user:42") -> Draft:
    return Draft(topic, "test", data)


async def test_a_new_stream_hears_what_comes_after_it_and_nothing_before(make_hub: MakeHub) -> None:
    hub = await make_hub()
    await hub.publish([draft("before")])
    stream = await opened(hub, ListStream())

    await hub.publish([draft("after"), draft("other", "user:7"), draft("all", "system")])
    await until(lambda: len(stream.data) == 2)

    assert stream.data == ["after", "all"]
    assert stream.opening is not None
    assert stream.opening.verdict.resume == "new"


async def test_resume_gives_exactly_what_was_missed(make_hub: MakeHub) -> None:
    hub = await make_hub()
    first = await opened(hub, ListStream())
    await hub.publish([draft("seen")])
    await until(lambda: first.data)
    hub.leave(first, CloseReason.CLIENT_LEFT)
    await hub.publish([draft(number) for number in range(5)])

    second = await opened(hub, ListStream(), first.messages[-1].id)

    assert second.data == [0, 1, 2, 3, 4]
    assert second.opening is not None
    assert second.opening.verdict.resume == "complete"
    assert second.opening.replayed == 5


async def test_resume_of_a_stream_that_saw_only_its_opening(make_hub: MakeHub) -> None:
    hub = await make_hub()
    first = await opened(hub, ListStream())
    assert first.opening is not None
    hub.leave(first, CloseReason.CLIENT_LEFT)
    await hub.publish([draft("missed")])

    second = await opened(hub, ListStream(), str(first.opening.position))

    assert second.data == ["missed"]


async def test_resume_of_a_stream_that_saw_only_heartbeats(make_hub: MakeHub) -> None:
    hub = await make_hub()
    first = await opened(hub, ListStream())
    position = await until(lambda: next((beat for beat in first.heartbeats if beat), None))
    hub.leave(first, CloseReason.CLIENT_LEFT)
    await hub.publish([draft("missed")])

    second = await opened(hub, ListStream(), str(position))

    assert second.data == ["missed"]
    assert second.opening is not None
    assert second.opening.verdict.resume == "complete"


async def test_trimmed_history_is_told_by_topic_and_the_rest_comes(make_hub: MakeHub) -> None:
    hub = await make_hub(history_events=3)
    first = await opened(hub, ListStream())
    assert first.opening is not None
    hub.leave(first, CloseReason.CLIENT_LEFT)
    await hub.publish([draft(number) for number in range(5)])

    second = await opened(hub, ListStream(), str(first.opening.position))

    assert second.opening is not None
    assert second.opening.verdict.resume == "reset"
    assert [tuple(reset) for reset in second.opening.verdict.resets] == [("user:42", "trimmed")]
    assert second.data == [2, 3, 4]


async def test_reset_exactly_when_something_after_the_position_is_gone(make_hub: MakeHub) -> None:
    hub = await make_hub(history_events=10)
    start = await opened(hub, ListStream())
    assert start.opening is not None
    published = await hub.publish([draft(number) for number in range(25)])

    verdicts = []
    for position in (start.opening.position, *published.positions):
        stream = await opened(hub, ListStream(), str(position))
        assert stream.opening is not None
        verdicts.append(stream.opening.verdict.resume)
        hub.leave(stream, CloseReason.CLIENT_LEFT)

    # The newest trimmed event is the 15th: who saw it (or anything later) misses nothing.
    assert verdicts == ["reset"] * 15 + ["complete"] * 11


@pytest.mark.parametrize(
    ("last_event_id", "reason"),
    [("garbage", "malformed"), ("1-", "malformed"), ("99999999999999-0", "ahead"), ("1-1", "origin")],
)
async def test_an_unusable_last_event_id_is_told_and_the_stream_lives(
    make_hub: MakeHub, last_event_id: str, reason: str
) -> None:
    hub = await make_hub()

    stream = await opened(hub, ListStream(), last_event_id)
    await hub.publish([draft("live")])
    await until(lambda: stream.data)

    assert stream.opening is not None
    assert [reset.reason for reset in stream.opening.verdict.resets] == [reason, reason]
    assert stream.data == ["live"]


async def test_a_heartbeat_whose_slice_comes_late_takes_no_position_back(make_hub: MakeHub) -> None:
    hub = await make_hub(heartbeat_s=60, pulse_s=60)
    passed, waits = await opened(hub, ListStream()), await opened(hub, ListStream())
    old = max(passed.last, waits.last).after(0)
    newer = old.after(0)
    passed.pass_to(newer)  # written to since the pulse was heard

    hub._pulse._write_heartbeats(iter([passed, waits]), old)

    assert (passed.heartbeats, passed.last) == ([None], newer)
    assert (waits.heartbeats, waits.last) == ([old], old)


async def test_heartbeats_carry_rising_positions(make_hub: MakeHub) -> None:
    hub = await make_hub(heartbeat_s=1, pulse_s=0.2)
    stream = await opened(hub, ListStream())

    await until(lambda: len(stream.heartbeats) >= 3)

    beats = [beat for beat in stream.heartbeats if beat is not None]
    assert beats
    assert beats == sorted(set(beats))


async def test_an_expired_token_ends_its_stream(make_hub: MakeHub) -> None:
    hub = await make_hub()
    stream = await opened(hub, ListStream(who=identity(expires_at=0)))

    await until(lambda: stream.close_reason)

    assert stream.close_reason is CloseReason.TOKEN_EXPIRED


async def test_lifetime_rotates_a_stream(make_hub: MakeHub) -> None:
    hub = await make_hub(stream_lifetime_s=1)
    stream = await opened(hub, ListStream())

    await until(lambda: stream.close_reason)

    assert stream.close_reason is CloseReason.ROTATE


async def test_a_draining_hub_refuses_streams_and_is_not_ready(make_hub: MakeHub) -> None:
    hub = await make_hub(drain_s=0.1)
    stream = await opened(hub, ListStream())

    hub.drain()

    with pytest.raises(Unavailable):
        await hub.join(ListStream(), None)
    with pytest.raises(Unavailable, match="draining"):
        await hub.check()
    await until(lambda: stream.close_reason is CloseReason.DRAIN)


async def test_a_stream_that_joined_before_the_drain_and_opens_after_it_is_drained_too(make_hub: MakeHub) -> None:
    hub = await make_hub(drain_s=0.1)
    stream = ListStream()
    begin = await hub.join(stream, None)

    hub.drain()
    await hub.follow(stream, begin)

    await until(lambda: stream.close_reason is CloseReason.DRAIN)


async def test_ready_once_the_own_pulse_came_back(make_hub: MakeHub) -> None:
    hub = await make_hub()

    async def ready() -> bool:
        try:
            await hub.check()
        except Unavailable:
            return False
        return True

    await until(ready)


async def test_a_backlog_that_overflows_is_read_from_history(make_hub: MakeHub) -> None:
    """A small backlog and a long history: what arrives while catching up comes all the same, in order."""
    hub = await make_hub(history_events=5000)
    first = await hub.publish([draft("first")])
    await hub.publish([draft("x" * 50) for _ in range(1000)])
    stream = ListStream(backlog_bytes=500)
    begin = await hub.join(stream, str(first.positions[0]))
    await hub.publish([draft(number) for number in range(100)])
    await hub.publish([draft("last", "system")])

    await hub.follow(stream, begin)
    await until(lambda: stream.data[-1] == "last")

    assert stream.data == ["x" * 50] * 1000 + [*range(100), "last"]
    assert stream.gaps == []


async def test_streams_joining_at_full_speed_get_no_hole_no_double_no_disorder(make_hub: MakeHub) -> None:
    """200 streams join, half of them resuming, while a publisher runs as fast as it can on their topics."""
    hub = await make_hub(history_events=10_000)
    topics = ["user:42", "system", "news:a", "news:b"]
    log: list[tuple[Position, int]] = []
    stop = asyncio.Event()

    async def publish() -> None:
        number = 0
        while not stop.is_set():
            drafts = [draft(number + i, topics[(number + i) % 4]) for i in range(20)]
            published = await hub.publish(drafts)
            log.extend((position, number + i) for i, position in enumerate(published.positions))
            number += 20
            await asyncio.sleep(0)

    async def join(index: int) -> tuple[ListStream, Position]:
        resumed = log[-len(log) // 10][0] if index % 2 else None
        stream = await opened(hub, ListStream(*topics), str(resumed) if resumed else None)
        assert stream.opening is not None
        return stream, stream.opening.position

    publisher = asyncio.create_task(publish())
    streams: list[tuple[ListStream, Position]] = []
    try:
        await until(lambda: len(log) > 100)
        for first in range(0, 200, 10):  # one by one, a slow machine would publish without end meanwhile
            streams += await asyncio.gather(*(join(first + i) for i in range(10)))
    finally:
        stop.set()
        await publisher
    last = log[-1][0]
    await until(lambda: all(stream.last >= last for stream, _ in streams), 30)

    for stream, start in streams:
        ids = [Position.parse(message.id) for message in stream.messages]
        assert ids == sorted(set(ids)), "disorder or double"
        assert stream.data == [number for position, number in log if position > start], "hole"


async def test_a_subscriber_hears_what_another_replica_publishes(
    make_hub: MakeHub, request: pytest.FixtureRequest
) -> None:
    here = await make_hub()
    there = here if "memory" in request.node.name else await make_hub()
    stream = await opened(here, ListStream())

    await there.publish([draft("from there")])
    await until(lambda: stream.data)

    assert stream.data == ["from there"]
