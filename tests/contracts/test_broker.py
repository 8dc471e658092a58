"""What every broker promises, over memory and over Redis."""

import asyncio

import pytest

from allim.errors import Conflict
from allim.hub import Broker, Entry, Event, Position, Publication
from tests.contracts.conftest import MakeBroker
from tests.streams import Lines
from tests.waiting import until

pytestmark = pytest.mark.anyio


class Ear:
    """A listener that keeps what it hears, in order."""

    def __init__(self) -> None:
        self.heard: list[Event | Position] = []
        self.ups = 0

    def on_event(self, event: Event) -> None:
        self.heard.append(event)

    def on_pulse(self, position: Position) -> None:
        self.heard.append(position)

    def link_down(self) -> None: ...

    def link_up(self) -> None:
        self.ups += 1

    @property
    def events(self) -> list[Event]:
        return [item for item in self.heard if isinstance(item, Event)]


def publication(*entries: tuple[str, object], key: str | None = None, fingerprint: str = "") -> Publication:
    return Publication([Entry(topic, bytes(Lines("test", data))) for topic, data in entries], key, fingerprint)


async def test_announces_to_subscribers_of_the_topic_only(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)
    await broker.subscribe(["a"])

    await broker.publish(publication(("b", 1), ("a", 2)))
    await until(lambda: ear.events)

    assert [(event.topic, Lines.data_of(event.lines)) for event in ear.events] == [("a", 2)]


async def test_positions_rise_over_all_topics_and_prev_chains_within_one(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)
    await broker.subscribe(["a", "b"])

    positions = await broker.publish(publication(("a", 1), ("b", 2), ("a", 3)))
    await until(lambda: len(ear.events) == 3)

    assert list(positions) == sorted(set(positions))
    assert [event.position for event in ear.events] == list(positions)
    assert [event.prev for event in ear.events] == [Position(0, 0), Position(0, 0), positions[0]]


async def test_wire_is_the_id_and_the_lines(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)
    await broker.subscribe(["a"])

    [position] = await broker.publish(publication(("a", {"x": "ü"})))
    await until(lambda: ear.events)

    assert ear.events[0].wire == f'id: {position}\nevent: test\ndata: {{"x":"ü"}}\n\n'.encode()


async def test_same_key_and_content_is_one_event_at_the_same_position(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)
    await broker.subscribe(["a"])

    first = await broker.publish(publication(("a", 1), ("a", 2), key="p:k", fingerprint="f1"))
    second = await broker.publish(publication(("a", 1), ("a", 2), key="p:k", fingerprint="f1"))
    await broker.pulse()
    await until(lambda: isinstance(ear.heard[-1], Position) if ear.heard else False)

    assert list(first) == list(second)
    assert len(ear.events) == 2


async def test_same_key_with_other_content_is_refused_and_stores_nothing(broker: Broker) -> None:
    await broker.start(Ear())
    [position] = await broker.publish(publication(("a", 1), key="p:k", fingerprint="f1"))

    with pytest.raises(Conflict) as caught:
        await broker.publish(publication(("a", 2), key="p:k", fingerprint="f2"))

    assert caught.value.fields[0].field == "Idempotency-Key"
    reading = await broker.read(["a"], Position(0, 0), 10)
    assert [event.position for event in reading.topics[0].events] == [position]


async def test_a_batch_of_a_thousand_under_a_key(broker: Broker) -> None:
    await broker.start(Ear())
    batch = publication(*(("a", n) for n in range(1000)), key="p:k", fingerprint="f1")

    first = await broker.publish(batch)

    assert len(first) == 1000
    assert list(await broker.publish(batch)) == list(first)


async def test_pulse_comes_after_what_was_published_before_it(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)
    await broker.subscribe(["a"])

    await broker.publish(publication(("a", 1)))
    await broker.pulse()
    await until(lambda: len(ear.heard) == 2)

    event, pulse = ear.heard
    assert isinstance(event, Event)
    assert isinstance(pulse, Position)
    assert pulse > event.position


async def test_read_gives_what_is_after_a_position(broker: Broker) -> None:
    await broker.start(Ear())
    positions = await broker.publish(publication(*(("a", n) for n in range(5))))

    reading = await broker.read(["a", "never"], positions[1], 10)

    assert [event.position for event in reading.topics[0].events] == list(positions[2:])
    assert reading.topics[0].oldest_prev == Position(0, 0)
    assert not reading.topics[1].events
    assert reading.topics[1].oldest_prev is None
    assert reading.now == positions[-1]
    assert reading.floor < positions[0]


async def test_read_pages_and_counts_the_rest(broker: Broker) -> None:
    await broker.start(Ear())
    positions = await broker.publish(publication(*(("a", n) for n in range(5))))

    [page] = (await broker.read(["a"], Position(0, 0), 2)).topics

    assert [event.position for event in page.events] == list(positions[:2])
    assert page.more == 3


async def test_read_of_the_clock_alone(broker: Broker) -> None:
    await broker.start(Ear())
    positions = await broker.publish(publication(("a", 1)))

    reading = await broker.read(["a"], None, 10)

    assert reading.now == positions[-1]
    assert not reading.topics[0].events


async def test_history_keeps_the_newest_and_says_what_it_trimmed(make_broker: MakeBroker) -> None:
    broker = make_broker(history_events=3)
    await broker.start(Ear())
    positions = await broker.publish(publication(*(("a", n) for n in range(5))))

    [page] = (await broker.read(["a"], Position(0, 0), 10)).topics

    assert [event.position for event in page.events] == list(positions[2:])
    assert page.oldest_prev == positions[1]


async def test_history_of_a_silent_topic_expires(make_broker: MakeBroker) -> None:
    broker = make_broker(history_ttl_s=1)
    await broker.start(Ear())
    await broker.publish(publication(("a", 1)))

    async def gone() -> bool:
        [page] = (await broker.read(["a"], Position(0, 0), 10)).topics
        return not page.events and page.oldest_prev is None

    await until(gone)


async def test_unsubscribe_and_subscribe_again_hears_again(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)
    for number in range(20):
        await broker.subscribe(["a"])
        await broker.publish(publication(("a", number)))
        await until(lambda number=number: len(ear.events) == number + 1)  # type: ignore[misc]
        broker.unsubscribe("a")
    await broker.publish(publication(("a", "unheard")))
    await broker.pulse()
    await until(lambda: isinstance(ear.heard[-1], Position))

    assert len(ear.events) == 20


async def test_subscriptions_crossing_each_other_are_all_confirmed(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)
    first = asyncio.create_task(broker.subscribe(["a"]))
    await asyncio.sleep(0)
    broker.unsubscribe("a")
    await broker.subscribe(["a", "b"])
    await first

    await broker.publish(publication(("a", 1)))

    await until(lambda: len(ear.events) == 1)


async def test_concurrent_publishers_lose_nothing(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)
    await broker.subscribe(["a"])

    await asyncio.gather(*(broker.publish(publication(("a", number))) for number in range(1500)))
    await until(lambda: len(ear.events) == 1500)

    positions = [event.position for event in ear.events]
    assert positions == sorted(positions)
    assert sorted(Lines.data_of(event.lines) for event in ear.events) == list(range(1500))


async def test_link_up_is_told_at_the_start(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)

    await until(lambda: ear.ups == 1)
