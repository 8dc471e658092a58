from harness.streams import ListStream

from allim.hub import Position
from allim.hub.registry import Registry


def test_a_topic_has_every_stream_that_waits_for_it() -> None:
    registry, one, two = Registry(), ListStream("a", "b"), ListStream("b")
    registry.add(one)
    registry.add(two)

    a, b = registry.topic("a"), registry.topic("b")

    assert a is not None
    assert b is not None
    assert (set(a.streams), set(b.streams)) == ({one}, {one, two})
    assert sorted(registry.topics()) == ["a", "b"]
    assert registry.topic("c") is None
    assert len(registry) == 2


def test_leaving_names_the_topics_nobody_waits_for_any_more() -> None:
    registry, one, two = Registry(), ListStream("a", "b"), ListStream("b")
    registry.add(one)
    registry.add(two)

    assert registry.remove(one) == ["a"]
    assert registry.topics() == ["b"]
    assert registry.remove(two) == ["b"]
    assert registry.topics() == []
    assert len(registry) == 0


def test_leaving_twice_is_harmless() -> None:
    registry, one, two = Registry(), ListStream("a"), ListStream("a")
    registry.add(one)
    registry.add(two)
    registry.remove(one)

    assert registry.remove(one) == []
    assert two in registry
    assert one not in registry


def test_a_topic_starts_over_when_its_last_stream_has_left() -> None:
    registry, one, two = Registry(), ListStream("a"), ListStream("a")
    registry.add(one)
    topic = registry.topic("a")
    assert topic is not None
    topic.last = Position(5, 0)
    registry.remove(one)
    registry.add(two)

    again = registry.topic("a")

    assert again is not None
    assert again.last is None


def test_streams_may_end_while_they_are_counted_through() -> None:
    registry, streams = Registry(), [ListStream("a") for _ in range(3)]
    for stream in streams:
        registry.add(stream)

    for each in registry:
        registry.remove(each)

    assert len(registry) == 0


def test_a_topic_gives_its_streams_in_the_order_they_came_and_the_same_tuple_until_one_comes_or_leaves() -> None:
    registry, streams = Registry(), [ListStream("a") for _ in range(5)]
    for stream in streams[:4]:
        registry.add(stream)
    topic = registry.topic("a")
    assert topic is not None
    before = topic.streams

    assert before == tuple(streams[:4])
    assert topic.streams is before
    registry.add(streams[4])
    assert topic.streams == tuple(streams)
    registry.remove(streams[1])
    assert topic.streams == (streams[0], *streams[2:])
    assert before == tuple(streams[:4])
