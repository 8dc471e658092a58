"""Events for many streams: in slices, joined, and in order with everything else that happens meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from itertools import compress, pairwise

import pytest
from harness.streams import ListStream
from hypothesis import given, settings
from hypothesis import strategies as st

from allim.client import Parser
from allim.hub import Backlog, CloseReason, Event, Position, Run, broadcasts, dispatcher
from allim.hub.event import Control, encode_control
from tests.hub.histories import Bench, keep_in

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stream per slice, and two streams are many."""
    monkeypatch.setattr(broadcasts, "SLICE_S", 0.0)
    monkeypatch.setattr(broadcasts, "TURNS_LEFT", 0)
    monkeypatch.setattr(broadcasts, "OTHERS_S", 60.0)
    monkeypatch.setattr(broadcasts, "STRIDE", 1)
    monkeypatch.setattr(broadcasts, "MAX_WAITING", 3)
    monkeypatch.setattr(dispatcher, "AT_ONCE", 1)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.dispatcher.stop()
    await bench.catch_up.close()


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_loop_is_free_between_two_slices_and_everybody_gets_it(bench: Bench) -> None:
    streams = [bench.stream("a") for _ in range(4)]

    bench.dispatcher.on_events([bench.history.add("a", 1)])
    written = []
    for _ in range(3):
        written.append([stream.data for stream in streams])
        await turns(1)
    await turns(4)

    assert written == [[[], [], [], []], [[1], [], [], []], [[1], [1], [], []]]
    assert [stream.data for stream in streams] == [[1]] * 4
    assert bench.metric("allim_events_written_total 4.0")
    assert bench.metric("allim_events_dispatched_total 1.0")


async def test_before_each_slice_others_have_their_turns(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcasts, "TURNS_LEFT", 3)
    streams = [bench.stream("a") for _ in range(3)]
    bench.dispatcher.on_events([bench.history.add("a", 1)])

    written = []
    for _ in range(13):
        written.append(sum(stream.data == [1] for stream in streams))
        await turns(1)

    assert written == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3]


async def test_others_whose_turns_are_long_have_fewer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcasts, "TURNS_LEFT", 3)
    monkeypatch.setattr(broadcasts, "OTHERS_S", 0.02)
    streams = [bench.stream("a") for _ in range(2)]
    bench.dispatcher.on_events([bench.history.add("a", 1)])

    for _ in streams:
        time.sleep(0.03)
        await turns(2)

    assert [stream.data for stream in streams] == [[1], [1]]


