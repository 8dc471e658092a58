"""The dispatcher between a link that loses things and streams that must not notice, or must be told."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from functools import partial

import pytest
from harness.streams import ListStream
from harness.waiting import until

from allim.errors import Unavailable
from allim.hub import ZERO, Backlog, CloseReason, Event, Heads, Position, Run, catch_up, dispatcher
from allim.hub.catch_up import Seen
from allim.hub.event import Control, encode, encode_control
from allim.hub.registry import Topic
from allim.hub.stream import Stream
from allim.transports.sse import frames
from tests.hub.histories import Bench, keep_in

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.dispatcher.stop()
    await bench.catch_up.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "REPAIR_RETRY_S", 0.01)
    monkeypatch.setattr(catch_up, "RETRY_S", 0.01)


async def test_an_event_is_written_to_the_streams_of_its_topic_at_once(bench: Bench) -> None:
    mine, other = bench.stream("a"), bench.stream("b")

    bench.dispatcher.on_events([bench.history.add("a", 1)])
    bench.dispatcher.on_events([bench.history.add("nobody", 2)])

    assert (mine.data, other.data) == ([1], [])
    assert bench.history.asked == []


async def test_a_hole_is_filled_before_the_event_that_shows_it(bench: Bench) -> None:
    stream = bench.stream("a")
    bench.dispatcher.on_events([bench.history.add("a", 1)])
    bench.history.add("a", 2)
    bench.history.add("a", 3)

    bench.dispatcher.on_events([bench.history.add("a", 4)])
    assert stream.data == [1]
    await until(lambda: len(stream.data) == 4)

    assert stream.data == [1, 2, 3, 4]
    assert bench.history.asked == [(("a",), Position(1, 0))]
    assert stream.gaps == []
    assert bench.metric("allim_catch_up_events_total 3.0")


async def test_a_hole_that_is_seen_while_the_first_stream_joins_is_filled(bench: Bench) -> None:
    bench.history.add("a", 1)
    stream = ListStream("a")
    bench.registry.add(stream)
    start = await bench.catch_up.start(stream, "1-0")
    bench.history.add("a", 2)
    bench.dispatcher.on_events([bench.history.add("a", 3)])

    await bench.catch_up.follow(stream, start, dict)
    bench.dispatcher.on_events([bench.history.add("a", 4)])

    assert stream.data == [2, 3, 4]
    assert stream.gaps == []


async def test_in_doubt_what_comes_together_brings_each_stream_back_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [bench.stream("a") for _ in range(3)]
    bench.dispatcher.link_down()
    brought: list[Stream] = []
    bring_back = bench.catch_up.bring_back

    def note(stream: Stream, seen: Seen) -> None:
        brought.append(stream)
        bring_back(stream, seen)

    monkeypatch.setattr(bench.catch_up, "bring_back", note)
    bench.dispatcher.on_events([bench.history.add("a", ms) for ms in range(1, 101)])
    bench.dispatcher.link_up()
    await until(lambda: all(stream.data == list(range(1, 101)) for stream in streams))

    assert len(brought) <= 2 * len(streams)  # by what came, and by the repair


async def test_in_doubt_nothing_is_written_straight_to_who_has_read_but_a_part(bench: Bench) -> None:
    stream = bench.stream("a", "b")
    bench.dispatcher.link_down()
    run = [bench.history.add("a", 1), bench.history.add("a", 2)]
    stream.pass_to(Position(2, 0))
    stream.covered = stream.last
    bench.history.add("b", 3)

    bench.dispatcher.on_events([*run, bench.history.add("a", 4)])
    bench.dispatcher.link_up()
    await until(lambda: 4 in stream.data)

    assert stream.data == [3, 4]
    assert stream.gaps == []


async def test_a_stream_with_a_hole_gets_its_other_topics_in_order_too(bench: Bench) -> None:
    both, other = bench.stream("a", "b"), bench.stream("b")
    bench.history.add("a", 1)
    bench.dispatcher.on_events([bench.history.add("a", 2)])
    bench.dispatcher.on_events([bench.history.add("b", 3)])
    assert (both.data, other.data) == ([], [3])  # who has no hole does not wait

    await until(lambda: len(both.data) == 3)

    assert both.data == [1, 2, 3]


async def test_a_second_hole_during_catch_up_is_filled_or_told_too(bench: Bench) -> None:
    stream = bench.stream("a", "b")
    bench.history.add("a", 1)
    bench.history.add("b", 2)
    bench.dispatcher.on_events([bench.history.add("b", 3)])
    bench.dispatcher.on_events([bench.history.add("a", 4)])

    await until(lambda: 4 in stream.data)

    assert stream.data[-1] == 4
    assert [n for n in stream.data if n in {2, 3}] == [2, 3]
    # The link dropped 1 before 2 and 3 were written: it can only be told of, never written out of order.
    assert stream.data == sorted(stream.data)
    assert 1 in stream.data or stream.gaps == [(("a",), "trimmed")]


async def test_after_a_link_loss_what_was_missed_comes_first_then_what_was_held(bench: Bench) -> None:
    one, both = bench.stream("a"), bench.stream("a", "b")
    bench.dispatcher.on_events([bench.history.add("a", 1)])
    bench.dispatcher.on_pulse(Position(2, 0))
    bench.dispatcher.link_down()
    bench.history.add("a", 3)
    bench.history.add("b", 4)
    bench.history.open.clear()
    bench.dispatcher.link_up()
    bench.dispatcher.on_events([bench.history.add("a", 5)])
    bench.dispatcher.on_events([bench.history.add("b", 6)])
    assert (one.data, both.data) == ([1], [1])

    bench.history.open.set()
    await until(lambda: 6 in both.data)
    bench.dispatcher.on_events([bench.history.add("a", 7)])

    assert one.data == [1, 3, 5, 7]
    assert both.data == [1, 3, 4, 5, 6, 7]
    assert (one.ended, both.ended, one.gaps, both.gaps) == (False, False, [], [])
    assert bench.metric("allim_link_repairs_total 1.0")


async def test_nothing_is_written_twice_when_history_and_link_bring_the_same(bench: Bench) -> None:
    stream = bench.stream("a")
    bench.dispatcher.link_down()
    held = [bench.history.add("a", ms) for ms in (1, 2, 3)]
    bench.dispatcher.link_up()
    for event in held:
        bench.dispatcher.on_events([event])

    await until(lambda: len(stream.data) >= 3)
    bench.dispatcher.on_events([bench.history.add("a", 4)])

    assert stream.data == [1, 2, 3, 4]


async def test_what_was_written_since_the_last_pulse_is_read_again_and_is_no_gap(bench: Bench) -> None:
    stream = bench.stream("a")
    bench.dispatcher.on_events([bench.history.add("a", 1)])
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
    assert (bench.pulse.arrivals, bench.pulse.beats) == (2, [Position(1, 0)])

    bench.history.open.set()
    await until(lambda: len(bench.pulse.beats) == 2)
    assert bench.pulse.beats[-1] == Position(3, 0)
    await until(lambda: stream.data)

    assert stream.data == [2]


async def test_a_second_loss_during_the_repair_starts_it_anew(bench: Bench) -> None:
    stream = bench.stream("a")
    bench.dispatcher.link_down()
    bench.history.add("a", 1)
    bench.history.open.clear()
    bench.dispatcher.link_up()
    await asyncio.sleep(0)
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
    assert bench.history.failures == []


async def test_a_trimmed_topic_is_told_first_and_the_rest_comes(bench: Bench) -> None:
    one, other = bench.stream("a"), bench.stream("b")
    bench.dispatcher.on_events([bench.history.add("a", 1)])
    bench.dispatcher.link_down()
    for ms in (2, 3, 4):
        bench.history.add("a", ms)
    bench.history.trim("a", keep=1)
    bench.dispatcher.link_up()

    await until(lambda: len(one.data) == 2)

    assert one.gaps == [(("a",), "trimmed")]
    assert one.data == [1, 4]
    assert (other.gaps, one.ended) == ([], False)
    assert bench.metric('allim_stream_gaps_total{reason="trimmed"} 1.0')


async def test_a_new_origin_is_told_once_for_all_topics_of_each_stream(bench: Bench) -> None:
    behind, idle = bench.stream("a", "b", at=5), bench.stream("c", at=5)
    bench.dispatcher.on_pulse(Position(6, 0))
    bench.dispatcher.link_down()
    bench.history.add("a", 7)
    bench.history.floor = bench.history.now = Position(100, 0)
    bench.dispatcher.link_up()
    bench.dispatcher.on_origin(Position(100, 0))
    await until(lambda: behind.live and behind.gaps and idle.gaps)

    bench.dispatcher.on_events([bench.history.add("a", 101)])

    assert (behind.gaps, idle.gaps) == ([(("a", "b"), "origin")], [(("c",), "origin")])
    assert behind.data == [7, 101]
    assert not behind.ended


async def test_a_new_origin_over_an_unbroken_link_is_told_before_what_follows(bench: Bench) -> None:
    live, fresh = bench.stream("a", at=5), bench.stream("a", at=200)
    joining = bench.stream("a", at=5)
    joining.backlog = Backlog(1000)

    bench.dispatcher.on_origin(Position(100, 0))
    assert (live.gaps, live.data) == ([(("a",), "origin")], [])
    bench.dispatcher.on_events([Event("a", Position(201, 0), ZERO, encode("t", 201))])
    bench.dispatcher.on_origin(Position(100, 0))

    assert (live.data, live.gaps) == ([201], [(("a",), "origin")])
    assert fresh.gaps == []  # it came after
    assert joining.backlog.floor == Position(100, 0)


async def test_a_late_event_that_a_stream_is_past_is_a_gap_and_no_disorder(bench: Bench) -> None:
    both, one = bench.stream("a", "b"), bench.stream("a")
    late = bench.history.add("a", 1)
    bench.dispatcher.on_events([bench.history.add("b", 2)])

    bench.dispatcher.on_events([bench.history.add("a", 3)])
    await until(lambda: 3 in both.data)

    assert late.position == Position(1, 0)
    assert (both.data, both.gaps) == ([2, 3], [(("a",), "trimmed")])
    assert (one.data, one.gaps) == ([1, 3], [])


async def test_what_catch_up_has_already_written_is_no_gap(bench: Bench) -> None:
    old = bench.stream("a")
    bench.history.add("a", 1)
    new = bench.stream("a", at=1)  # it read the first event from history
    new.pass_to(Position(1, 0))

    bench.dispatcher.on_events([bench.history.add("a", 2)])
    await until(lambda: 2 in old.data)

    assert (old.data, new.data, new.gaps) == ([1, 2], [2], [])


async def test_a_history_that_was_removed_while_the_link_was_away_is_told(bench: Bench) -> None:
    mine, other = bench.stream("a", at=5), bench.stream("b", at=5)
    bench.history.add("b", 6)
    bench.dispatcher.on_events(bench.history.kept["b"])
    bench.dispatcher.on_pulse(Position(7, 0))
    bench.dispatcher.link_down()
    bench.history.add("a", 8)
    bench.history.expire("a")
    bench.dispatcher.link_up()

    await until(lambda: mine.live and mine.gaps)
    await until(lambda: bench.audit.requests)

    assert (mine.gaps, other.gaps) == ([(("a",), "trimmed")], [])


async def test_a_link_away_for_long_while_no_history_was_removed_is_no_gap(bench: Bench) -> None:
    stream = bench.stream("a", at=5)
    bench.dispatcher.on_pulse(Position(6, 0))
    bench.dispatcher.link_down()
    bench.history.add("a", 5_000_000)
    bench.history.now = Position(90_000_000, 0)
    bench.dispatcher.link_up()

    await until(lambda: stream.live and stream.data)

    assert (stream.data, stream.gaps) == ([5_000_000], [])


async def test_histories_that_were_removed_before_the_last_pulse_are_no_gap(bench: Bench) -> None:
    stream = bench.stream("a", at=5)
    bench.history.add("b", 6)
    bench.history.expire("b")
    bench.dispatcher.on_pulse(Position(7, 0))
    bench.dispatcher.link_down()
    bench.dispatcher.link_up()

    await until(lambda: bench.audit.requests)

    assert (stream.live, stream.gaps, bench.history.asked) == (True, [], [])


async def test_a_dropped_announcement_that_streams_are_past_is_told_by_the_repair(bench: Bench) -> None:
    past, reads = bench.stream("a", "b"), bench.stream("a")
    bench.history.add("a", 1)  # dropped on its way
    bench.dispatcher.on_events([bench.history.add("b", 2)])
    bench.dispatcher.link_down()
    bench.dispatcher.link_up()

    await until(lambda: past.gaps and reads.data)

    assert (past.data, past.gaps) == ([2], [(("a",), "trimmed")])
    assert (reads.data, reads.gaps) == ([1], [])


async def test_a_drop_from_before_a_catch_up_is_told_although_later_ones_were_read(bench: Bench) -> None:
    stream = bench.stream("a", "b")
    bench.history.add("a", 1)  # dropped
    bench.dispatcher.on_events([bench.history.add("b", 2)])
    bench.history.add("b", 3)  # dropped
    bench.dispatcher.on_events([bench.history.add("b", 4)])  # shows a hole in b: catch-up from 2 on
    await until(lambda: stream.live and len(stream.data) == 3)

    bench.dispatcher.on_events([bench.history.add("a", 5)])
    await until(lambda: 5 in stream.data)

    assert (stream.data, stream.gaps) == ([2, 3, 4, 5], [(("a",), "trimmed")])


async def test_an_order_ends_the_streams_of_its_session_and_is_not_written(bench: Bench) -> None:
    mine, other = bench.stream("user:42"), bench.stream("user:42", session="s2")
    order = encode_control("user:42", Control("42", CloseReason.SIGNED_OUT, session="s1"))

    bench.dispatcher.on_events([bench.history.add("user:42", 1, order.lines)])

    assert (mine.close_reason, other.close_reason) == (CloseReason.SIGNED_OUT, None)
    assert mine.written + other.written == b""


async def test_an_order_missed_by_the_link_is_obeyed_after_the_repair(bench: Bench) -> None:
    mine, other = bench.stream("user:42"), bench.stream("user:42", session="s2")
    order = encode_control("user:42", Control("42", CloseReason.SIGNED_OUT, session="s1"))
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


async def test_a_hole_that_history_cannot_fill_is_told_once_and_the_event_comes(bench: Bench) -> None:
    stream = bench.stream("a", at=1)
    lonely = Event("a", Position(5, 0), Position(4, 0), encode("t", 5))
    bench.history.now = lonely.position
    bench.history.kept["a"] = [Event("a", Position(1, 0), ZERO, encode("t", 1)), lonely]

    bench.dispatcher.on_events([lonely])
    await until(lambda: stream.data)

    assert stream.data == [5]
    assert stream.gaps == [(("a",), "trimmed")]


async def test_a_hole_behind_a_new_origin_is_told_once(bench: Bench) -> None:
    stream = bench.stream("a", at=1)
    bench.history.floor = bench.history.now = Position(5, 1)

    bench.dispatcher.on_events([Event("a", Position(6, 0), Position(4, 0), encode("t", 6))])
    await until(lambda: stream.live and stream.gaps)

    assert stream.gaps == [(("a",), "origin")]


async def test_a_catch_up_that_fails_for_good_ends_its_stream(bench: Bench) -> None:
    stream = bench.stream("a")
    bench.history.add("a", 1)
    bench.history.failures.append(RuntimeError("a bug"))

    bench.dispatcher.on_events([bench.history.add("a", 2)])
    await until(lambda: stream.ended)

    assert stream.close_reason is CloseReason.LINK_FAILED


async def test_streams_read_far_more_than_their_buffer_without_losing_their_place(bench: Bench) -> None:
    stream = bench.stream("a")
    bench.dispatcher.link_down()
    for ms in range(1, 2001):
        bench.history.add("a", ms)
    bench.dispatcher.link_up()

    await until(lambda: len(stream.data) == 2000)

    assert stream.data == list(range(1, 2001))
    assert len(bench.history.asked) >= 4  # in pages


async def test_a_stream_that_reads_between_two_steps_of_a_repair_is_told_nothing_false(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "REPAIR_TOPICS", 1)
    stream = bench.stream("system", "user")
    bench.dispatcher.on_events([bench.history.add("user", 1)])
    bench.dispatcher.on_events([bench.history.add("system", 2)])
    bench.dispatcher.link_down()
    bench.history.add("user", 3)
    bench.history.add("system", 4)
    heads, caught_up = bench.history.heads, asyncio.Event()

    async def second_step_waits(topics: Sequence[str]) -> Heads:
        if "user" in topics:
            await caught_up.wait()
        return await heads(topics)

    monkeypatch.setattr(bench.history, "heads", second_step_waits)
    bench.dispatcher.link_up()
    await until(lambda: stream.live and 4 in stream.data)
    caught_up.set()
    await until(lambda: not [t for t in asyncio.all_tasks() if t.get_name() == "allim link repair"])
    bench.dispatcher.on_events([bench.history.add("user", 5)])

    await until(lambda: 5 in stream.data)

    assert (stream.data, stream.gaps) == ([1, 2, 3, 4, 5], [])


async def test_in_doubt_nothing_is_written_straight_also_behind_a_hole(bench: Bench) -> None:
    joined, old = bench.stream("t", "u", at=10), bench.stream("t", at=10)
    bench.dispatcher.on_events([bench.history.add("t", 11)])
    bench.dispatcher.on_events([bench.history.add("u", 12)])
    bench.history.add("t", 13)  # the link is dead; who joins now has read it
    joined.pass_to(Position(13, 0))
    joined.covered = joined.last
    bench.history.add("u", 14)
    bench.dispatcher.link_down()
    bench.history.open.clear()
    bench.dispatcher.link_up()
    bench.dispatcher.on_events([bench.history.add("t", 15)])

    bench.history.open.set()
    await until(lambda: 15 in joined.data and 15 in old.data)

    assert (joined.data[-2:], joined.gaps) == ([14, 15], [])
    assert (old.data[-2:], old.gaps) == ([13, 15], [])


# What comes together -----------------------------------------------------------------------------------------------


async def test_what_comes_together_is_one_write_to_each_stream_up_to_a_size(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [bench.stream("a"), bench.stream("a", at=1)]
    writes: list[list[Sequence[Event]]] = [[], []]
    for stream, written in zip(streams, writes, strict=True):
        monkeypatch.setattr(stream, "write", keep_in(written))
    events = [bench.history.add("a", ms) for ms in range(1, 6)]
    one, two, three, four, five = events
    monkeypatch.setattr(dispatcher, "JOINED_BYTES", 2 * len(one.lines))

    bench.dispatcher.on_events(events)

    assert writes == [[[one, two], [three, four], [five]], [[two], [three, four], [five]]]
    assert bench.metric("allim_events_dispatched_total 5.0")
    assert bench.metric("allim_events_written_total 9.0")


@pytest.mark.parametrize("seed", range(60))
async def test_what_comes_together_is_dispatched_like_one_by_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With holes, what came before, orders, streams that catch up, many streams, and a link in doubt."""
    if seed % 2:
        monkeypatch.setattr(dispatcher, "AT_ONCE", 1)

    def write(stream: ListStream, run: Run) -> None:
        if not stream.ended:  # as streams do
            stream.written += run.framed(frames.plain)

    monkeypatch.setattr(ListStream, "write", write)

    async def outcome(*, together: bool) -> object:
        rng, bench = random.Random(seed), Bench()
        streams = [bench.stream("a", session=f"s{number}") for number in range(rng.randint(1, 4))]
        announced: list[Event] = []
        for ms in range(1, 41):
            order = Control("42", CloseReason.SIGNED_OUT, session=f"s{rng.randrange(4)}")
            lines = encode_control("a", order).lines if rng.random() < 0.05 else None
            event = bench.history.add("a", ms, lines)
            if rng.random() > 0.08:
                announced.append(event)
        if rng.random() < 0.3:
            bench.dispatcher.link_down()
        if rng.random() < 0.3:
            bench.dispatcher._bring_back(topic_of(bench), Position(3, 0))
        while announced:
            some, announced = announced[: (size := rng.randint(1, 9))], announced[size - rng.randint(0, 1) :]
            for run in [some] if together else [[event] for event in some]:
                bench.dispatcher.on_events(run)
            for _ in range(rng.choice([0, 0, 20])):
                await asyncio.sleep(0)
        bench.dispatcher.link_up()
        for _ in range(200):
            await asyncio.sleep(0)
        bench.dispatcher.stop()
        await bench.catch_up.close()
        counted = [line for line in bench.metrics.text().splitlines() if line.startswith(b"allim_events_")]
        return [(bytes(stream.written), stream.gaps, stream.close_reason) for stream in streams], counted

    assert await outcome(together=True) == await outcome(together=False)


