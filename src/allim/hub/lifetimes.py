"""The lifetimes of streams: each ends after its lifetime or with its token, and at a drain at a moment of its own.

A reader is told a minute before its token expires, so that it can renew it in time.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable

from allim.hub.capacity import Capacity
from allim.hub.close_reason import CloseReason
from allim.hub.settings import HubSettings
from allim.hub.stream import Stream
from allim.hub.wheel import SLOT_S, Wheel

DRAIN_SHARE = 0.6  # of the drain time for ending streams; the rest is for readers to read that
EXPIRING_S = 60.0  # before its token expires a stream is told


class Lifetimes:
    """Ends streams in time, with one timer for all.

    Shape: `clock` is monotonic, `wall` gives Unix seconds by this machine's clock. `draining` is True after
    `drain` was called. The timer tells `capacity` by how much it is late.
    """

    def __init__(
        self,
        settings: HubSettings,
        capacity: Capacity,
        clock: Callable[[], float],
        wall: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._settings = settings
        self._capacity = capacity
        self._clock = clock
        self._wall = wall
        self._rng = rng
        self._wheel = Wheel()
        self.draining = False

    async def run(self) -> None:
        """Look at each stream when something is due."""
        while True:
            slept_at = time.perf_counter()  # uvloop's own clock stands still within a turn
            await asyncio.sleep(SLOT_S)
            self._capacity.note_lag(time.perf_counter() - slept_at - SLOT_S)
            for stream in self._wheel.due(self._clock()):
                self._look_after(stream)

    def begin(self, stream: Stream) -> None:
        """Begin the lifetime of a stream that opens now."""
        now = self._clock()
        stream.opened_at = now
        stream.unix_s = self._wall() - now
        # A stream that was joining when the drain began is drained like the others.
        rotation_s = self._settings.stream_lifetime_s * self._rng.uniform(0.8, 1)
        stream.ends_at = now + (self._moment_of_drain_s() if self.draining else rotation_s)
        self._plan(stream)

    def drain(self, streams: Iterable[Stream]) -> None:
        """End these streams, and each that opens later, at random moments within the drain time."""
        self.draining = True
        for stream in streams:
            stream.ends_at = self._clock() + self._moment_of_drain_s()
            self._wheel.bring_forward(stream, stream.ends_at)

    def forget(self, stream: Stream) -> None:
        """Remove a stream that has ended."""
        self._wheel.forget(stream)

    def _moment_of_drain_s(self) -> float:
        return self._rng.uniform(0, self._settings.drain_s * DRAIN_SHARE)

    def _plan(self, stream: Stream) -> None:
        """Set when to look at the stream again: the end of its lifetime or token, or the warning before that."""
        left_s = self._left_s(stream)
        if not stream.warned:
            left_s = max(0, left_s - EXPIRING_S)
        self._wheel.set(stream, min(stream.ends_at, self._clock() + left_s))

    def _look_after(self, stream: Stream) -> None:
        left_s = self._left_s(stream)
        if left_s <= 2 * SLOT_S:
            stream.close(CloseReason.TOKEN_EXPIRED)
        elif stream.ends_at <= self._clock() + SLOT_S:
            stream.close(CloseReason.DRAIN if self.draining else CloseReason.ROTATE)
        else:
            if left_s <= EXPIRING_S + 2 * SLOT_S and not stream.warned:
                stream.warned = True
                stream.expiring(left_s)
            self._plan(stream)

    def _left_s(self, stream: Stream) -> float:
        """Return the seconds until its token expires, unaffected by steps of the wall clock since the stream
        opened.
        """
        return stream.expires_at - stream.unix_s - self._clock()