async def test_what_comes_meanwhile_is_joined_to_one_write(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [bench.stream("a") for _ in range(3)]
    writes: list[list[Sequence[Event]]] = [[], [], []]
    for stream, written in zip(streams, writes, strict=True):
        monkeypatch.setattr(stream, "write", keep_in(written))

    events = [bench.history.add("a", ms) for ms in (1, 2, 3, 4)]
    one, two, three, four = events
    bench.dispatcher.on_events([events[0]])
    bench.dispatcher.on_events([events[1]])
    await turns(1)
    bench.dispatcher.on_events([events[2]])
    bench.dispatcher.on_events([events[3]])
    await turns(8)

    assert writes[0] == [[one, two], [three, four]], "as it was when its turn came"
    assert writes[1] == writes[2] == [[one, two, three, four]], "each in its next turn"
    assert bench.metric("allim_events_written_total 12.0")
    assert bench.metric("allim_events_dispatched_total 4.0")


async def test_an_event_that_comes_when_the_streams_have_changed_waits_for_its_own_round(bench: Bench) -> None:
    streams = [bench.stream("a") for _ in range(3)]
    bench.dispatcher.on_events([bench.history.add("a", 1)])
    late = bench.stream("a")
    bench.dispatcher.on_events([bench.history.add("a", 2)])
    await turns(12)

    assert [stream.data for stream in streams] == [[1, 2]] * 3
    assert late.data[-1:] == [2]


async def test_joining_ends_at_a_size(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcasts, "JOINED_BYTES", 2 * len(bench.history.add("x", 9).lines))
    streams = [bench.stream("a") for _ in range(2)]
    writes: list[Sequence[Event]] = []
    monkeypatch.setattr(streams[-1], "write", keep_in(writes))

    events = [bench.history.add("a", ms) for ms in (1, 2, 3, 4)]
    for event in events:
        bench.dispatcher.on_events([event])
    await turns(8)

    assert writes == [events[:2], events[2:]]


async def test_somebody_elses_event_does_not_wait(bench: Bench) -> None:
    many, other = [bench.stream("a") for _ in range(3)], bench.stream("b")

    bench.dispatcher.on_events([bench.history.add("a", 1)])
    bench.dispatcher.on_events([bench.history.add("b", 2)])

    assert (many[-1].data, other.data) == ([], [2])


async def test_a_newer_event_of_another_topic_does_not_overtake(bench: Bench) -> None:
    _, _, both = bench.stream("a"), bench.stream("a"), bench.stream("a", "b")

    bench.dispatcher.on_events([bench.history.add("a", 1)])
    bench.dispatcher.on_events([bench.history.add("a", 2)])
    bench.dispatcher.on_events([bench.history.add("b", 3)])
    at_once = both.data
    await turns(8)

    assert at_once == both.data == [1, 2, 3]
    assert bench.metric("allim_events_written_total 7.0")


async def test_broadcasts_of_two_topics_stay_in_order(bench: Bench) -> None:
    streams = [bench.stream("a", "b") for _ in range(3)]

    for ms, topic in enumerate("aababb", start=1):
        bench.dispatcher.on_events([bench.history.add(topic, ms)])
    await turns(30)

    assert [stream.data for stream in streams] == [[1, 2, 3, 4, 5, 6]] * 3


async def test_a_pulse_is_heard_when_everything_before_it_is_written(bench: Bench) -> None:
    streams = [bench.stream("a") for _ in range(3)]
    bench.dispatcher.on_events([bench.history.add("a", 1)])

    bench.dispatcher.on_pulse(Position(2, 0))
    too_early = list(bench.pulse.beats)
    await turns(5)

    assert (bench.pulse.arrivals, too_early, bench.pulse.beats) == (1, [], [Position(2, 0)])
    assert streams[-1].data == [1]


async def test_a_pulse_heard_during_a_repair_waits_for_what_was_announced_before_it(bench: Bench) -> None:
    streams = [bench.stream("a") for _ in range(30)]
    bench.dispatcher.on_events([bench.history.add("a", 1)])
    bench.dispatcher.link_down()
    bench.dispatcher.link_up()
    bench.dispatcher.on_pulse(Position(2, 0))

    while not bench.audit.requests:
        await turns(1)
    too_early = (list(bench.pulse.beats), streams[-1].data)
    await turns(30)

    assert too_early == ([], [])
    assert (bench.pulse.beats, streams[-1].data) == ([Position(2, 0)], [1])


async def test_an_order_comes_behind_what_was_announced_before_it(bench: Bench) -> None:
    _, _, mine = bench.stream("a"), bench.stream("a"), bench.stream("a", "user:42")
    order = encode_control("user:42", Control("42", CloseReason.SIGNED_OUT, session="s1"))

    bench.dispatcher.on_events([bench.history.add("a", 1)])
    bench.dispatcher.on_events([bench.history.add("user:42", 2, order.lines)])
    bench.dispatcher.on_events([bench.history.add("a", 3)])
    at_once = (mine.close_reason, mine.data)
    await turns(8)

    assert at_once == (mine.close_reason, mine.data) == (CloseReason.SIGNED_OUT, [1])


async def test_a_new_origin_is_told_behind_what_waits(bench: Bench) -> None:
    streams = [bench.stream("a") for _ in range(3)]

    bench.dispatcher.on_events([bench.history.add("a", 1)])
    bench.dispatcher.on_origin(Position(5, 0))
    await turns(5)

    assert [(stream.data, stream.gaps) for stream in streams] == [([1], [(("a",), "origin")])] * 3


async def test_a_stream_that_catches_up_gets_it_once_whichever_way_it_comes(bench: Bench) -> None:
    _, _, joining = bench.stream("a"), bench.stream("a"), bench.stream("a", "b")
    joining.backlog = Backlog(1000)
    backlog = joining.backlog

    bench.dispatcher.on_events([bench.history.add("a", 1)])
    bench.dispatcher.on_events([bench.history.add("b", 2)])
    await turns(8)

    assert [event.position.ms for event in backlog.events] == [1, 2]


async def test_a_lost_link_leaves_what_was_announced_to_be_written(bench: Bench) -> None:
    streams = [bench.stream("a") for _ in range(4)]
    bench.dispatcher.on_events([bench.history.add("a", 1)])

    bench.dispatcher.link_down()
    bench.history.add("a", 2)
    bench.dispatcher.link_up()
    await turns(40)

    assert [(stream.data, stream.gaps) for stream in streams] == [([1, 2], [])] * 4


async def test_who_ended_gets_nothing_and_is_not_counted(bench: Bench) -> None:
    streams = [bench.stream("a") for _ in range(3)]

    bench.dispatcher.on_events([bench.history.add("a", 1)])
    streams[-1].close(CloseReason.CLIENT_LEFT)
    bench.registry.remove(streams[-1])
    await turns(5)

    assert [stream.data for stream in streams] == [[1], [1], []]
    assert bench.metric("allim_events_written_total 2.0")


@pytest.mark.parametrize("stride", [1, 2, 32])
async def test_a_stream_that_fails_does_not_keep_the_others_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    monkeypatch.setattr(broadcasts, "STRIDE", stride)

    def fail(run: Run) -> None:
        raise RuntimeError("a bug")

    failures: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context["exception"]))
    streams = [bench.stream("a") for _ in range(3)]
    monkeypatch.setattr(streams[1], "write", fail)

    bench.dispatcher.on_events([bench.history.add("a", 1)])
    await turns(6)

    assert (streams[0].data, streams[2].data) == ([1], [1])
    assert [str(failure) for failure in failures] == ["a bug"]
    assert bench.metric("allim_events_dispatched_total 1.0")


