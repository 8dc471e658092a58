"""Which streams of this replica wait for which topic."""

from collections.abc import Iterator

from allim.hub.position import Position
from allim.hub.stream import Stream


class Topic:
    """A topic with at least one local stream.

    Shape: `last` is the newest position dispatched or covered by history, None until the first is known.
    """

    __slots__ = ("last", "streams")

    def __init__(self) -> None:
        self.streams: set[Stream] = set()
        self.last: Position | None = None


class Registry:
    """Topics and streams of this replica, both ways."""

    def __init__(self) -> None:
        self._topics: dict[str, Topic] = {}
        self._streams: set[Stream] = set()

    def add(self, stream: Stream) -> None:
        self._streams.add(stream)
        for name in stream.topics:
            self._topics.setdefault(name, Topic()).streams.add(stream)

    def remove(self, stream: Stream) -> list[str]:
        """Forget a stream; gives the topics that nobody here waits for any more."""
        if stream not in self._streams:
            return []
        self._streams.remove(stream)
        deserted = []
        for name in stream.topics:
            topic = self._topics[name]
            topic.streams.remove(stream)
            if not topic.streams:
                del self._topics[name]
                deserted.append(name)
        return deserted

    def topic(self, name: str) -> Topic | None:
        return self._topics.get(name)

    def topics(self) -> list[str]:
        return list(self._topics)

    def __iter__(self) -> Iterator[Stream]:
        """Every stream, as it was when asked: the loop may end streams."""
        return iter(tuple(self._streams))

    def __len__(self) -> int:
        return len(self._streams)

    def __contains__(self, stream: object) -> bool:
        return stream in self._streams
