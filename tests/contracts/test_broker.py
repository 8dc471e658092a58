"""What every broker promises, over memory and over Redis."""

import asyncio
import random
from collections.abc import Sequence

import pytest
from harness.streams import Lines
from harness.waiting import until

from allim.brokers.memory import MemoryBroker
from allim.hub import ZERO, Broker, Demand, Entry, Event, Position, Publication
from allim.hub.reads import PAGE_BYTES
from tests.contracts.conftest import MakeBroker, MakeLedger

pytestmark = pytest.mark.anyio


class Ear:
    """A listener that keeps what it hears, in order."""

    def __init__(self) -> None:
        self.heard: list[Event | Position] = []
        self.most_at_once = 0
        self.ups = 0
        self.hints: list[str] = []

    def on_events(self, events: Sequence[Event]) -> None:
        self.heard += events
        self.most_at_once = max(self.most_at_once, len(events))

    def on_pulse(self, position: Position) -> None:
        self.heard.append(position)

    def on_origin(self, floor: Position) -> None: ...

    def on_hint(self, name: str) -> None:
        self.hints.append(name)

    def link_down(self) -> None: ...

    def link_up(self) -> None:
        self.ups += 1

    async def writable(self) -> None: ...

    @property
    def events(self) -> list[Event]:
        return [item for item in self.heard if isinstance(item, Event)]


def publication(*entries: tuple[str, object], key: str | None = None, fingerprint: str = "") -> Publication:
    return Publication([Entry(topic, bytes(Lines("test", data))) for topic, data in entries], key, fingerprint)


async def publish(broker: Broker, asked: Publication) -> Sequence[Position]:
    outcome = await broker.publish(asked)
    assert not outcome.quotas
    assert not outcome.conflict
    return outcome.positions


async def test_announces_to_subscribers_of_the_topic_only(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)
    await broker.subscribe(["a"])

    await publish(broker, publication(("b", 1), ("a", 2)))
    await until(lambda: ear.events)

    assert [(event.topic, Lines.data_of(event.lines)) for event in ear.events] == [("a", 2)]


async def test_positions_rise_over_all_topics_and_prev_chains_within_one(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)
    await broker.subscribe(["a", "b"])

    positions = await publish(broker, publication(("a", 1), ("b", 2), ("a", 3)))
    await until(lambda: len(ear.events) == 3)

    assert list(positions) == sorted(set(positions))
    assert [event.position for event in ear.events] == list(positions)
    assert [event.prev for event in ear.events] == [Position(0, 0), Position(0, 0), positions[0]]


async def test_what_is_published_together_is_heard_in_order(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)
    await broker.subscribe(["a", "b"])
    topics = random.Random(1).choices("aaaab", k=500)

    positions = await publish(broker, publication(*((topic, "x" * 200) for topic in topics)))
    await broker.pulse()
    await until(lambda: len(ear.heard) > len(topics))

    assert [event.position for event in ear.events] == list(positions)
    assert [event.topic for event in ear.events] == topics
    assert isinstance(ear.heard[-1], Position)


async def test_what_is_heard_at_once_is_little(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)
    await broker.subscribe(["a"])

    await publish(broker, publication(*[("a", number) for number in range(1000)]))
    await until(lambda: len(ear.events) == 1000)

    assert ear.most_at_once <= 64


async def test_an_event_arrives_with_its_position_and_as_it_was_encoded(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)
    await broker.subscribe(["a"])

    [position] = await publish(broker, publication(("a", {"x": "ü"})))
    await until(lambda: ear.events)

    assert ear.events[0].position == position
    assert ear.events[0].lines == 'event: test\ndata: {"x":"ü"}\n\n'.encode()


async def test_same_key_and_content_is_one_event_at_the_same_position(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)
    await broker.subscribe(["a"])

    first = await publish(broker, publication(("a", 1), ("a", 2), key="p:k", fingerprint="f1"))
    second = await publish(broker, publication(("a", 1), ("a", 2), key="p:k", fingerprint="f1"))
    await broker.pulse()
    await until(lambda: isinstance(ear.heard[-1], Position) if ear.heard else False)

    assert list(first) == list(second)
    assert len(ear.events) == 2


