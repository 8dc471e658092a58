"""The dispatcher between a link that loses things and streams that must not notice, or must be told."""

import asyncio
from collections.abc import Collection, Sequence

import pytest

from allim.errors import Unavailable
from allim.hub import (
    ZERO,
    CloseReason,
    Event,
    Listener,
    Position,
    Publication,
    Reading,
    TopicHistory,
    dispatcher,
)
from allim.hub.dispatcher import Dispatcher
from allim.hub.event import Control, encode, encode_control
from allim.hub.registry import Registry
from allim.telemetry import Metrics
from tests.streams import ListStream, identity
from tests.waiting import until

pytestmark = pytest.mark.anyio


class History:
    """A broker whose history can be read, and whose announcements are up to the test."""

    durability = "memory"

    def __init__(self) -> None:
        self.kept: dict[str, list[Event]] = {}
        self.newest: dict[str, Position] = {}
        self.floor = ZERO
        self.now = ZERO
        self.failures: list[Exception] = []
        self.open = asyncio.Event()
        self.open.set()
        self.asked: list[tuple[tuple[str, ...], Position | None]] = []

    def add(self, topic: str, ms: int, lines: bytes | None = None) -> Event:
        """Store an event at this position, announced or not."""
        self.now = Position(ms, 0)
        event = Event(topic, self.now, self.newest.get(topic, ZERO), lines or encode("t", ms))
        self.newest[topic] = event.position
        self.kept.setdefault(topic, []).append(event)
        return event

    def trim(self, topic: str, keep: int) -> None:
        del self.kept[topic][:-keep]

    async def read(self, topics: Sequence[str], after: Position | None, limit: int) -> Reading:
        assert after is not None
        self.asked.append((tuple(topics), after))
        await self.open.wait()
        if self.failures:
            raise self.failures.pop(0)
        pages = []
        for topic in topics:
            kept = self.kept.get(topic, [])
            newer = [event for event in kept if event.position > after]
            prev = kept[0].prev if kept else None
            pages.append(TopicHistory(topic, newer[:limit], prev, max(0, len(newer) - limit)))
        return Reading(self.now, self.floor, self.now.ms, pages)

    async def start(self, listener: Listener) -> None: ...

    async def close(self) -> None: ...

    async def publish(self, publication: Publication) -> Sequence[Position]:
        raise NotImplementedError

    async def subscribe(self, topics: Collection[str]) -> None: ...

    def unsubscribe(self, topic: str) -> None: ...

    async def pulse(self) -> None: ...

    def replace_link(self) -> None: ...


class Bench:
    """A dispatcher over a history, and streams that are live at a position."""

    def __init__(self) -> None:
        self.history = History()
        self.registry = Registry()
        self.metrics = Metrics()
        self.alive = 0
        self.beats: list[Position] = []
        self.dispatcher = Dispatcher(self.history, self.registry, self.metrics, self._note_alive, self.beats.append)

    def _note_alive(self) -> None:
        self.alive += 1

    def stream(self, *topics: str, at: int = 0, session: str = "s1") -> ListStream:
        stream = ListStream(*topics, who=identity(session=session))
        stream.backlog = None
        stream.last = stream.covered = Position(at, 0)
        self.registry.add(stream)
        for name in topics:
            topic = self.registry.topic(name)
            assert topic is not None
            topic.last = topic.last or Position(at, 0)
        return stream

    def metric(self, line: str) -> bool:
        return line.encode() in self.metrics.text().splitlines()


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "REPAIR_RETRY_S", 0.01)


async def test_an_event_is_written_to_the_streams_of_its_topic_at_once(bench: Bench) -> None:
    mine, other = bench.stream("a"), bench.stream("b")

    bench.dispatcher.on_event(bench.history.add("a", 1))
    bench.dispatcher.on_event(bench.history.add("nobody", 2))

    assert (mine.data, other.data) == ([1], [])
    assert bench.history.asked == []


