from hypothesis import given
from hypothesis import strategies as st

from allim.hub import ZERO, Event, Position, Reading, TopicHistory
from allim.hub.catch_up import merge, trimmed_topics
from allim.hub.event import encode


def event(topic: str, ms: int, prev: int = 0) -> Event:
    return Event(topic, Position(ms, 0), Position(prev, 0), encode("t", ms))


def history(topic: str, *times_ms: int, oldest_prev: int | None = None, more: int = 0) -> TopicHistory:
    events = [event(topic, ms) for ms in times_ms]
    return TopicHistory(topic, events, None if oldest_prev is None else Position(oldest_prev, 0), more)


def reading(*histories: TopicHistory, now: int = 100) -> Reading:
    return Reading(Position(now, 0), ZERO, now, histories)


def test_whole_histories_become_one_order_up_to_now() -> None:
    page = merge(reading(history("a", 1, 4), history("b", 2, 3), history("c")))

    assert [e.position.ms for e in page.events] == [1, 2, 3, 4]
    assert (page.until, page.complete) == (Position(100, 0), True)


def test_a_topic_cut_short_ends_the_page_for_all() -> None:
    page = merge(reading(history("a", 1, 4, more=7), history("b", 2, 9)))

    assert [e.position.ms for e in page.events] == [1, 2, 4]
    assert (page.until, page.complete) == (Position(4, 0), False)


def test_of_several_cut_short_the_earliest_ends_the_page() -> None:
    page = merge(reading(history("a", 1, 8, more=1), history("b", 2, 5, more=1)))

    assert [e.position.ms for e in page.events] == [1, 2, 5]
    assert page.until == Position(5, 0)


def test_nothing_is_a_complete_page_up_to_now() -> None:
    events, until, complete = merge(reading(history("a")))

    assert (list(events), until, complete) == ([], Position(100, 0), True)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from("abc")), unique_by=lambda pair: pair[0]),
    st.integers(1, 5),
    st.integers(0, 60),
)
def test_pages_of_several_topics_give_every_event_once_and_in_order(
    published: list[tuple[int, str]], limit: int, after: int
) -> None:
    stored = {topic: sorted(ms for ms, of in published if of == topic) for topic in "abc"}
    got: list[int] = []
    cursor, complete = Position(after, 0), False
    while not complete:
        newer = {topic: [ms for ms in times if ms > cursor.ms] for topic, times in stored.items()}
        pages = [history(t, *times[:limit], more=max(0, len(times) - limit)) for t, times in newer.items()]
        events, cursor, complete = merge(reading(*pages))
        got += [e.position.ms for e in events]

    assert got == sorted(ms for ms, _ in published if ms > after)
    assert cursor == Position(100, 0)


def test_topics_are_trimmed_whose_oldest_prev_is_newer() -> None:
    read = reading(history("gone", 9, oldest_prev=8), history("whole", 9, oldest_prev=7), history("empty"))

    assert trimmed_topics(read, Position(7, 0)) == ["gone"]