async def test_same_key_with_other_content_is_refused_and_stores_nothing(broker: Broker) -> None:
    await broker.start(Ear())
    [position] = await publish(broker, publication(("a", 1), key="p:k", fingerprint="f1"))

    outcome = await broker.publish(publication(("a", 2), key="p:k", fingerprint="f2"))

    assert (list(outcome.positions), outcome.conflict) == ([], True)
    reading = await broker.read(["a"], ZERO, 10, PAGE_BYTES)
    assert [event.position for event in reading.events] == [position]


async def test_a_key_is_known_for_as_long_as_its_publisher_says(broker: Broker) -> None:
    await broker.start(Ear())
    brief, lasting = (publication(("a", key), key=key, fingerprint="f") for key in ("brief", "lasting"))
    brief = brief._replace(keep_s=1)

    first = [await broker.publish(each) for each in (lasting, brief)]
    again = [await broker.publish(each) for each in (lasting, brief)]
    await asyncio.sleep(1.1)
    later = [await broker.publish(each) for each in (lasting, brief)]

    assert [list(positions) for positions in again] == [list(positions) for positions in first]
    assert list(later[0]) == list(first[0])
    assert list(later[1]) != list(first[1])


async def test_a_known_key_lives_on_from_its_last_use_for_as_long_as_that_says(broker: Broker) -> None:
    await broker.start(Ear())
    asked = publication(("a", 1), key="p:k", fingerprint="f")

    first = await broker.publish(asked._replace(keep_s=1))
    await broker.publish(asked)
    await asyncio.sleep(1.1)

    assert list(await broker.publish(asked)) == list(first)


async def test_a_batch_of_a_thousand_under_a_key(broker: Broker) -> None:
    await broker.start(Ear())
    batch = publication(*(("a", n) for n in range(1000)), key="p:k", fingerprint="f1")

    first = await publish(broker, batch)

    assert len(first) == 1000
    assert list(await publish(broker, batch)) == list(first)


async def test_a_publish_is_charged_and_over_its_limit_stores_nothing(broker: Broker) -> None:
    await broker.start(Ear())
    demand = Demand("publish:p", 3, 3600, 2)

    first = await broker.publish(publication(("a", 1), ("a", 2))._replace(demand=demand))
    over = await broker.publish(publication(("a", 3), ("a", 4))._replace(demand=demand))
    other = await broker.publish(publication(("a", 5))._replace(demand=demand._replace(name="publish:q")))

    assert [(quota.granted, quota.remaining) for quota in first.quotas] == [(True, 1)]
    assert [(quota.granted, quota.remaining) for quota in over.quotas] == [(False, 1)]
    assert 0 < over.quotas[0].retry_after_s <= 1200
    page = await broker.read(["a"], ZERO, 10, PAGE_BYTES)
    assert [event.position for event in page.events] == [*first.positions, *other.positions]


async def test_what_the_ledger_counts_and_what_a_publish_is_charged_are_one_rate(
    make_broker: MakeBroker, make_ledger: MakeLedger
) -> None:
    """A refused body is counted by the ledger, an accepted one by the broker."""
    broker, ledger = make_broker(), make_ledger()
    await broker.start(Ear())
    demand = Demand("publish:p", 3, 3600)

    refused = await ledger.charge([demand])
    accepted = await broker.publish(publication(("a", 1))._replace(demand=demand))
    again = await ledger.charge([demand])

    assert [grant.quotas[0].remaining for grant in (refused, accepted, again)] == [2, 1, 0]


