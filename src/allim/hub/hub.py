"""The hub publishes events and opens streams. It knows no domain, no Redis and no HTTP."""

import asyncio
import hashlib
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import structlog

from allim.deadlines import TimeLimit
from allim.errors import (
    Conflict,
    FieldError,
    Invalid,
    Kicked,
    SignedOut,
    TooLarge,
    TooMany,
    Unauthenticated,
    Unavailable,
)
from allim.hub.broadcasts import SLICE_S, after_others
from allim.hub.broker import IDEMPOTENCY_WINDOW_S, Broker, Outcome, Publication
from allim.hub.catch_up import CatchUp, Start
from allim.hub.clock import SharedClock
from allim.hub.close_reason import CloseReason
from allim.hub.dispatcher import Dispatcher
from allim.hub.event import Check, Control, Draft, Entry, encode_control, encode_draft
from allim.hub.ledger import Demand, Holder, Ledger, Quota, Standing
from allim.hub.load import Load
from allim.hub.position import Position
from allim.hub.registry import Registry
from allim.hub.stream import Backlog, Stream
from allim.hub.wheel import SLOT_S, Wheel
from allim.identity import CLOCK_LEEWAY_S, Ticket, user_topic
from allim.networks import Places
from allim.telemetry import Metrics

log = structlog.get_logger(__name__)

Answer = TypeVar("Answer")

LINK_PATIENCE = 2.4  # pulses unheard after which the link is replaced: 12 s at the default of 5 s
DRAIN_SHARE = 0.6  # of the drain time for ending streams; the rest is for readers to read that
JOIN_TIMEOUT_S = 5.0  # how long a new stream waits for its subscription and its first page
LEDGER_TIMEOUT_S = 2.0  # for a call of the ledger by itself
EXPIRING_S = 60.0  # before its token expires a stream is told
AUDIT_STREAMS = 500  # streams whose sessions are looked up in one step of an audit
AUDIT_RETRY_S = 0.5
ADDRESS_RETRY_S = 30  # after a refusal because of too many streams from one address
LONGEST_S = 10 * 365 * 86400.0  # for which the end of a session is kept at most
SURE_S = 60.0  # after the lifetime of a stream, when it has certainly ended


@dataclass(frozen=True, slots=True)
class HubSettings:
    """Units: as the names say. Meanings in docs/operations.md."""

    heartbeat_s: float = 15
    pulse_s: float = 5
    max_event_bytes: int = 65536
    stream_buffer_bytes: int = 262144
    stream_lifetime_s: float = 900
    drain_s: float = 20
    streams_per_user: int = 100
    streams_per_address: int = 500
    streams_per_replica: int = 0
    memory_max_bytes: int = 0
    revocation_s: float = 30 * 86400


class Toll(NamedTuple):
    """The rate-limit charges for opening a stream. `settle` is called with the quotas, with none if they were not
    counted, and raises TooMany if they were not granted.
    """

    demands: Sequence[Demand]
    settle: Callable[[Sequence[Quota]], Awaitable[None]]


class Published(NamedTuple):
    """The result of a publish: a position per draft, and how durably they are stored."""

    positions: tuple[Position, ...]
    durability: str


