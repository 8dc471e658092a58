"""Catch-up of one stream over a memory broker: what is told, and what the next hole means to it."""

import asyncio

import pytest
from harness.streams import ListStream

from allim.brokers.memory import MemoryBroker
from allim.hub import Backlog, Entry, Position, Publication
from allim.hub.catch_up import CatchUp
from allim.hub.event import encode
from allim.telemetry import Metrics

pytestmark = pytest.mark.anyio


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(history_events=5)


@pytest.fixture
def catch_up(broker: MemoryBroker) -> CatchUp:
    return CatchUp(broker, Metrics(), lambda: Backlog(1000))


async def publish(broker: MemoryBroker, *data: object, topic: str = "user:42") -> list[Position]:
    entries = [Entry(topic, encode("t", value)) for value in data]
    return list((await broker.publish(Publication(entries, None, ""))).positions)


async def test_a_new_stream_covers_all_until_it_goes_live(broker: MemoryBroker, catch_up: CatchUp) -> None:
    positions = await publish(broker, 1, 2)
    stream = ListStream()

    await catch_up.follow(stream, await catch_up.start(stream, None), dict)

    assert (stream.data, stream.live, stream.last) == ([], True, positions[1])
    assert stream.has_read(positions[1])


async def test_a_resumed_one_gets_the_rest_and_what_came_meanwhile(broker: MemoryBroker, catch_up: CatchUp) -> None:
    first, *_ = await publish(broker, 1, 2, 3)
    stream = ListStream()
    start = await catch_up.start(stream, str(first))
    assert stream.backlog is not None
    stream.backlog.spoil()  # the link was lost here
    await publish(broker, 4)

    await catch_up.follow(stream, start, dict)

    assert (stream.data, stream.gaps) == ([2, 3, 4], [])
    assert start.opening.replayed == 2


async def test_an_origin_that_begins_meanwhile_is_told_before_live(broker: MemoryBroker, catch_up: CatchUp) -> None:
    stream = ListStream()
    start = await catch_up.start(stream, None)
    assert stream.backlog is not None
    stream.backlog.floor = start.reading.now.after(start.reading.now.ms + 10)

    await catch_up.follow(stream, start, dict)

    assert stream.gaps == [(("user:42", "system"), "origin")]


async def test_what_is_trimmed_between_two_pages_is_told(broker: MemoryBroker, catch_up: CatchUp) -> None:
    [first] = await publish(broker, 1)
    stream = ListStream()
    start = await catch_up.start(stream, str(first))
    assert stream.backlog is not None
    stream.backlog.spoil()
    await publish(broker, *range(2, 9))

    await catch_up.follow(stream, start, dict)

    assert (stream.data, stream.gaps) == ([4, 5, 6, 7, 8], [(("user:42",), "trimmed")])


async def test_the_verdict_is_not_told_again_as_a_gap(broker: MemoryBroker, catch_up: CatchUp) -> None:
    stream = ListStream()
    start = await catch_up.start(stream, "1-1")
    assert start.opening.verdict.resume == "reset"
    assert stream.backlog is not None
    stream.backlog.spoil()

    await catch_up.follow(stream, start, dict)

    assert stream.gaps == []


async def test_a_trimmed_topic_is_told_once_over_many_pages(
    broker: MemoryBroker, catch_up: CatchUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("allim.hub.reads.PAGE_EVENTS", 1)
    [seen] = await publish(broker, "seen", topic="system")
    await publish(broker, 1, 2, 3)
    await publish(broker, *range(10), topic="system")
    stream = ListStream()

    await catch_up.follow(stream, await catch_up.start(stream, str(seen)), dict)

    assert (stream.data, stream.gaps) == ([1, 2, 3, 5, 6, 7, 8, 9], [])  # the verdict has told of `system`


class FullStream(ListStream):
    """Its buffer is full until it is emptied."""

    def __init__(self) -> None:
        super().__init__()
        self.emptied = asyncio.Event()

    async def writable(self) -> None:
        await self.emptied.wait()


async def test_a_stream_goes_live_with_a_buffer_that_is_not_full(broker: MemoryBroker, catch_up: CatchUp) -> None:
    stream = FullStream()
    following = asyncio.create_task(catch_up.follow(stream, await catch_up.start(stream, None), dict))
    await asyncio.sleep(0.05)
    assert not stream.live

    stream.emptied.set()
    await following

    assert stream.live
