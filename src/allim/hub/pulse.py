"""The pulse: a message that a replica sends itself through the broker, to prove that its link works.

A pulse takes a position like an event and comes back over the link, which delivers in order. So a pulse that is heard
proves that everything before it has been dispatched: then the heartbeats that are due carry its position. A link that
brings no pulse is replaced.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from functools import partial

import structlog

from allim.errors import Unavailable
from allim.hub.broadcasts import SLICE_S, after_others
from allim.hub.broker import Broker
from allim.hub.clock import SharedClock
from allim.hub.position import Position
from allim.hub.registry import Registry
from allim.hub.settings import HubSettings
from allim.hub.stream import Stream
from allim.telemetry import Metrics

log = structlog.get_logger(__name__)

LINK_PATIENCE = 2.4  # pulses unheard after which the link is replaced: 12 s at the default of 5 s


class Pulse:
    """Sends pulses, writes heartbeats, and watches the link.

    Shape: the streams are divided into rounds, and each pulse serves one of them; `beat` is the present round.
    """

    def __init__(
        self,
        broker: Broker,
        registry: Registry,
        metrics: Metrics,
        settings: HubSettings,
        shared_clock: SharedClock,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._registry = registry
        self._metrics = metrics
        self._shared_clock = shared_clock
        self._clock = clock
        self._beats = math.ceil(settings.heartbeat_s / settings.pulse_s)
        self._period_s = settings.heartbeat_s / self._beats
        self.beat = 0
        self._beat_served = True
        self._link_is_up = asyncio.Event()
        self._ever_heard = False
        self._sent_at = 0.0
        self.start()

    def start(self) -> None:
        """Begin to wait for the first pulse."""
        self._heard_at = self._link_at = self._clock()

    def check(self) -> None:
        """Raises: Unavailable when no pulse came back lately."""
        if not self._ever_heard:
            raise Unavailable("no pulse heard yet")
        if (silent_s := self._silent_s()) > self._patience_s():
            raise Unavailable(f"no pulse heard for {silent_s:.0f} s")

    async def run(self) -> None:
        """Send a pulse per round, and one over each new link at once, because readiness and repair wait for it."""
        loop = asyncio.get_running_loop()
        while True:
            next_at = loop.time() + self._period_s
            self._next_beat()
            while loop.time() < next_at:
                await self._watch_link()
                self._link_is_up.clear()
                try:
                    async with asyncio.timeout(min(next_at - loop.time(), self._patience_left_s())):
                        await self._send()
                        await self._link_is_up.wait()
                except TimeoutError:
                    pass

    # The dispatcher's side ------------------------------------------------------------------------------------

    def link_up(self) -> None:
        """Note that a new link is up."""
        self._link_is_up.set()

    def arrived(self) -> None:
        """Note that the link has brought a pulse. Earlier messages may still wait to be dispatched."""
        self._link_at = self._clock()

    def heard(self, position: Position) -> None:
        """Note that everything before this pulse has been dispatched or is being caught up."""
        self._heard_at = self._clock()
        self._ever_heard = True
        self._metrics.pulse_heard(position.ms, self._sent_at)
        if not self._beat_served:
            self._beat_served = True
            self._send_heartbeats(position)

    # Link -----------------------------------------------------------------------------------------------------

    async def _send(self) -> None:
        self._sent_at = self._clock()
        try:
            broker_s = await self._broker.pulse()
        except Unavailable as error:
            log.warning("pulse not sent", error=error.detail)
        else:
            self._metrics.clock_skew(self._shared_clock.set(broker_s, self._sent_at))

    async def _watch_link(self) -> None:
        """Replace a link that brings no pulse: it is dead even if its socket is open. A new link gets the same
        time.
        """
        if self._patience_left_s() <= 0:
            log.warning("no pulse heard, replacing the link", silent_s=round(self._silent_s(), 1))
            self._link_at = self._clock()
            await self._broker.replace_link()

    def _patience_left_s(self) -> float:
        return self._link_at + self._patience_s() - self._clock()

    def _silent_s(self) -> float:
        return self._clock() - self._heard_at

    def _patience_s(self) -> float:
        return LINK_PATIENCE * self._period_s

    # Heartbeats -----------------------------------------------------------------------------------------------

    def _next_beat(self) -> None:
        """Start the next round. Streams that got no heartbeat in the last one, for want of a pulse, get it now."""
        if not self._beat_served:
            self._send_heartbeats(None)
        self.beat = (self.beat + 1) % self._beats
        self._beat_served = False

    def _send_heartbeats(self, position: Position | None) -> None:
        self._write_heartbeats(
            iter([stream for stream in self._registry if stream.opened_at and stream.beat == self.beat]), position
        )

    def _write_heartbeats(self, due: Iterator[Stream], position: Position | None) -> None:
        """Write heartbeats in slices, like a broadcast, so that the loop is free between them."""
        ends_at = time.perf_counter() + SLICE_S
        for stream in due:
            # A stream that was written to since may be past this pulse: ids never go back.
            passed = position is not None and stream.live and stream.pass_to(position)
            stream.heartbeat(position if passed else None)
            if time.perf_counter() >= ends_at:
                after_others(partial(self._write_heartbeats, due, position))
                return