async def test_when_too_much_waits_there_is_room_only_after_some_is_written(bench: Bench) -> None:
    streams = [bench.stream("a", "b") for _ in range(6)]
    assert await is_writable(bench)

    for ms, topic in enumerate("aba", start=1):
        bench.dispatcher.on_events([bench.history.add(topic, ms)])
    full = not await is_writable(bench)
    await bench.dispatcher.writable()

    assert full
    assert [stream.data[0] for stream in streams] == [1] * 6


async def test_after_more_came_at_once_than_may_wait_there_is_room_when_fewer_wait(bench: Bench) -> None:
    streams = [bench.stream("a", "b") for _ in range(6)]

    for ms in range(1, 9):
        bench.dispatcher.on_events([bench.history.add("ab"[ms % 2], ms)])
    await bench.dispatcher.writable()

    assert all(len(stream.data) >= 8 - broadcasts.MAX_WAITING for stream in streams)


async def is_writable(bench: Bench) -> bool:
    writable = asyncio.ensure_future(bench.dispatcher.writable())
    await asyncio.sleep(0)
    if writable.done():
        return True
    writable.cancel()
    return False


# Any order of things ------------------------------------------------------------------------------------------

TOPICS = ("a", "b", "c")
JOINS = (("a",), ("a", "b"), ("a", "b", "c"), ("b", "c"), ("c",))

heard = st.tuples(st.sampled_from(TOPICS), st.integers(1, 3).map(lambda events: (True,) * events))
steps = st.one_of(
    st.tuples(st.just("announce"), heard),
    st.tuples(st.just("announce"), heard),
    st.tuples(st.just("turn"), st.integers(1, 4)),
    st.tuples(st.just("pulse"), st.none()),
    st.tuples(st.just("join"), st.sampled_from(JOINS)),
    st.tuples(st.just("leave"), st.integers(0, 9)),
    st.tuples(st.just("down"), st.none()),
    st.tuples(st.just("up"), st.none()),
)
losses = st.tuples(
    st.just("announce"), st.tuples(st.sampled_from(TOPICS), st.lists(st.booleans(), min_size=1, max_size=4))
)
Step = tuple[str, object]