def topic_of(bench: Bench) -> Topic:
    topic = bench.registry.topic("a")
    assert topic is not None
    return topic


async def test_an_event_behind_a_newer_one_of_another_topic_is_told_and_counted(bench: Bench) -> None:
    both, only_a = bench.stream("a", "b"), bench.stream("a")
    late, newer = bench.history.add("a", 1), bench.history.add("b", 2)
    bench.dispatcher.on_events([newer])

    bench.dispatcher.on_events([late])
    await until(lambda: both.live and only_a.live)

    assert (both.data, both.gaps) == ([2], [(("a",), "trimmed")])
    assert (only_a.data, only_a.gaps) == ([1], [])
    assert bench.metric("allim_link_out_of_order_total 1.0")
    bench.dispatcher.on_events([bench.history.add("a", 3)])
    assert (both.data, only_a.data) == ([2, 3], [1, 3])


async def test_an_event_behind_a_pulse_is_told(bench: Bench) -> None:
    stream = bench.stream("a")
    late = bench.history.add("a", 1)
    stream.pass_to(Position(2, 0))  # its heartbeat told this
    bench.dispatcher.on_pulse(Position(2, 0))

    bench.dispatcher.on_events([late])
    await until(lambda: stream.live)

    assert (stream.data, stream.gaps) == ([], [(("a",), "trimmed")])