async def test_a_repeat_and_a_conflict_are_charged_too(broker: Broker) -> None:
    await broker.start(Ear())
    demand = Demand("publish:p", 3, 3600)
    asked = publication(("a", 1), key="p:k", fingerprint="f1")._replace(demand=demand)

    outcomes = [await broker.publish(again) for again in (asked, asked, asked._replace(fingerprint="f2"), asked)]

    assert [outcome.quotas[0].remaining for outcome in outcomes] == [2, 1, 0, 0]
    assert [outcome.conflict for outcome in outcomes] == [False, False, True, False]
    assert list(outcomes[0].positions) == list(outcomes[1].positions)
    assert not outcomes[3].positions


MEMORY = Demand("publish-memory:p", 20_000, 3600)


async def test_ever_new_topics_and_keys_use_up_a_publishers_memory(broker: Broker) -> None:
    await broker.start(Ear())
    rate = Demand("publish:p", 1000, 3600)

    async def stored(*entries: tuple[str, object], key: str | None = None) -> bool:
        asked = publication(*entries, key=key, fingerprint="f" if key else "")
        outcome = await broker.publish(asked._replace(demand=rate, memory=MEMORY, keep_s=7200))
        assert len(outcome.quotas) == 2
        return bool(outcome.positions)

    assert [await stored((f"t:{number}", 1)) for number in range(6)] == [True] * 4 + [False] * 2
    assert await stored(("t:1", 2)), "an event of a topic that is there takes little"
    assert [await stored(("t:1", 3), key=f"k{number}") for number in range(3)] == [True, False, False]
    page = await broker.read([f"t:{number}" for number in range(6)], ZERO, 100, PAGE_BYTES)
    assert len(page.events) == 6


async def test_a_topic_with_a_long_name_takes_more_memory(broker: Broker) -> None:
    await broker.start(Ear())
    room = 2 * (4400 + 101) + 1500  # two topics with names of usual length, and too little for two long ones

    async def stored(publisher: str, key: str) -> bool:
        asked = publication((f"t:{key}", 1))._replace(demand=Demand("publish:p", 1000, 3600))
        outcome = await broker.publish(asked._replace(memory=Demand(f"publish-memory:{publisher}", room, 3600)))
        return bool(outcome.positions)

    assert [await stored("short", str(number)) for number in range(2)] == [True, True]
    assert [await stored("long", f"{number}" + "x" * 1000) for number in range(2)] == [True, False]


async def test_a_full_history_takes_no_more_memory(make_broker: MakeBroker) -> None:
    broker = make_broker(history_events=3)
    await broker.start(Ear())
    asked = publication(("a", "x" * 3000))._replace(demand=Demand("publish:p", 1000, 3600), memory=MEMORY)

    outcomes = [await broker.publish(asked) for _ in range(20)]

    assert [len(outcome.quotas) for outcome in outcomes] == [2] * 3 + [1] * 17
    assert all(outcome.positions for outcome in outcomes)


async def test_a_repeat_takes_no_memory(broker: Broker) -> None:
    await broker.start(Ear())
    asked = publication(("a", 1), key="p:k", fingerprint="f")
    asked = asked._replace(demand=Demand("publish:p", 1000, 3600), memory=MEMORY, keep_s=3600)

    outcomes = [await broker.publish(asked) for _ in range(10)]

    assert [len(outcome.quotas) for outcome in outcomes] == [2] + [1] * 9
    assert all(list(outcome.positions) == list(outcomes[0].positions) for outcome in outcomes)


async def test_pulse_comes_after_what_was_published_before_it(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)
    await broker.subscribe(["a"])

    await publish(broker, publication(("a", 1)))
    await broker.pulse()
    await until(lambda: len(ear.heard) == 2)

    event, pulse = ear.heard
    assert isinstance(event, Event)
    assert isinstance(pulse, Position)
    assert pulse > event.position


async def test_read_gives_what_is_after_a_position(broker: Broker) -> None:
    await broker.start(Ear())
    positions = await publish(broker, publication(*(("a", n) for n in range(5))))

    reading = await broker.read(["a", "never"], positions[1], 10, PAGE_BYTES)

    assert [event.position for event in reading.events] == list(positions[2:])
    assert (reading.trimmed, reading.kept, reading.complete) == ([], 3, True)
    assert reading.now == reading.until == positions[-1]
    assert reading.floor < positions[0]