async def test_a_hole_is_filled_before_the_event_that_shows_it(bench: Bench) -> None:
    stream = bench.stream("a")
    bench.dispatcher.on_event(bench.history.add("a", 1))
    bench.history.add("a", 2)
    bench.history.add("a", 3)

    bench.dispatcher.on_event(bench.history.add("a", 4))
    assert stream.data == [1]
    await until(lambda: len(stream.data) == 4)

    assert stream.data == [1, 2, 3, 4]
    assert bench.history.asked == [(("a",), Position(1, 0))]
    assert stream.gaps == []


async def test_a_hole_holds_the_other_topics_too_so_that_streams_stay_in_order(bench: Bench) -> None:
    stream = bench.stream("a", "b")
    bench.history.add("a", 1)
    bench.dispatcher.on_event(bench.history.add("a", 2))
    bench.dispatcher.on_event(bench.history.add("b", 3))
    assert stream.data == []

    await until(lambda: len(stream.data) == 3)

    assert stream.data == [1, 2, 3]


async def test_a_second_hole_among_what_was_held_is_filled_too(bench: Bench) -> None:
    stream = bench.stream("a", "b")
    bench.history.add("a", 1)
    bench.history.add("b", 2)
    bench.dispatcher.on_event(bench.history.add("b", 3))
    bench.dispatcher.on_event(bench.history.add("a", 4))

    await until(lambda: 4 in stream.data)

    assert stream.data[-1] == 4
    assert [n for n in stream.data if n in {2, 3}] == [2, 3]
    # The link dropped 1 before 2 and 3 were written: it can only be told of, never written out of order.
    assert stream.data == sorted(stream.data)
    assert 1 in stream.data or stream.gaps == [(("a",), "trimmed")]


async def test_after_a_link_loss_what_was_missed_comes_first_then_what_was_held(bench: Bench) -> None:
    one, both = bench.stream("a"), bench.stream("a", "b")
    bench.dispatcher.on_event(bench.history.add("a", 1))
    bench.dispatcher.on_pulse(Position(2, 0))
    bench.dispatcher.link_down()
    bench.history.add("a", 3)
    bench.history.add("b", 4)
    bench.history.open.clear()
    bench.dispatcher.link_up()
    bench.dispatcher.on_event(bench.history.add("a", 5))
    bench.dispatcher.on_event(bench.history.add("b", 6))
    assert (one.data, both.data) == ([1], [1])

    bench.history.open.set()
    await until(lambda: 6 in both.data)
    bench.dispatcher.on_event(bench.history.add("a", 7))

    assert one.data == [1, 3, 5, 7]
    assert both.data == [1, 3, 4, 5, 6, 7]
    assert {after for _, after in bench.history.asked} == {Position(2, 0)}
    assert (one.ended, both.ended, one.gaps, both.gaps) == (False, False, [], [])
    assert bench.metric("allim_link_repairs_total 1.0")


async def test_nothing_is_written_twice_when_history_and_link_bring_the_same(bench: Bench) -> None:
    stream = bench.stream("a")
    bench.dispatcher.link_down()
    held = [bench.history.add("a", ms) for ms in (1, 2, 3)]
    bench.dispatcher.link_up()
    for event in held:
        bench.dispatcher.on_event(event)

    await until(lambda: len(stream.data) >= 3)
    bench.dispatcher.on_event(bench.history.add("a", 4))

    assert stream.data == [1, 2, 3, 4]


async def test_what_was_written_since_the_last_pulse_is_read_again_and_is_no_gap(bench: Bench) -> None:
    stream = bench.stream("a")
    bench.dispatcher.on_event(bench.history.add("a", 1))
    bench.dispatcher.link_down()
    bench.history.add("a", 2)
    bench.dispatcher.link_up()

    await until(lambda: 2 in stream.data)

    assert (stream.data, stream.gaps) == ([1, 2], [])