async def test_of_a_run_that_begins_late_each_stream_gets_the_rest(bench: Bench) -> None:
    both, only_a = bench.stream("a", "b"), bench.stream("a")
    late = bench.history.add("a", 1)
    newer = bench.history.add("b", 2)
    run = [late, bench.history.add("a", 3)]
    bench.dispatcher.on_events([newer])

    bench.dispatcher.on_events(run)
    await until(lambda: both.live and only_a.live)

    assert (both.data, both.gaps) == ([2, 3], [(("a",), "trimmed")])
    assert (only_a.data, only_a.gaps) == ([1, 3], [])


async def test_the_same_announcement_twice_is_written_once_and_is_not_late(bench: Bench) -> None:
    stream = bench.stream("a", "b")
    twice = bench.history.add("a", 1)
    for event in (twice, bench.history.add("b", 2), twice):
        bench.dispatcher.on_events([event])

    assert (stream.data, stream.gaps, stream.live) == ([1, 2], [], True)
    assert bench.metric("allim_link_out_of_order_total 0.0")


async def test_a_late_event_that_a_broadcast_puts_into_the_backlog_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "AT_ONCE", 1)
    both, other = bench.stream("a", "b"), bench.stream("b")
    late, newer = bench.history.add("b", 1), bench.history.add("a", 2)
    bench.dispatcher.on_events([newer])

    bench.dispatcher.on_events([late])
    await until(lambda: both.live and other.live)

    assert (both.data, both.gaps) == ([2], [(("b",), "trimmed")])
    assert (other.data, other.gaps) == ([1], [])