async def test_a_page_is_full_at_a_number_of_events_and_counts_the_rest(broker: Broker) -> None:
    await broker.start(Ear())
    positions = await publish(broker, publication(*(("a", n) for n in range(5))))

    page = await broker.read(["a"], ZERO, 2, PAGE_BYTES)

    assert [event.position for event in page.events] == list(positions[:2])
    assert (page.kept, page.complete) == (5, False)
    assert positions[1] <= page.until < positions[2]


async def test_a_page_is_full_at_a_number_of_bytes_and_never_empty(broker: Broker) -> None:
    await broker.start(Ear())
    await publish(broker, publication(*(("a", "x" * 1000) for _ in range(100))))

    page = await broker.read(["a"], ZERO, 1000, 10)

    assert 1 <= len(page.events) <= 8
    assert (page.kept, page.complete) == (100, False)


@pytest.mark.parametrize("max_bytes", [1, 700, PAGE_BYTES])
@pytest.mark.parametrize("max_events", [1, 3, 1000])
async def test_pages_of_several_topics_give_every_event_once_and_in_order(
    broker: Broker, max_events: int, max_bytes: int
) -> None:
    await broker.start(Ear())
    of = random.Random(max_events * max_bytes)
    topics = ["a", "b", "c", "never"]
    batch = publication(*((of.choice("aabbbc"), n) for n in range(120)))
    positions = await publish(broker, batch)

    got: list[Position] = []
    after, complete = positions[9], False
    while not complete:
        page = await broker.read(topics, after, max_events, max_bytes)
        got += [event.position for event in page.events]
        assert page.until > after
        after, complete = page.until, page.complete

    assert got == list(positions[10:])
    assert after == positions[-1]


async def test_read_of_the_clock_alone(broker: Broker) -> None:
    await broker.start(Ear())
    positions = await publish(broker, publication(("a", 1)))

    reading = await broker.read(["a"], None, 10, PAGE_BYTES)

    assert reading.now == positions[-1]
    assert (list(reading.events), reading.kept, reading.complete) == ([], 0, True)


async def test_history_keeps_the_newest_and_says_what_it_trimmed(make_broker: MakeBroker) -> None:
    broker = make_broker(history_events=3)
    await broker.start(Ear())
    positions = await publish(broker, publication(*(("a", n) for n in range(5))))

    await publish(broker, publication(("b", 1)))

    for seen, trimmed in [(ZERO, ["a"]), (positions[0], ["a"]), (positions[1], []), (positions[2], [])]:
        page = await broker.read(["a", "b"], seen, 10, PAGE_BYTES)
        assert page.trimmed == trimmed
    assert [event.position for event in page.events[:2]] == list(positions[3:])


async def test_history_of_a_silent_topic_expires(make_broker: MakeBroker) -> None:
    broker = make_broker(history_ttl_s=1)
    await broker.start(Ear())
    await publish(broker, publication(("a", 1)))

    await until(lambda: removed(broker, "a"))


async def removed(broker: Broker, *topics: str) -> bool:
    """Return whether the topics have no history any more. A pulse removes due histories."""
    await broker.pulse()
    heads = await broker.heads(topics)
    return all(newest == ZERO for newest in heads.newest)


async def test_who_stands_before_what_a_removed_history_held_is_told_and_nobody_else(make_broker: MakeBroker) -> None:
    lasting, brief = make_broker(), make_broker(history_ttl_s=1)
    await lasting.start(Ear())
    if isinstance(lasting, MemoryBroker):  # one process, and one TTL
        lasting = brief
    [kept] = await publish(lasting, publication(("kept", 1)))
    first, last = await publish(brief, publication(("a", 1), ("a", 2)))
    gone = ["a"] if lasting is not brief else ["kept", "a"]
    await until(lambda: removed(brief, *gone))

    async def expired(after: Position) -> list[str]:
        return list((await brief.read(["kept", "a", "never"], after, 10, PAGE_BYTES)).expired)

    assert kept < first < last
    assert await expired(first) == [*gone, "never"]  # `never` had no history, and that cannot be known any more
    assert await expired(last) == []
    assert (await brief.heads(["a"])).expired == last


