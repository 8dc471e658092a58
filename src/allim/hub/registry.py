"""The streams of this replica, by topic."""

from collections.abc import Iterator

from allim.hub.position import Position
from allim.hub.stream import Stream


class Topic:
    """A topic with at least one local stream.

    Shape: `last` is the newest position announced or covered by history, None until the first is known.
    A user's own topic mostly has one stream, and a dict of one costs 232 bytes: it is made for the second. A dict
    of 10,000 is half a set, and keeps the order in which they came.
    """

    __slots__ = ("_many", "_now", "_one", "last")

    def __init__(self) -> None:
        self._one: Stream | None = None
        self._many: dict[Stream, None] | None = None
        self._now: tuple[Stream, ...] | None = None  # of many, until one comes or leaves
        self.last: Position | None = None

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The present streams in the order they joined. A copy: the caller's loop may end some."""
        if self._many is None:
            return () if self._one is None else (self._one,)
        if self._now is None:
            self._now = tuple(self._many)
        return self._now

    @property
    def deserted(self) -> bool:
        return self._one is None and not self._many

    def add(self, stream: Stream) -> None:
        self._now = None
        if self._many is not None:
            self._many[stream] = None
        elif self._one is None:
            self._one = stream
        else:
            self._many = {self._one: None, stream: None}
            self._one = None

    def remove(self, stream: Stream) -> None:
        self._now = None
        if self._many is not None:
            del self._many[stream]
        else:
            self._one = None


class Registry:
    """Topics and streams of this replica, both ways."""

    def __init__(self) -> None:
        self._topics: dict[str, Topic] = {}
        self._streams: set[Stream] = set()

    def add(self, stream: Stream) -> None:
        self._streams.add(stream)
        for name in stream.topics:
            topic = self._topics.get(name)
            if topic is None:
                topic = self._topics[name] = Topic()
            topic.add(stream)

    def remove(self, stream: Stream) -> list[str]:
        """Remove a stream. Returns the topics that have no stream here any more."""
        if stream not in self._streams:
            return []
        self._streams.remove(stream)
        deserted = []
        for name in stream.topics:
            topic = self._topics[name]
            topic.remove(stream)
            if topic.deserted:
                del self._topics[name]
                deserted.append(name)
        return deserted

    def topic(self, name: str) -> Topic | None:
        return self._topics.get(name)

    def count_topics(self) -> int:
        return len(self._topics)

    def topics(self) -> list[str]:
        return list(self._topics)

    def __iter__(self) -> Iterator[Stream]:
        """Iterate over a copy of the streams: the loop may end some."""
        return iter(tuple(self._streams))

    def __len__(self) -> int:
        return len(self._streams)

    def __contains__(self, stream: object) -> bool:
        return stream in self._streams