async def test_more_than_a_page_is_missed_over_more_topics_than_a_step(bench: Bench) -> None:
    topics = [f"t{number}" for number in range(450)]
    stream = bench.stream(*topics)
    bench.dispatcher.link_down()
    for ms in range(1, 301):
        bench.history.add("t0", 2 * ms)
        bench.history.add(topics[-ms], 2 * ms + 1)
    bench.dispatcher.link_up()

    await until(lambda: len(stream.data) >= 600)

    assert stream.data == list(range(2, 602))


async def test_pulses_are_heard_only_when_what_came_before_them_is_written(bench: Bench) -> None:
    stream = bench.stream("a")
    bench.dispatcher.on_pulse(Position(1, 0))
    bench.dispatcher.link_down()
    bench.history.add("a", 2)
    bench.history.open.clear()
    bench.dispatcher.link_up()
    bench.dispatcher.on_pulse(Position(3, 0))
    assert (bench.alive, bench.beats, bench.dispatcher.heard) == (2, [Position(1, 0)], Position(1, 0))

    bench.history.open.set()
    await until(lambda: len(bench.beats) == 2)

    assert stream.data == [2]
    assert bench.dispatcher.heard == Position(3, 0)


async def test_a_second_loss_during_the_repair_starts_it_anew(bench: Bench) -> None:
    stream = bench.stream("a")
    bench.dispatcher.link_down()
    bench.history.add("a", 1)
    bench.history.open.clear()
    bench.dispatcher.link_up()
    await until(lambda: len(bench.history.asked) == 1)
    bench.dispatcher.link_down()
    bench.history.add("a", 2)
    bench.history.open.set()
    bench.dispatcher.link_up()

    await until(lambda: len(stream.data) >= 2)

    assert stream.data == [1, 2]
    assert bench.metric("allim_link_repairs_total 2.0")


@pytest.mark.parametrize("error", [Unavailable("no answer"), RuntimeError("a bug")])
async def test_a_repair_that_fails_is_tried_again_until_it_succeeds(bench: Bench, error: Exception) -> None:
    stream = bench.stream("a")
    bench.dispatcher.link_down()
    bench.history.add("a", 1)
    bench.history.failures += [error, error, error]
    bench.dispatcher.link_up()

    await until(lambda: stream.data)

    assert stream.data == [1]
    assert len(bench.history.asked) == 4


async def test_a_trimmed_topic_is_told_first_and_the_rest_comes(bench: Bench) -> None:
    one, other = bench.stream("a"), bench.stream("b")
    bench.dispatcher.on_event(bench.history.add("a", 1))
    bench.dispatcher.link_down()
    for ms in (2, 3, 4):
        bench.history.add("a", ms)
    bench.history.trim("a", keep=1)
    bench.dispatcher.link_up()

    await until(lambda: one.gaps)

    assert one.gaps == [(("a",), "trimmed")]
    assert one.data == [1, 4]
    assert (other.gaps, one.ended) == ([], False)
    assert bench.metric('allim_stream_gaps_total{reason="trimmed"} 1.0')


async def test_a_new_origin_is_told_for_every_topic(bench: Bench) -> None:
    stream = bench.stream("a", "b", at=5)
    bench.dispatcher.on_pulse(Position(6, 0))
    bench.dispatcher.link_down()
    bench.history.floor = bench.history.now = Position(100, 0)
    bench.dispatcher.link_up()

    await until(lambda: len(stream.gaps) == 2)
    bench.dispatcher.on_event(bench.history.add("a", 101))

    assert sorted(stream.gaps) == [(("a",), "origin"), (("b",), "origin")]
    assert stream.data == [101]
    assert not stream.ended


async def test_a_late_event_that_a_stream_is_past_is_a_gap_and_no_disorder(bench: Bench) -> None:
    both, one = bench.stream("a", "b"), bench.stream("a")
    late = bench.history.add("a", 1)
    bench.dispatcher.on_event(bench.history.add("b", 2))

    bench.dispatcher.on_event(bench.history.add("a", 3))
    await until(lambda: 3 in both.data)

    assert late.position == Position(1, 0)
    assert (both.data, both.gaps) == ([2, 3], [(("a",), "trimmed")])
    assert (one.data, one.gaps) == ([1, 3], [])


