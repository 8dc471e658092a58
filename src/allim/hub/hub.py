"""The hub publishes events and opens streams. It knows no domain, no Redis and no HTTP."""

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import structlog

from allim.deadlines import TimeLimit
from allim.errors import Conflict, FieldError, Invalid, TooLarge, Unavailable
from allim.hub.audit import Audit
from allim.hub.broker import IDEMPOTENCY_WINDOW_S, Broker, Outcome, Publication
from allim.hub.capacity import Capacity
from allim.hub.catch_up import CatchUp, Start
from allim.hub.clock import SharedClock
from allim.hub.close_reason import CloseReason
from allim.hub.dispatcher import Dispatcher
from allim.hub.event import Check, Draft, Entry, encode_draft
from allim.hub.ledger import Demand, Ledger, Quota, refuse_ended
from allim.hub.lifetimes import Lifetimes
from allim.hub.position import Position
from allim.hub.pulse import Pulse
from allim.hub.registry import Registry
from allim.hub.sessions import Sessions
from allim.hub.settings import HubSettings
from allim.hub.stream import Backlog, Stream
from allim.identity import Ticket
from allim.telemetry import Metrics

log = structlog.get_logger(__name__)

JOIN_TIMEOUT_S = 5.0  # how long a new stream waits for its subscription and its first page
SURE_S = 60.0  # after the lifetime of a stream, when it has certainly ended


class Charge(NamedTuple):
    """The rate-limit charges for opening a stream. `report` is called with the quotas, with none if they were not
    counted, and raises TooMany if they were not granted.
    """

    demands: Sequence[Demand]
    report: Callable[[Sequence[Quota]], Awaitable[None]]


class Published(NamedTuple):
    """The result of a publish: a position per draft, and how durably they are stored."""

    positions: tuple[Position, ...]
    durability: str


