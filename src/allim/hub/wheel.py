"""One timer for all streams: deadlines in slots of a quarter of a second."""

from allim.hub.stream import Stream

SLOT_S = 0.25


class Wheel:
    """The deadlines of streams, in slots.

    Units: seconds of the hub's clock.
    """

    def __init__(self) -> None:
        self._slots: dict[int, set[Stream]] = {}

    def set(self, stream: Stream, at: float) -> None:
        """Set the deadline of a stream, in place of an earlier one."""
        self.forget(stream)
        stream.deadline = int(at / SLOT_S)
        self._slots.setdefault(stream.deadline, set()).add(stream)

    def bring_forward(self, stream: Stream, at: float) -> None:
        """Set the deadline of a stream, unless it has an earlier one."""
        if not stream.deadline or at / SLOT_S < stream.deadline:
            self.set(stream, at)

    def forget(self, stream: Stream) -> None:
        slot = self._slots.get(stream.deadline)
        if slot is not None:
            slot.discard(stream)
            if not slot:
                del self._slots[stream.deadline]

    def due(self, now: float) -> list[Stream]:
        """Remove and return the streams whose deadline has passed."""
        slots = sorted(slot for slot in self._slots if slot <= now / SLOT_S)
        return [stream for slot in slots for stream in self._slots.pop(slot)]
