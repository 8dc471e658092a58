"""The broker over Redis: publishing, history, pulses, and the link that brings announcements."""

import asyncio
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import structlog
from redis.exceptions import OutOfMemoryError

from allim.brokers.redis.durability import Durability, confirm
from allim.brokers.redis.keys import Keys
from allim.brokers.redis.link import Link
from allim.brokers.redis.memory_watch import MemoryWatch
from allim.brokers.redis.peers import Peers
from allim.brokers.redis.pitfalls import Pitfall, look, pitfalls
from allim.brokers.redis.rights import Rights
from allim.brokers.redis.scripts import VITAL, Script, ScriptCalls
from allim.brokers.redis.server import Connected, RedisServer, ask
from allim.errors import Unavailable
from allim.hub import (
    ZERO,
    Event,
    Heads,
    Listener,
    Outcome,
    Position,
    Publication,
    Quota,
    Reading,
)
from allim.telemetry import Metrics

log = structlog.get_logger(__name__)

PUBLISH_TIMEOUT_S = 7.5  # for all attempts together: with authentication before it, a request is answered within 10
TRY_AGAIN_S = (0.1, 0.5)  # pauses between the attempts
CLOSE_S = 1.0  # for signing off from the other replicas


class RedisBroker:
    """Source: the contract in `allim.hub.broker`."""

    def __init__(
        self,
        url: str,
        replica: str,
        metrics: Metrics,
        *,
        prefix: str = "allim",
        history_events: int = 256,
        history_ttl_s: int = 3600,
        durability: Durability = "memory",
        durable: bool = False,
        rights: Rights | None = None,
        peers: Peers | None = None,
    ) -> None:
        """Raises: ValueError when the URL is malformed or of an unknown scheme."""
        self._keys = Keys(prefix)
        self._pulse_channel = self._keys.pulse_channel + replica
        self._kept = (str(history_events), str(history_ttl_s))
        self.durability = durability
        self._durable = "1" if durable else ""
        self._metrics = metrics
        self._listener: Listener | None = None
        self._read = ZERO  # the newest position read
        self._heard = ZERO  # the newest received over the link, from the process it followed
        self._followed = ""  # run ID of the Redis process that the link last led to

        self._rights = rights or Rights(prefix, durability)
        self._peers = peers or Peers(replica)
        self._pitfalls: list[Pitfall] = []
        self._server = RedisServer(url, f"allim-{replica}", self._rights)
        shared = ("time", "clock", "expiry", "quotas")
        self._publish_script = Script("publish", *shared)
        self._order_script = Script("publish", *shared, vital=True)
        self._read_script = Script("read", "time", "clock")
        self._heads_script = Script("heads", "time", "clock")
        self._pulse_script = Script("pulse", "time", "clock", "expiry")
        self._hint_script = Script("hint")
        self._replicas_script = Script("replicas", "time")
        self._origin_script = Script("origin", "time", "clock")
        # Two queues: a long read of history does not delay publishes, a slow disk does not delay reads.
        confirmed = partial(confirm, durability=durability)
        self._writes = ScriptCalls(self._server, self._context, confirmed, PUBLISH_TIMEOUT_S)
        self._reads = ScriptCalls(self._server, self._context)
        self._memory = MemoryWatch(self._reads, metrics.redis_memory)
        self._link = Link(self._server, self._greet, self._hear, self._writable, self._link_down, self._link_up)

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        self._link.start([self._pulse_channel, self._keys.origin_channel, self._keys.hint_channel])
        self._memory.start()

    async def check(self) -> str | None:
        """Check readiness. Returns the faults of Redis and the differences between replicas that leave it ready.

        Raises: Unavailable when the Redis user lacks rights, or the secret key differs from the other replicas'.
        """
        self._rights.check()
        return (
            "; ".join([*(pitfall.detail for pitfall in self._pitfalls), *filter(None, [self._peers.check()])]) or None
        )

    async def close(self) -> None:
        await self._memory.close()
        await self._link.close()
        if self._followed:
            leaving = self._reads.call(self._replicas_script, [self._keys.replicas], self._peers.sign(leaving=True))
            await asyncio.gather(asyncio.wait_for(leaving, CLOSE_S), return_exceptions=True)
        await self._writes.close()
        await self._reads.close()
        await self._server.close()

    @property
    def memory_max_bytes(self) -> int:
        return self._memory.max_bytes

    def publish(self, publication: Publication) -> "asyncio.Future[Outcome]":
        names = self._keys
        keys = [names.clock, names.of_idempotency_key(publication.key)]
        args: list[Any] = [*self._kept, str(publication.keep_s), publication.fingerprint]
        for demand in (publication.demand, publication.memory):
            keys.append(names.used + (demand.digest if demand else ""))
            args += demand.terms if demand else ("", "", "")
        for topic, lines in publication.entries:
            keys.append(names.history + topic)
            args += (names.topic_channel + topic, lines)
        return self._writes.call(
            self._order_script if publication.vital else self._publish_script,
            keys,
            args,
            read=_outcome,
            pauses=TRY_AGAIN_S,
            repeatable=publication.key is not None,  # the script finds the result of the first attempt
        )

    async def subscribe(self, topics: Collection[str]) -> None:
        await self._link.subscribe([self._keys.topic_channel + topic for topic in topics])

    def unsubscribe(self, topic: str) -> None:
        self._link.unsubscribe(self._keys.topic_channel + topic)

    def read(
        self, topics: Sequence[str], after: Position | None, max_events: int, max_bytes: int
    ) -> "asyncio.Future[Reading]":
        keys = [self._keys.clock]
        if after is not None:
            keys += (self._keys.history + topic for topic in topics)
        args = ["" if after is None else str(after), max_events, max_bytes]
        return self._reads.call(self._read_script, keys, args, read=partial(self._reading, topics))

    def _reading(self, topics: Sequence[str], reply: Sequence[Any]) -> Reading:
        now, floor, expired, until, kept, trimmed, page = reply
        newest = _position(now)
        self._read = max(self._read, newest)
        events = []
        for topic, position, prev, lines in page:
            event = self._event(topics[topic - 1], position, prev, lines)
            if event is not None:
                events.append(event)
        return Reading(
            newest,
            _position(floor),
            events,
            Position.parse(until.decode()) if until else newest,
            kept,
            [topics[topic - 1] for topic in trimmed],
            [topics[topic - 1] for topic in expired],
            complete=not until,
        )

    async def heads(self, topics: Sequence[str]) -> Heads:
        keys = [self._keys.clock, *(self._keys.history + topic for topic in topics)]
        now, floor, expired, newest = await self._reads.call(self._heads_script, keys, [])
        return Heads(_position(now), _position(floor), _position(expired), [_position(text) for text in newest])

    async def pulse(self) -> float:
        pulse = self._reads.call(self._pulse_script, [self._keys.clock], [self._pulse_channel, self._peers.nonce])
        seen = self._reads.call(self._replicas_script, [self._keys.replicas], self._peers.sign())
        pulsed: Any
        others: Any
        pulsed, others = await asyncio.gather(pulse, seen, return_exceptions=True)
        if not isinstance(others, Unavailable):  # which has been logged
            self._peers.learn(others)
        if isinstance(pulsed, BaseException):
            raise pulsed
        run_id, time_ms = pulsed
        if self._link.stands and self._followed != run_id.decode():  # a link that is being made finds the present one
            log.warning("the link leads to another redis process than the commands")
            await self._leave()
        elif await self._server.moved():
            log.warning("the sentinels name another master")
            await self._leave()
        return int(time_ms) / 1000

    async def hint(self, name: str) -> None:
        await self._reads.call(self._hint_script, [self._keys.clock], [self._keys.hint_channel, name])

    async def _leave(self) -> None:
        """Close every connection: the next ones lead to the present master."""
        await self._writes.drop()
        await self.replace_link()

    async def replace_link(self) -> None:
        """Replace the link, and the connection for history: it leads to the same server, and the repair needs it."""
        self._link.replace()
        await self._reads.drop()

    # Connections ------------------------------------------------------------------------------------------------

    def _context(self, run_id: str) -> tuple[str, str, str]:
        return run_id, str(max(self._heard, self._read)), self._durable

    async def _greet(self, connected: Connected) -> None:
        """Tell Redis, before the link subscribes, which process was followed until now: a new origin may have to
        begin.
        """
        greeting = (1, self._keys.clock, *self._context(connected.run_id), self._followed, str(self._heard))
        source = self._origin_script.source
        try:
            await ask(connected.connection, "EVAL", source, *greeting)
        except OutOfMemoryError:
            # A new origin needs no further memory. If the flag were always set, a full disk would refuse the script.
            await ask(connected.connection, "EVAL", f"{VITAL}\n{source}", *greeting)
        if self._followed not in ("", connected.run_id):
            await self._writes.drop()  # they may lead to the old process, which may still accept writes
        self._followed = connected.run_id
        self._warn(pitfalls(await look(connected.connection, self._keys), durable=bool(self._durable)))

    def _warn(self, found: list[Pitfall]) -> None:
        """Log each pitfall of this Redis once."""
        for pitfall in found:
            if pitfall not in self._pitfalls:
                log.warning("redis may lose events", detail=pitfall.detail, advice=pitfall.advice)
        self._pitfalls = found

    # Messages of the link --------------------------------------------------------------------------------------

    def _hear(self, channel: bytes, messages: Sequence[bytes]) -> None:
        assert self._listener is not None
        name = channel.decode()
        if name.startswith(self._keys.topic_channel):
            topic, events = name[len(self._keys.topic_channel) :], []
            for message in messages:
                head, _, lines = message.partition(b"\n")
                position, _, prev = head.partition(b" ")
                event = self._event(topic, position, prev, lines)
                if event is not None:
                    events.append(event)
            if events:
                self._heard = max(self._heard, events[-1].position)
                self._listener.on_events(events)
        elif name == self._pulse_channel:
            for message in messages:
                text, _, nonce = message.partition(b" ")
                pulse = _position(text)
                self._heard = max(self._heard, pulse)
                if self._peers.heard(nonce.decode(errors="replace")):
                    self._listener.on_pulse(pulse)
        elif name == self._keys.hint_channel:
            for message in dict.fromkeys(messages):
                self._listener.on_hint(message.decode(errors="replace"))
        else:
            for message in messages:
                self._listener.on_origin(_position(message))

    async def _writable(self) -> None:
        assert self._listener is not None
        await self._listener.writable()

    def _event(self, topic: str, position: bytes, prev: bytes, lines: bytes) -> Event | None:
        """Return the event, or None for an unreadable entry: one that another program wrote must not end streams."""
        try:
            if not (lines.startswith(b"event: ") and lines.endswith(b"\n\n")):
                raise ValueError("not the lines of an event")
            return Event(topic, Position.parse(position.decode()), Position.parse(prev.decode()), lines)
        except ValueError as error:
            self._metrics.bad_entry()
            log.error("unreadable entry skipped", topic=topic, position=position, error=str(error))
            return None

    def _link_down(self) -> None:
        assert self._listener is not None
        self._listener.link_down()

    def _link_up(self) -> None:
        assert self._listener is not None
        self._listener.link_up()


def _outcome(reply: Sequence[Any]) -> Outcome:
    status, quotas, *positions = reply
    parsed = [Position.parse(text.decode()) for text in positions]
    return Outcome(parsed, list(map(Quota.read, quotas)), status == b"conflict")


def _position(text: bytes) -> Position:
    """Return the position, or ZERO for an unreadable text, which another program may have written."""
    try:
        return Position.parse(text.decode())
    except ValueError:
        return ZERO