class World:
    """A dispatcher, its link and its streams, and what each stream should have got."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.bench.catch_up._new_backlog = lambda: Backlog(300)
        self.streams: list[ListStream] = []
        self.since: dict[ListStream, Position] = {}
        self.joins: list[asyncio.Task[None]] = []
        self.events: list[Event] = []
        self.ms = 0
        self.standing = True

    def tick(self) -> int:
        self.ms += 1
        return self.ms

    async def take(self, step: Step) -> None:
        kind, detail = step
        match kind, detail:
            case "announce", (str(topic), [*heard]):
                await self.announce(topic, heard)
            case "turn", int():
                await turns(detail)
            case "pulse", _ if self.standing:
                self.bench.history.now = Position(self.tick(), 0)
                self.bench.pulse._next_beat()
                self.bench.dispatcher.on_pulse(self.bench.history.now)
            case "join", tuple():
                self.join(detail)
            case "leave", int() if detail < len(self.streams):
                self.streams[detail].close(CloseReason.CLIENT_LEFT)
                self.bench.registry.remove(self.streams[detail])
            case "down", _ if self.standing:
                self.standing = False
                self.bench.dispatcher.link_down()
            case "up", _ if not self.standing:
                self.standing = True
                self.bench.dispatcher.link_up()

    async def announce(self, topic: str, heard: Sequence[object]) -> None:
        """Events that come together, and which of them the link brings."""
        events = [self.bench.history.add(topic, self.tick()) for _ in heard]
        self.events += events
        brought = list(compress(events, heard))
        if brought and self.standing and self.bench.registry.topic(topic) is not None:
            self.bench.dispatcher.on_events(brought)
            await self.bench.dispatcher.writable()

    def join(self, topics: Sequence[str]) -> None:
        stream = ListStream(*topics)
        self.since[stream] = Position(self.ms, 0)
        self.streams.append(stream)
        self.bench.registry.add(stream)
        self.joins.append(asyncio.ensure_future(self.follow(stream)))

    async def follow(self, stream: ListStream) -> None:
        """As the hub does."""
        start = await self.bench.catch_up.start(stream, str(self.since[stream]))
        await turns(1)
        self.bench.dispatcher.joined(stream, start.reading.now)
        if not stream.ended:
            stream.opened_at = 1.0
            await self.bench.catch_up.follow(stream, start, dict)

    async def settle(self) -> None:
        """Everything that can still come."""
        await self.take(("up", None))
        for topic in TOPICS:
            await turns(60)
            await self.announce(topic, [True])
        await self.take(("pulse", None))
        await turns(60)
        await asyncio.gather(*self.joins)
        assert await is_writable(self.bench)

    def ids(self, stream: ListStream) -> list[int]:
        return [int(m.id.split("-")[0]) for m in Parser().feed(bytes(stream.written))]

    def due(self, stream: ListStream) -> list[Event]:
        return [e for e in self.events if e.topic in stream.topics and e.position > self.since[stream]]


def play(plan: Sequence[Step]) -> World:
    async def run() -> World:
        world = World()
        for topics in (("a",), ("a",), ("a", "b"), ("a", "b"), ("b", "c")):
            world.join(topics)
        await turns(5)
        for step in plan:
            await world.take(step)
        await world.settle()
        world.bench.dispatcher.stop()
        await world.bench.catch_up.close()
        return world

    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink(monkeypatch)
        return asyncio.run(run())


@settings(max_examples=400, deadline=None)
@given(st.lists(steps, max_size=60))
def test_every_stream_gets_its_topics_events_once_and_in_order(plan: list[Step]) -> None:
    world = play(plan)

    for stream in world.streams:
        due = [event.position.ms for event in world.due(stream)]
        got = stream.data
        assert got == (due[: len(got)] if stream.ended else due)
        assert stream.gaps == []
        assert all(one < next_ for one, next_ in pairwise(world.ids(stream)))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(steps, losses), max_size=60))
def test_what_the_link_drops_is_filled_or_told(plan: list[Step]) -> None:
    world = play(plan)

    for stream in world.streams:
        got = stream.data
        told = {topic for topics, _ in stream.gaps for topic in topics}
        assert got == sorted(set(got))
        assert all(one < next_ for one, next_ in pairwise(world.ids(stream)))
        if not stream.ended:
            missing = {event.topic for event in world.due(stream) if event.position.ms not in got}
            assert missing <= told
