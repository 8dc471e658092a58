"""One timer for all streams: deadlines in slots of a quarter of a second."""

from allim.hub.stream import Stream

SLOT_S = 0.25


class Wheel:
    """When streams end, to the slot.

    Units: seconds of the hub's clock.
    """

    def __init__(self) -> None:
        self._slots: dict[int, set[Stream]] = {}

    def set(self, stream: Stream, at: float) -> None:
        """End this stream at `at`, whatever was set before."""
        self.forget(stream)
        stream.deadline = int(at / SLOT_S)
        self._slots.setdefault(stream.deadline, set()).add(stream)

    def bring_forward(self, stream: Stream, at: float) -> None:
        """End this stream at `at`, if it was not to end sooner."""
        if not stream.deadline or at / SLOT_S < stream.deadline:
            self.set(stream, at)

    def forget(self, stream: Stream) -> None:
        slot = self._slots.get(stream.deadline)
        if slot is not None:
            slot.discard(stream)
            if not slot:
                del self._slots[stream.deadline]

    def due(self, now: float) -> list[Stream]:
        """Take out every stream whose slot has come."""
        slots = sorted(slot for slot in self._slots if slot <= now / SLOT_S)
        return [stream for slot in slots for stream in self._slots.pop(slot)]