async def test_of_a_run_of_late_events_the_last_counts_as_the_first(bench: Bench) -> None:
    both = bench.stream("a", "b")
    run = [bench.history.add("a", 1), bench.history.add("a", 2)]
    bench.dispatcher.on_events([bench.history.add("b", 3)])
    both.covered = Position(1, 0)  # it read the first from history

    bench.dispatcher.on_events(run)
    await until(lambda: both.live)

    assert (both.data, both.gaps) == ([3], [(("a",), "trimmed")])


async def test_what_the_link_brought_during_a_catch_up_does_not_count_as_read(bench: Bench) -> None:
    both = bench.stream("a", "b")
    newer = Event("b", Position(3, 0), ZERO, encode("t", 3))
    await _catch_up_until_it_reads(bench, both)
    bench.dispatcher.on_events([newer])
    bench.history.open.set()
    await until(lambda: both.live)

    bench.dispatcher.on_events([bench.history.add("a", 2)])
    await until(lambda: both.live)

    assert (both.data, both.gaps) == ([3], [(("a",), "trimmed")])


async def test_an_event_that_is_late_for_a_catch_up_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    both, goes_live = bench.stream("a", "b"), asyncio.Event()

    async def writable() -> None:
        if both.data:
            await goes_live.wait()

    monkeypatch.setattr(both, "writable", writable)
    await _catch_up_until_it_reads(bench, both)
    bench.dispatcher.on_events([Event("b", Position(3, 0), ZERO, encode("t", 3))])
    bench.history.open.set()
    await until(lambda: both.data == [3])

    bench.dispatcher.on_events([bench.history.add("a", 2)])
    goes_live.set()
    await until(lambda: both.live)

    assert (both.data, both.gaps) == ([3], [(("a",), "trimmed")])


async def _catch_up_until_it_reads(bench: Bench, stream: ListStream) -> None:
    bench.history.open.clear()
    bench.dispatcher.bring_back(stream)
    await until(lambda: bench.history.asked)


async def test_an_event_that_is_late_for_a_join_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.stream("a", "b")
    joining, goes_live = ListStream("a", "b"), asyncio.Event()

    async def writable() -> None:
        if joining.data:
            await goes_live.wait()

    monkeypatch.setattr(joining, "writable", writable)
    bench.history.now = Position(1, 0)
    bench.registry.add(joining)
    start = await bench.catch_up.start(joining, "1-0")
    following = asyncio.create_task(bench.catch_up.follow(joining, start, partial(bench.dispatcher.seen, joining)))
    bench.dispatcher.on_events([bench.history.add("b", 3)])
    await until(lambda: joining.data == [3])

    bench.dispatcher.on_events([Event("a", Position(2, 0), ZERO, encode("t", 2))])
    goes_live.set()
    await following

    assert (joining.data, joining.gaps) == ([3], [(("a",), "trimmed")])
