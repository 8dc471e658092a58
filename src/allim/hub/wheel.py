"""One timer for all streams: deadlines in slots of a second."""

from allim.hub.stream import Stream


class Wheel:
    """When streams end, to the second.

    Units: seconds of the hub's clock.
    """

    def __init__(self) -> None:
        self._slots: dict[int, set[Stream]] = {}

    def set(self, stream: Stream, at: float) -> None:
        """End this stream at `at`, whatever was set before."""
        self.forget(stream)
        stream.deadline = int(at)
        self._slots.setdefault(stream.deadline, set()).add(stream)

    def forget(self, stream: Stream) -> None:
        slot = self._slots.get(stream.deadline)
        if slot is not None:
            slot.discard(stream)
            if not slot:
                del self._slots[stream.deadline]

    def due(self, now: float) -> list[Stream]:
        """Take out every stream whose second has come."""
        seconds = sorted(second for second in self._slots if second <= now)
        return [stream for second in seconds for stream in self._slots.pop(second)]