class Hub:
    """Publishes, opens streams, and keeps their heartbeats and deadlines."""

    def __init__(
        self,
        broker: Broker,
        ledger: Ledger,
        metrics: Metrics,
        settings: HubSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        checks: Mapping[str, Check] | None = None,
    ) -> None:
        """Shape: `clock` is monotonic, `wall` gives Unix seconds by this machine's clock, `checks` has the check of
        each declared type of events.
        """
        self.settings = settings or HubSettings()
        self._broker = broker
        self._ledger = ledger
        self._metrics = metrics
        self._clock = clock
        self._wall = wall
        self.shared_clock = SharedClock(wall, clock)
        self._rng = rng or random.Random()
        self._checks = checks or {}
        self._registry = Registry()
        metrics.count_topics(self._registry.count_topics)
        self._places = Places(self.settings.streams_per_address)
        self._join_limit = TimeLimit(JOIN_TIMEOUT_S)
        self._load = Load(self.settings.memory_max_bytes)
        self._wheel = Wheel()
        self._catch_up = CatchUp(broker, metrics, self.new_backlog)
        self._dispatcher = Dispatcher(
            broker,
            self._registry,
            self._catch_up,
            metrics,
            self._link_alive,
            self._heard,
            self._repaired,
        )
        self._dispatcher.hinted = self._hinted
        self._hint_handlers: dict[str, Callable[[], None]] = {}
        self._audit_due = asyncio.Event()
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
            asyncio.create_task(self._guard("audit", self._audit_loop)),
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
            await self._ledger.close()

    def drain(self) -> None:
        """Take no new streams and end the present ones at random moments. Idempotent."""
        if self.draining:
            return
        self.draining = True
        for stream in self._registry:
            stream.ends_at = self._clock() + self._moment_of_drain_s()
            self._wheel.bring_forward(stream, stream.ends_at)
        self._note_empty()

    async def drained(self) -> None:
        """Return when every stream has ended."""
        await self._empty.wait()

    async def check(self) -> None:
        """Check readiness: the replica's own pulse came back lately, and none of its loops has died.

        Raises: Unavailable with the reason.
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

    async def publish(
        self,
        drafts: Sequence[Draft],
        key: str | None = None,
        *,
        keep_s: int = IDEMPOTENCY_WINDOW_S,
        indexed: bool = False,
    ) -> Published:
        """Store the drafts, all or none, and announce them.

        Shape: `key` names publisher and idempotency key; the same key with the same drafts gives the same
        positions, over any number of retries and replicas.
        Units: `keep_s` is how long the key is known, from its last use on.
        Raises: Invalid or TooLarge naming the field (`topic`, or `[3].topic` when `indexed`); Conflict for a
        known key with other drafts; Unavailable when the store did not confirm.
        """
        entries = [self.encode(draft, f"[{index}]" if indexed else "") for index, draft in enumerate(drafts)]
        return self.stored(await self.store(entries, key, keep_s=keep_s))

    def encode(self, draft: Draft, under: str = "") -> Entry:
        """Check and encode a draft. Shape: `under` is its path, such as `[3]`, if there are several.

        Raises: Invalid or TooLarge naming the field.
        """
        try:
            entry = encode_draft(draft, self.settings.max_event_bytes)
            if (check := self._checks.get(draft.type)) is not None:
                check(draft)
            return entry
        except (Invalid, TooLarge) as error:
            if not under:
                raise
            fields = [FieldError(f"{under}.{field}", text) for field, text in error.fields]
            raise type(error)("; ".join(f"{field}: {text}" for field, text in fields), fields) from error

    def store(
        self,
        entries: Sequence[Entry],
        key: str | None,
        demand: Demand | None = None,
        memory: Demand | None = None,
        keep_s: int = IDEMPOTENCY_WINDOW_S,
    ) -> "asyncio.Future[Outcome]":
        """Charge the demands, store encoded drafts, all or none, and announce them; `stored` reads the outcome.

        Raises: Unavailable when the store did not confirm.
        """
        publication = Publication(entries, key, _fingerprint(entries) if key else "", demand, memory, keep_s)
        outcome = self._broker.publish(publication)
        return outcome if isinstance(outcome, asyncio.Future) else asyncio.ensure_future(outcome)

    def stored(self, outcome: Outcome) -> Published:
        """Count and return the stored events. The demand, if there was one, has been granted.

        Raises: Conflict for a known key with other drafts.
        """
        if outcome.conflict:
            message = "this key was used for another body within the last 24 hours"
            raise Conflict(f"Idempotency-Key: {message}", [FieldError("Idempotency-Key", message)])
        self._metrics.published(len(outcome.positions))
        return Published(tuple(outcome.positions), self._broker.durability)

    # Hints ----------------------------------------------------------------------------------------------------

    async def hint(self, name: str) -> None:
        """Call the handlers of a name on every replica, this one too. A hint is not stored: it may be lost.

        Raises: Unavailable.
        """
        await self._broker.hint(name)

    def on_hint(self, name: str, handler: Callable[[], None]) -> None:
        """Call `handler` at each hint of this name."""
        self._hint_handlers[name] = handler

    def _hinted(self, name: str) -> None:
        handler = self._hint_handlers.get(name)  # none when another version of allim sent it
        if handler is not None:
            handler()

    # Sessions -------------------------------------------------------------------------------------------------
    # An order is published on the user's topic, so it reaches exactly the replicas with streams of the user, in
    # order, and also those whose link is being repaired. The ledger is written before, so it refuses later requests.

    async def sign_out(self, holder: Holder) -> None:
        """End a session and its streams on every replica.

        Raises: Unavailable.
        """
        # For as long as a machine whose clock is behind ours accepts the token.
        left_s = min(holder.expires_at - self._wall() + CLOCK_LEEWAY_S, LONGEST_S)
        await _in_time(self._ledger.sign_out(holder, max(left_s, self.settings.revocation_s)))
        await self._order(Control(holder.subject, CloseReason.SIGNED_OUT, session=holder.session))

    async def kick(self, subject: str) -> None:
        """End every session a user has until now, and all their streams on every replica.

        Raises: Unavailable.
        """
        moment = await _in_time(self._ledger.kick(subject, self.settings.revocation_s, self._wall()))
        await self._order(Control(subject, CloseReason.KICKED, issued_until=moment))

    async def standings(self, holders: Sequence[Holder]) -> Sequence[Standing]:
        """Return for each session whether it has ended.

        Raises: Unavailable.
        """
        return await _in_time(self._ledger.standings(holders))

    async def last_kick(self, subject: str) -> float | None:
        """Return the moment of the user's last kick, for a token that is issued now; 0 when there was none, None when
        the ledger does not answer: the token is then compared with later kicks by its time of issue.
        """
        try:
            return await _in_time(self._ledger.last_kick(subject))
        except Unavailable as error:
            log.warning("a token names no kick", user=subject, error=error.detail)
            return None

    async def extend(self, holder: Holder, expires_at: float) -> None:
        """Extend the live streams of a session until `expires_at`.

        Units: Unix seconds.
        Raises: Unavailable.
        """
        await self._order(Control(holder.subject, expires_at=expires_at, session=holder.session))

    async def _order(self, control: Control) -> None:
        entry = encode_control(user_topic(control.subject), control)
        await self._broker.publish(Publication([entry], None, "", vital=True))

    # Streams --------------------------------------------------------------------------------------------------

    def new_stream_id(self) -> str:
        return f"{random.getrandbits(64):016x}"  # not a secret: it grants nothing

    def new_backlog(self) -> Backlog:
        return Backlog(self.settings.stream_buffer_bytes)

    async def join(
        self, stream: Stream, last_event_id: str | None, ticket: Ticket | None = None, toll: Toll | None = None
    ) -> Start:
        """Subscribe a stream's topics, read its first page, charge its limits and spend its ticket. Writes nothing.

        Raises: Unavailable when the broker does not answer, or the replica drains or is full; TooMany when its
        address has too many streams, or its user opens too often; Unauthenticated (SignedOut, Kicked) when its
        session has ended or its ticket was used. The stream is removed then.
        """
        self.check_room(stream.address)
        self._registry.add(stream)
        self._places.enter(stream.address)
        try:
            with self._join_limit:
                await self._broker.subscribe(stream.topics)
                begin = await self._catch_up.start(stream, last_event_id)
                # Last: a later order reaches the subscribed stream, and a ticket is spent only if the stream opens.
                await self._admit(stream, ticket, toll)
        except TimeoutError as error:
            self._forget(stream)
            raise Unavailable("the broker does not answer") from error
        except BaseException:
            self._forget(stream)
            raise
        if stream not in self._registry:  # it ended before it was noted
            self._ledger.leave(stream.subject, stream.id)
        for name in stream.topics:
            topic = self._registry.topic(name)
            if topic is not None and topic.last is None:
                topic.last = begin.reading.now
                for other in topic.streams:  # their page may be older, and they get no announcement of the difference
                    if other is not stream and other.backlog is not None:
                        other.backlog.spoil()
        return begin

    def check_room(self, address: str) -> None:
        """Check that one more stream from this address fits on this replica now.

        Raises: Unavailable, TooMany.
        """
        if self.draining:
            raise Unavailable("this replica is draining")
        settings = self.settings
        excess = self._load.excess()
        if settings.streams_per_replica and len(self._registry) >= settings.streams_per_replica:
            excess = "streams_per_replica"
        if excess is not None:
            self._metrics.refused(excess)
            raise Unavailable("this replica has no room for another stream")
        if not self._places.has_room(address):
            self._metrics.refused("streams_per_address")
            raise TooMany("There are too many streams from this address.", ADDRESS_RETRY_S)

    async def _admit(self, stream: Stream, ticket: Ticket | None, toll: Toll | None) -> None:
        """Admit the stream in the ledger, and end the user's oldest streams that exceed the limit."""
        settings = self.settings
        keep_s = settings.stream_lifetime_s + SURE_S
        demands = toll.demands if toll else ()
        admission = await self._ledger.admit(stream, stream.id, settings.streams_per_user, keep_s, ticket, demands)
        refuse_ended(admission.standing)
        if toll:
            await toll.settle(admission.quotas)
        if admission.displaced:
            for _ in admission.displaced:
                self._metrics.refused("streams_per_user")
            try:
                await self._order(Control(stream.subject, CloseReason.REPLACED, streams=tuple(admission.displaced)))
            except Unavailable as error:  # they live on until their lifetime is over; this one is admitted
                log.warning("displaced streams not told", streams=admission.displaced, error=error.detail)

    async def follow(self, stream: Stream, begin: Start) -> None:
        """Write the first frame and the missed events, then let the stream go live.

        Returns early, without an error, if the reader leaves meanwhile.
        """
        if stream not in self._registry:
            return
        self._begin(stream)
        stream.open(begin.opening)
        try:
            await self._catch_up.follow(stream, begin, partial(self._dispatcher.seen, stream))
        except asyncio.CancelledError:
            stream.close(CloseReason.CLIENT_LEFT)
            raise
        except Exception:
            stream.close(CloseReason.LINK_FAILED)  # or it would wait for ever, neither live nor ended
            raise

    def bring_back(self, stream: Stream) -> None:
        """Put a live stream whose buffer is full back into catch-up, at its reader's pace."""
        self._dispatcher.bring_back(stream)

    def leave(self, stream: Stream, reason: CloseReason) -> None:
        """Remove a stream whose connection has ended. Synchronous, so that no cancellation can interrupt it."""
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

    def _begin(self, stream: Stream) -> None:
        now = self._clock()
        stream.opened_at = now
        stream.unix_s = self._wall() - now
        stream.beat = self._beat
        # A stream that was joining when the drain began is drained like the others.
        rotation_s = self.settings.stream_lifetime_s * self._rng.uniform(0.8, 1)
        stream.ends_at = now + (self._moment_of_drain_s() if self.draining else rotation_s)
        self._plan(stream)
        self._metrics.opened()
        log.info("stream opened", stream=stream.id, user=stream.subject, topics=stream.topics)

    def _moment_of_drain_s(self) -> float:
        return self._rng.uniform(0, self.settings.drain_s * DRAIN_SHARE)

    def _forget(self, stream: Stream) -> None:
        """Remove a stream. May be called twice: a stream may end while it joins, and its join then fails as well."""
        if stream not in self._registry:
            return
        self._wheel.forget(stream)
        for name in self._registry.remove(stream):
            self._broker.unsubscribe(name)
        self._places.leave(stream.address)
        self._ledger.leave(stream.subject, stream.id)
        self._note_empty()

    def _note_empty(self) -> None:
        if self.draining and not self._registry:
            self._empty.set()

    # Pulse and heartbeat --------------------------------------------------------------------------------------

    async def _pulse_loop(self) -> None:
        """Send a pulse per beat, and one over each new link at once, because readiness and repair wait for it."""
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
        self._pulse_sent_at = self._clock()
        try:
            broker_s = await self._broker.pulse()
        except Unavailable as error:
            log.warning("pulse not sent", error=error.detail)
        else:
            self._metrics.clock_skew(self.shared_clock.set(broker_s, self._pulse_sent_at))

    async def _watch_link(self) -> None:
        """Replace a link that brings no pulse: it is dead even if its socket is open. A new link gets the same
        time.
        """
        if self._patience_left_s() <= 0:
            log.warning("no pulse heard, replacing the link", silent_s=round(self._silent_s(), 1))
            self._link_at = self._clock()
            await self._broker.replace_link()

    def _link_alive(self) -> None:
        self._link_at = self._clock()

    def _turn_beat(self) -> None:
        """Start the next round. Streams that got no heartbeat in the last one, for want of a pulse, get it now."""
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
        self._write_heartbeats(
            iter([stream for stream in self._registry if stream.opened_at and stream.beat == self._beat]), position
        )

    def _write_heartbeats(self, due: Iterator[Stream], position: Position | None) -> None:
        """Write heartbeats in slices, like a broadcast, so that the loop is free between them."""
        ends_at = time.perf_counter() + SLICE_S
        for stream in due:
            # A stream that was written to since may be past this pulse: ids never go back.
            if position is not None and stream.live and position > stream.last:
                stream.last = position
                stream.heartbeat(position)
            else:
                stream.heartbeat(None)
            if time.perf_counter() >= ends_at:
                after_others(partial(self._write_heartbeats, due, position))
                return

    def _patience_left_s(self) -> float:
        return self._link_at + self._patience_s() - self._clock()

    def _silent_s(self) -> float:
        return self._clock() - self._heard_at

    def _patience_s(self) -> float:
        return LINK_PATIENCE * self.settings.heartbeat_s / self._beats

    # Deadlines ------------------------------------------------------------------------------------------------

    async def _wheel_loop(self) -> None:
        while True:
            slept_at = time.perf_counter()  # uvloop's own clock stands still within a turn
            await asyncio.sleep(SLOT_S)
            self._load.note(time.perf_counter() - slept_at - SLOT_S)
            for stream in self._wheel.due(self._clock()):
                self._look_after(stream)

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

    # Audit ----------------------------------------------------------------------------------------------------

    def _repaired(self) -> None:
        self._audit_due.set()

    async def _audit_loop(self) -> None:
        """After each repair of the link, check all sessions in the ledger: an order to end one may have been lost."""
        while True:
            await self._audit_due.wait()
            self._audit_due.clear()
            streams = list(self._registry)
            for at in range(0, len(streams), AUDIT_STREAMS):
                await self._audit(streams[at : at + AUDIT_STREAMS])

    async def _audit(self, streams: Sequence[Stream]) -> None:
        while True:
            try:
                standings = await self._ledger.standings(streams)
                break
            except Unavailable as error:
                log.warning("audit waits for the ledger", error=error.detail)
                await asyncio.sleep(AUDIT_RETRY_S)
        for stream, standing in zip(streams, standings, strict=True):
            if standing is not Standing.GOOD:
                stream.close(CloseReason(standing))

    async def _guard(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run a loop that must not end. If it dies, the replica is not ready any more."""
        try:
            await loop()
        except Exception:
            log.exception("a background loop died", loop=name)
            self._failed = f"the {name} loop died"


async def _in_time(answer: Awaitable[Answer]) -> Answer:
    """Raises: Unavailable."""
    try:
        async with asyncio.timeout(LEDGER_TIMEOUT_S):
            return await answer
    except TimeoutError:
        raise Unavailable("the ledger does not answer") from None


def refuse_ended(standing: Standing) -> None:
    """Raises: SignedOut, Kicked or Unauthenticated."""
    if standing is Standing.SIGNED_OUT:
        raise SignedOut("The session has ended; sign in again.")
    if standing is Standing.KICKED:
        raise Kicked("The session was ended; sign in again.")
    if standing is Standing.SPENT:
        raise Unauthenticated("The ticket was used before; get a new one.", reason="ticket_used")


def _fingerprint(entries: Sequence[Entry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(b"%d %b %d\n" % (len(entry.topic), entry.topic.encode(), len(entry.lines)))
        digest.update(entry.lines)
    return digest.hexdigest()[:32]