async def test_a_history_that_begins_anew_does_not_hide_the_one_that_was_removed(make_broker: MakeBroker) -> None:
    broker = make_broker(history_events=2, history_ttl_s=1)
    await broker.start(Ear())
    before, lost = await publish(broker, publication(("a", "before"), ("a", "lost")))
    await until(lambda: removed(broker, "a"))

    [first] = await publish(broker, publication(("a", "new")))

    page = await broker.read(["a"], before, 10, PAGE_BYTES)
    assert ([event.position for event in page.events], page.expired, page.trimmed) == ([first], ["a"], [])
    assert page.events[0].prev == ZERO  # so a live stream, which has seen it all, is told of no hole
    assert (await broker.read(["a"], lost, 10, PAGE_BYTES)).expired == []
    await publish(broker, publication(("a", 2), ("a", 3)))
    later = await broker.read(["a"], lost, 10, PAGE_BYTES)
    assert (later.expired, later.trimmed) == ([], ["a"])
    assert (await broker.read(["a"], first, 10, PAGE_BYTES)).trimmed == []


async def test_a_topic_that_keeps_getting_events_is_complete_however_old_the_position(
    make_broker: MakeBroker,
) -> None:
    broker = make_broker(history_ttl_s=1)
    await broker.start(Ear())
    first, *_ = await publish(broker, publication(("busy", 0), ("silent", 0)))

    async def silent_is_gone() -> bool:
        await publish(broker, publication(("busy", 1)))
        return await removed(broker, "silent")

    await until(silent_is_gone)

    page = await broker.read(["busy", "silent"], first, 1000, PAGE_BYTES)
    assert (page.expired, page.trimmed) == (["silent"], [])


async def test_heads_are_the_newest_positions(broker: Broker) -> None:
    await broker.start(Ear())
    positions = await publish(broker, publication(("a", 1), ("b", 1), ("a", 2)))

    heads = await broker.heads(["a", "b", "never"])

    assert list(heads.newest) == [positions[2], positions[1], ZERO]
    assert heads.floor < positions[0]


async def test_unsubscribe_and_subscribe_again_hears_again(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)
    for number in range(20):
        await broker.subscribe(["a"])
        await publish(broker, publication(("a", number)))
        await until(lambda number=number: len(ear.events) == number + 1)  # type: ignore[misc]
        broker.unsubscribe("a")
    await publish(broker, publication(("a", "unheard")))
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

    await publish(broker, publication(("a", 1)))

    await until(lambda: len(ear.events) == 1)


async def test_concurrent_publishers_lose_nothing(make_broker: MakeBroker) -> None:
    broker = make_broker(history_events=1500)
    ear = Ear()
    await broker.start(ear)
    await broker.subscribe(["a"])

    await asyncio.gather(*(publish(broker, publication(("a", number))) for number in range(1500)))
    await until(lambda: len(ear.events) == 1500)

    positions = [event.position for event in ear.events]
    assert positions == sorted(positions)
    assert sorted(Lines.data_of(event.lines) for event in ear.events) == list(range(1500))
    stored = await broker.read(["a"], ZERO, 2000, 1 << 20)
    assert [event.position for event in stored.events] == positions


async def test_link_up_is_told_at_the_start(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)

    await until(lambda: ear.ups == 1)


async def test_a_hint_is_heard_and_takes_no_position(broker: Broker) -> None:
    ear = Ear()
    await broker.start(ear)
    await until(lambda: ear.ups == 1)
    before = (await broker.heads([])).now

    await broker.hint("work")
    await broker.hint("other")

    await until(lambda: len(ear.hints) == 2)
    assert ear.hints == ["work", "other"]
    assert ear.heard == []
    assert (await broker.heads([])).now == before
