"""The hub: the one door through which events go in and streams are opened. Knows no domain, no Redis, no HTTP."""

import asyncio
import hashlib
import math
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from allim.errors import FieldError, Invalid, TooLarge, Unavailable
from allim.hub.broker import Broker, Publication
from allim.hub.catch_up import CatchUp, Start
from allim.hub.close_reason import CloseReason
from allim.hub.dispatcher import Dispatcher
from allim.hub.event import Control, Draft, Entry, encode_control, encode_draft
from allim.hub.position import Position
from allim.hub.registry import Registry
from allim.hub.stream import Backlog, Stream
from allim.hub.wheel import SLOT_S, Wheel
from allim.identity import user_topic
from allim.telemetry import Metrics

log = structlog.get_logger(__name__)

LINK_PATIENCE = 2.4  # pulses unheard after which the link is replaced: 12 s at the default of 5 s
DRAIN_SHARE = 0.6  # of the drain time for ending streams; the rest is for readers to read that
JOIN_TIMEOUT_S = 5.0  # how long a new stream waits for its subscription and its first page


@dataclass(frozen=True, slots=True)
class HubSettings:
    """Units: as the names say. Meanings in docs/operations.md."""

    heartbeat_s: float = 15
    pulse_s: float = 5
    history_ttl_s: int = 3600
    max_event_bytes: int = 65536
    stream_buffer_bytes: int = 262144
    stream_lifetime_s: float = 900
    drain_s: float = 20


class Published(NamedTuple):
    """What a publish earned: a position per draft, and how durably they are stored."""

    positions: tuple[Position, ...]
    durability: str