class Hub:
    """Publishes events and opens streams.

    It connects its parts: `Sessions` ends and extends sessions; `Dispatcher` and `CatchUp` write events to streams;
    `Pulse` watches the link and writes heartbeats; `Lifetimes` ends streams in time; `Audit` checks sessions after a
    repair; `Capacity` limits the streams of this replica.
    """

    def __init__(
        self,
        broker: Broker,
        ledger: Ledger,
        metrics: Metrics,
        settings: HubSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        checks: Mapping[str, Check] | None = None,
    ) -> None:
        """Shape: `clock` is monotonic, `wall` gives Unix seconds by this machine's clock, `checks` has the check of
        each declared type of events.
        """
        self.settings = settings
        self._broker = broker
        self._ledger = ledger
        self._metrics = metrics
        self._clock = clock
        self.shared_clock = SharedClock(wall, clock)
        self._checks = checks or {}
        self._registry = Registry()
        metrics.count_topics(self._registry.count_topics)
        self._join_limit = TimeLimit(JOIN_TIMEOUT_S)
        self._capacity = Capacity(settings, metrics)
        self._lifetimes = Lifetimes(settings, self._capacity, clock, wall, rng or random.Random())
        self._pulse = Pulse(broker, self._registry, metrics, settings, self.shared_clock, clock)
        self._audit = Audit(ledger, self._registry)
        self.sessions = Sessions(broker, ledger, settings.revocation_s, wall)
        self._catch_up = CatchUp(broker, metrics, self.new_backlog)
        self._dispatcher = Dispatcher(broker, self._registry, self._catch_up, metrics, self._pulse, self._audit)
        self._dispatcher.hinted = self._hinted
        self._hint_handlers: dict[str, Callable[[], None]] = {}
        self._failed: str | None = None
        self._empty = asyncio.Event()  # of streams, and no new ones come

    # Life -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the broker and the background loops; stop them at the end."""
        self._pulse.start()
        await self._broker.start(self._dispatcher)
        loops = [
            asyncio.create_task(self._guard("pulse", self._pulse.run)),
            asyncio.create_task(self._guard("lifetimes", self._lifetimes.run)),
            asyncio.create_task(self._guard("audit", self._audit.run)),
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

    @property
    def draining(self) -> bool:
        return self._lifetimes.draining

    def drain(self) -> None:
        """Take no new streams and end the present ones at random moments. Idempotent."""
        if not self.draining:
            self._lifetimes.drain(self._registry)
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
        self._pulse.check()

    async def _guard(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run a loop that must not end. If it dies, the replica is not ready any more."""
        try:
            await loop()
        except Exception:
            log.exception("a background loop died", loop=name)
            self._failed = f"the {name} loop died"

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
        return self.finish_publish(await self.start_publish(entries, key, keep_s=keep_s))

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

    def start_publish(
        self,
        entries: Sequence[Entry],
        key: str | None,
        demand: Demand | None = None,
        memory: Demand | None = None,
        keep_s: int = IDEMPOTENCY_WINDOW_S,
    ) -> "asyncio.Future[Outcome]":
        """Charge the demands, store encoded drafts, all or none, and announce them; `finish_publish` reads
        the outcome.

        Raises: Unavailable when the store did not confirm.
        """
        publication = Publication(entries, key, _fingerprint(entries) if key else "", demand, memory, keep_s)
        outcome = self._broker.publish(publication)
        return outcome if isinstance(outcome, asyncio.Future) else asyncio.ensure_future(outcome)

    def finish_publish(self, outcome: Outcome) -> Published:
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

    # Streams --------------------------------------------------------------------------------------------------

    def new_stream_id(self) -> str:
        return f"{random.getrandbits(64):016x}"  # not a secret: it grants nothing

    def new_backlog(self) -> Backlog:
        return Backlog(self.settings.stream_buffer_bytes)

    async def join(
        self, stream: Stream, last_event_id: str | None, ticket: Ticket | None = None, charge: Charge | None = None
    ) -> Start:
        """Subscribe a stream's topics, read its first page, charge its limits and spend its ticket. Writes nothing.

        Raises: Unavailable when the broker does not answer, or the replica drains or is full; TooMany when its
        address has too many streams, or its user opens too often; Unauthenticated (SignedOut, Kicked) when its
        session has ended or its ticket was used. The stream is removed then.
        """
        self.check_capacity(stream.address)
        self._registry.add(stream)
        self._capacity.enter(stream.address)
        try:
            with self._join_limit:
                await self._broker.subscribe(stream.topics)
                start = await self._catch_up.start(stream, last_event_id)
                # Last: a later order reaches the subscribed stream, and a ticket is spent only if the stream opens.
                await self._admit(stream, ticket, charge)
        except TimeoutError as error:
            self._forget(stream)
            raise Unavailable("the broker does not answer") from error
        except BaseException:
            self._forget(stream)
            raise
        if stream not in self._registry:  # it ended before it was noted
            self._ledger.remove_stream(stream.subject, stream.id)
        self._dispatcher.joined(stream, start.reading.now)
        return start

    def check_capacity(self, address: str) -> None:
        """Check that one more stream from this address fits on this replica now.

        Raises: Unavailable, TooMany.
        """
        if self.draining:
            raise Unavailable("this replica is draining")
        self._capacity.check(len(self._registry), address)

    async def _admit(self, stream: Stream, ticket: Ticket | None, charge: Charge | None) -> None:
        """Admit the stream in the ledger, and end the user's oldest streams that exceed the limit."""
        settings = self.settings
        keep_s = settings.stream_lifetime_s + SURE_S
        demands = charge.demands if charge else ()
        admission = await self._ledger.admit(stream, stream.id, settings.streams_per_user, keep_s, ticket, demands)
        refuse_ended(admission.state)
        if charge:
            await charge.report(admission.quotas)
        if admission.displaced:
            for _ in admission.displaced:
                self._metrics.refused("streams_per_user")
            try:
                await self.sessions.replace(stream.subject, admission.displaced)
            except Unavailable as error:  # they live on until their lifetime is over; this one is admitted
                log.warning("displaced streams not told", streams=admission.displaced, error=error.detail)

    async def follow(self, stream: Stream, start: Start) -> None:
        """Write the first frame and the missed events, then let the stream go live.

        Returns early, without an error, if the reader leaves meanwhile.
        """
        if stream not in self._registry:
            return
        self._lifetimes.begin(stream)
        stream.beat = self._pulse.beat
        self._metrics.opened()
        log.info("stream opened", stream=stream.id, user=stream.subject, topics=stream.topics)
        stream.open(start.opening)
        try:
            await self._catch_up.follow(stream, start, partial(self._dispatcher.seen, stream))
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

    def _forget(self, stream: Stream) -> None:
        """Remove a stream. May be called twice: a stream may end while it joins, and its join then fails as well."""
        if stream not in self._registry:
            return
        self._lifetimes.forget(stream)
        for name in self._registry.remove(stream):
            self._broker.unsubscribe(name)
        self._capacity.leave(stream.address)
        self._ledger.remove_stream(stream.subject, stream.id)
        self._note_empty()

    def _note_empty(self) -> None:
        if self.draining and not self._registry:
            self._empty.set()


def _fingerprint(entries: Sequence[Entry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(b"%d %b %d\n" % (len(entry.topic), entry.topic.encode(), len(entry.lines)))
        digest.update(entry.lines)
    return digest.hexdigest()[:32]
