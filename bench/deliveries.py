"""Who should get what, and who got it: every delivery is judged. Pure, and made for speed."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple


class Faults(NamedTuple):
    """What went wrong. `foreign` came to a stream it was not for, or was never published."""

    lost: int = 0
    doubled: int = 0
    foreign: int = 0


class Deliveries:
    """The events of one run, and which of them have come to which stream.

    Shape: events have the numbers `first`, `first + 1`, …: `broadcasts` of them for each of `streams` streams, then
    one for each of `owners`, which are streams by their index. `ns` holds the time from publish to receipt of each.
    """

    def __init__(self, first: int, streams: int, broadcasts: int, owners: Sequence[int] = ()) -> None:
        self.first = first
        self.broadcasts = broadcasts
        self.owners = owners
        self.end = first + broadcasts + len(owners)
        self.expected = broadcasts * streams + len(owners)
        self.ns = array("q")
        self.doubled = 0
        self.foreign = 0
        self._next = [first] * streams  # all broadcasts before this one have come; and of those after it,
        self._early: dict[int, set[int]] = {}
        self._got = [0] * broadcasts
        self._came = bytearray(len(owners))
        self._streams = streams
        self.everywhere = 0  # broadcasts that have come to every stream

    @property
    def received(self) -> int:
        """Good deliveries."""
        return len(self.ns)

    @property
    def complete(self) -> bool:
        return len(self.ns) >= self.expected

    @property
    def faults(self) -> Faults:
        return Faults(self.expected - self.received, self.doubled, self.foreign)

    def note(self, stream: int, number: int, ns: int) -> None:
        """This event came to this stream, so long after it was published."""
        place = number - self.first
        if not 0 <= place < self.end - self.first:
            self.foreign += 1
        elif place < self.broadcasts:
            if stream >= self._streams:
                self.foreign += 1
                return
            if self._next[stream] == number:
                self._advance(stream)
            elif number < self._next[stream] or number in self._early.setdefault(stream, set()):
                self.doubled += 1
                return
            else:
                self._early[stream].add(number)
            self._count(place, ns)
        else:
            self._note_own(stream, place - self.broadcasts, ns)

    def _advance(self, stream: int) -> None:
        number = self._next[stream] + 1
        early = self._early.get(stream)
        while early and number in early:
            early.remove(number)
            number += 1
        self._next[stream] = number

    def _count(self, place: int, ns: int) -> None:
        self.ns.append(ns)
        self._got[place] += 1
        if self._got[place] == self._streams:
            self.everywhere += 1

    def _note_own(self, stream: int, place: int, ns: int) -> None:
        if self.owners[place] != stream:
            self.foreign += 1
        elif self._came[place]:
            self.doubled += 1
        else:
            self._came[place] = 1
            self.ns.append(ns)