class Hub:
    """Publishes, opens streams, and keeps their heartbeats and deadlines."""

    def __init__(
        self,
        broker: Broker,
        metrics: Metrics,
        settings: HubSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.settings = settings or HubSettings()
        self._broker = broker
        self._metrics = metrics
        self._clock = clock
        self._rng = rng or random.Random()
        self._registry = Registry()
        self._wheel = Wheel()
        self._catch_up = CatchUp(broker, metrics, self.settings.history_ttl_s, self.new_backlog)
        self._dispatcher = Dispatcher(
            broker,
            self._registry,
            self._catch_up,
            metrics,
            self.settings.history_ttl_s,
            self._link_alive,
            self._heard,
        )
        self._beats = math.ceil(self.settings.heartbeat_s / self.settings.pulse_s)
        self._beat = 0
        self._beat_served = True
        self._heard_at = self._link_at = clock()
        self._ever_heard = False
        self._pulse_sent_at = 0.0
        self._failed: str | None = None
        self.draining = False
        self._empty = asyncio.Event()  # of streams, and no new ones come

    # Life -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the broker, the pulse and the wheel; stop them at the end."""
        self._heard_at = self._link_at = self._clock()
        await self._broker.start(self._dispatcher)
        loops = [
            asyncio.create_task(self._guard("pulse", self._pulse_loop)),
            asyncio.create_task(self._guard("wheel", self._wheel_loop)),
        ]
        try:
            yield
        finally:
            for task in loops:
                task.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            self._dispatcher.stop()
            await self._catch_up.close()
            for stream in self._registry:
                stream.close(CloseReason.DRAIN)
            await self._broker.close()

    def drain(self) -> None:
        """Take no new streams and end the present ones at random moments. Repeating it changes nothing."""
        if self.draining:
            return
        self.draining = True
        for stream in self._registry:
            self._wheel.bring_forward(stream, self._clock() + self._moment_of_drain_s())
        self._note_empty()

    async def drained(self) -> None:
        """Return when every stream has ended."""
        await self._empty.wait()

    async def check(self) -> None:
        """Readiness: our own pulse came back lately, and nothing of ours has died.

        Raises: Unavailable saying what is wrong.
        """
        if self._failed:
            raise Unavailable(self._failed)
        if self.draining:
            raise Unavailable("draining")
        if not self._ever_heard:
            raise Unavailable("no pulse heard yet")
        if (silent_s := self._silent_s()) > self._patience_s():
            raise Unavailable(f"no pulse heard for {silent_s:.0f} s")

    # Publish --------------------------------------------------------------------------------------------------

    async def publish(self, drafts: Sequence[Draft], key: str | None = None, *, indexed: bool = False) -> Published:
        """Store the drafts, all or none, and announce them.

        Shape: `key` names publisher and idempotency key; the same key with the same drafts gives the same
        positions, over any number of retries and replicas.
        Raises: Invalid or TooLarge naming the field (`topic`, or `[3].topic` when `indexed`); Conflict for a
        known key with other drafts; Unavailable when the store did not confirm.
        """
        entries = [self._encode(draft, f"[{index}]." if indexed else "") for index, draft in enumerate(drafts)]
        published = await self._store(entries, key)
        self._metrics.published(len(entries))
        return published

    async def end_session(self, subject: str, session: str) -> None:
        """End the streams of one session on every replica.

        It goes the way of the user's events, so it reaches just the replicas that hold a stream of the user, in
        order, and also those whose link is being repaired.
        Raises: Unavailable.
        """
        control = Control(session, CloseReason.SIGNED_OUT)
        await self._store([encode_control(user_topic(subject), control)], None)

    def _encode(self, draft: Draft, prefix: str) -> Entry:
        try:
            return encode_draft(draft, self.settings.max_event_bytes)
        except (Invalid, TooLarge) as error:
            raise type(error)(
                prefix + error.detail, [FieldError(prefix + field, text) for field, text in error.fields]
            ) from error

    async def _store(self, entries: Sequence[Entry], key: str | None) -> Published:
        publication = Publication(entries, key, _fingerprint(entries) if key else "")
        return Published(tuple(await self._broker.publish(publication)), self._broker.durability)

    # Streams --------------------------------------------------------------------------------------------------

    def new_stream_id(self) -> str:
        return secrets.token_hex(8)

    def new_backlog(self) -> Backlog:
        return Backlog(self.settings.stream_buffer_bytes)

    async def join(self, stream: Stream, last_event_id: str | None) -> Start:
        """Subscribe a stream's topics and read where it starts. Nothing has been written yet.

        Raises: Unavailable when the broker does not answer or the replica drains; the stream is forgotten then.
        """
        if self.draining:
            raise Unavailable("this replica is draining")
        self._registry.add(stream)
        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                await self._broker.subscribe(stream.topics)
                begin = await self._catch_up.start(stream, last_event_id)
        except TimeoutError as error:
            self._forget(stream)
            raise Unavailable("the broker does not answer") from error
        except BaseException:
            self._forget(stream)
            raise
        for name in stream.topics:
            topic = self._registry.topic(name)
            if topic is not None and topic.last is None:
                topic.last = begin.reading.now
        return begin

    async def follow(self, stream: Stream, begin: Start) -> None:
        """Write the first frame and what was missed, then let the stream go live.

        Ends early, without an error, when the reader leaves meanwhile.
        """
        if stream not in self._registry:
            return
        self._admit(stream)
        stream.open(begin.opening)
        try:
            await self._catch_up.follow(stream, begin)
        except asyncio.CancelledError:
            stream.close(CloseReason.CLIENT_LEFT)
            raise
        except Exception:
            stream.close(CloseReason.LINK_FAILED)  # or it would wait for ever, neither live nor ended
            raise

    def leave(self, stream: Stream, reason: CloseReason) -> None:
        """Forget a stream whose connection has ended. Synchronous, so no cancellation can cut it short."""
        if stream not in self._registry:
            return
        self._forget(stream)
        if not stream.opened_at:
            return
        lasted_s = self._clock() - stream.opened_at
        self._metrics.closed(reason)
        log.info(
            "stream closed",
            stream=stream.id,
            user=stream.subject,
            topics=stream.topics,
            reason=str(reason),
            lasted_s=round(lasted_s, 3),
        )

    def _admit(self, stream: Stream) -> None:
        now = self._clock()
        stream.opened_at = now
        stream.beat = self._beat
        # A stream that was joining when the drain began is drained like the others.
        rotation_s = self.settings.stream_lifetime_s * self._rng.uniform(0.8, 1)
        lifetime_s = self._moment_of_drain_s() if self.draining else rotation_s
        self._wheel.set(stream, now + min(lifetime_s, stream.expires_at - time.time()))
        self._metrics.opened()
        log.info("stream opened", stream=stream.id, user=stream.subject, topics=stream.topics)

    def _moment_of_drain_s(self) -> float:
        return self._rng.uniform(0, self.settings.drain_s * DRAIN_SHARE)

    def _forget(self, stream: Stream) -> None:
        self._wheel.forget(stream)
        for name in self._registry.remove(stream):
            self._broker.unsubscribe(name)
        self._note_empty()

    def _note_empty(self) -> None:
        if self.draining and not self._registry:
            self._empty.set()

    # Pulse and heartbeat --------------------------------------------------------------------------------------

    async def _pulse_loop(self) -> None:
        """A pulse per beat, and one at once over each new link: readiness and repair need not wait for the beat."""
        period_s = self.settings.heartbeat_s / self._beats
        loop = asyncio.get_running_loop()
        while True:
            next_at = loop.time() + period_s
            self._turn_beat()
            while loop.time() < next_at:
                await self._watch_link()
                self._dispatcher.stood_up.clear()
                try:
                    async with asyncio.timeout(min(next_at - loop.time(), self._patience_left_s())):
                        await self._send_pulse()
                        await self._dispatcher.stood_up.wait()
                except TimeoutError:
                    pass

    async def _send_pulse(self) -> None:
        self._pulse_sent_at = time.time()
        try:
            await self._broker.pulse()
        except Unavailable as error:
            log.warning("pulse not sent", error=error.detail)

    async def _watch_link(self) -> None:
        """A link that brings no pulse is dead, whatever its socket says; a new one gets the same patience."""
        if self._patience_left_s() <= 0:
            log.warning("no pulse heard, replacing the link", silent_s=round(self._silent_s(), 1))
            self._link_at = self._clock()
            await self._broker.replace_link()

    def _link_alive(self) -> None:
        self._link_at = self._clock()

    def _turn_beat(self) -> None:
        """Start the next round. Who got no position in the last one gets its heartbeat without."""
        if not self._beat_served:
            self._send_heartbeats(None)
        self._beat = (self._beat + 1) % self._beats
        self._beat_served = False

    def _heard(self, position: Position) -> None:
        self._heard_at = self._clock()
        self._ever_heard = True
        self._metrics.pulse_heard(position.ms, self._pulse_sent_at)
        if not self._beat_served:
            self._beat_served = True
            self._send_heartbeats(position)

    def _send_heartbeats(self, position: Position | None) -> None:
        for stream in self._registry:
            if stream.opened_at and stream.beat == self._beat:
                # A stream that went live a moment ago has read past this pulse: ids never go back.
                if position is not None and stream.live and position > stream.last:
                    stream.last = position
                    stream.heartbeat(position)
                else:
                    stream.heartbeat(None)

    def _patience_left_s(self) -> float:
        return self._link_at + self._patience_s() - self._clock()

    def _silent_s(self) -> float:
        return self._clock() - self._heard_at

    def _patience_s(self) -> float:
        return LINK_PATIENCE * self.settings.heartbeat_s / self._beats

    # Deadlines ------------------------------------------------------------------------------------------------

    async def _wheel_loop(self) -> None:
        while True:
            await asyncio.sleep(SLOT_S)
            for stream in self._wheel.due(self._clock()):
                stream.close(self._why(stream))

    def _why(self, stream: Stream) -> CloseReason:
        if stream.expires_at <= time.time() + 1:
            return CloseReason.TOKEN_EXPIRED
        return CloseReason.DRAIN if self.draining else CloseReason.ROTATE

    async def _guard(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run a loop that must not end; if it dies, readiness goes with it."""
        try:
            await loop()
        except Exception:
            log.exception("a background loop died", loop=name)
            self._failed = f"the {name} loop died"


def _fingerprint(entries: Sequence[Entry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(b"%d %b %d\n" % (len(entry.topic), entry.topic.encode(), len(entry.lines)))
        digest.update(entry.lines)
    return digest.hexdigest()[:32]