async def test_what_catch_up_has_already_written_is_no_gap(bench: Bench) -> None:
    old = bench.stream("a")
    bench.history.add("a", 1)
    new = bench.stream("a", at=1)  # it read the first event from history
    new.last = Position(1, 0)

    bench.dispatcher.on_event(bench.history.add("a", 2))
    await until(lambda: 2 in old.data)

    assert (old.data, new.data, new.gaps) == ([1, 2], [2], [])


async def test_a_stream_that_catches_up_is_told_nothing_here(bench: Bench) -> None:
    stream = bench.stream("a")
    stream.backlog = ListStream().backlog
    live = bench.stream("a")
    bench.dispatcher.link_down()
    bench.history.floor = bench.history.now = Position(100, 0)
    bench.dispatcher.link_up()

    await until(lambda: live.gaps)

    assert stream.gaps == []


async def test_an_order_ends_the_streams_of_its_session_and_is_not_written(bench: Bench) -> None:
    mine, other = bench.stream("user:42"), bench.stream("user:42", session="s2")
    order = encode_control("user:42", Control("s1", CloseReason.SIGNED_OUT))

    bench.dispatcher.on_event(bench.history.add("user:42", 1, order.lines))

    assert (mine.close_reason, other.close_reason) == (CloseReason.SIGNED_OUT, None)
    assert mine.written + other.written == b""


async def test_an_order_missed_by_the_link_is_obeyed_after_the_repair(bench: Bench) -> None:
    mine, other = bench.stream("user:42"), bench.stream("user:42", session="s2")
    order = encode_control("user:42", Control("s1", CloseReason.SIGNED_OUT))
    bench.dispatcher.link_down()
    bench.history.add("user:42", 1, order.lines)
    bench.history.add("user:42", 2)
    bench.dispatcher.link_up()

    await until(lambda: other.data)

    assert mine.close_reason is CloseReason.SIGNED_OUT
    assert (other.data, other.close_reason) == ([2], None)


async def test_a_stream_that_left_during_the_repair_is_forgotten(bench: Bench) -> None:
    gone, stays = bench.stream("a"), bench.stream("b")
    bench.dispatcher.link_down()
    bench.history.add("a", 1)
    bench.history.add("b", 2)
    bench.history.open.clear()
    bench.dispatcher.link_up()
    bench.registry.remove(gone)
    bench.history.open.set()

    await until(lambda: stays.data)

    assert (gone.data, stays.data) == ([], [2])


async def test_stopping_ends_a_repair_under_way(bench: Bench) -> None:
    stream = bench.stream("a")
    bench.dispatcher.link_down()
    bench.history.add("a", 1)
    bench.history.open.clear()
    bench.dispatcher.link_up()
    await until(lambda: bench.history.asked)

    bench.dispatcher.stop()
    bench.history.open.set()
    await asyncio.sleep(0)

    assert stream.data == []
    assert not [
        task for task in asyncio.all_tasks() if task.get_name() == "allim link repair" and not task.cancelling()
    ]


async def test_a_hole_that_history_cannot_fill_is_told_once_and_the_event_comes() -> None:
    bench = Bench()
    stream = bench.stream("a", at=1)
    bench.history.now = Position(5, 0)

    bench.dispatcher.on_event(Event("a", Position(5, 0), Position(4, 0), encode("t", 5)))
    await until(lambda: stream.data)

    assert stream.data == [5]
    assert stream.gaps == [(("a",), "trimmed")]
    assert len(bench.history.asked) == 1


async def test_a_hole_behind_a_new_origin_is_told_once() -> None:
    bench = Bench()
    stream = bench.stream("a", at=1)
    bench.history.floor = bench.history.now = Position(5, 1)

    bench.dispatcher.on_event(Event("a", Position(5, 0), Position(4, 0), encode("t", 5)))
    await until(lambda: stream.data)

    assert stream.gaps == [(("a",), "origin")]
