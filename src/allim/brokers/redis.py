"""The broker of the clustered form: Redis 7.0 or later (or Valkey), one shard.

Keys and channels, `{0}` being the shard's hash tag: `<prefix>:{0}:clock`, `<prefix>:{0}:history:<topic>`,
`<prefix>:{0}:key:<idempotency key>`, channels `<prefix>:{0}:topic:<topic>` and `<prefix>:{0}:pulse:<replica>`.
"""

import hashlib
from collections.abc import Collection, Sequence
from typing import Any

import structlog
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from allim.brokers.link import Link
from allim.brokers.scripts import Script, ScriptCalls
from allim.errors import Unavailable
from allim.hub import (
    IDEMPOTENCY_WINDOW_S,
    ZERO,
    Event,
    Listener,
    Position,
    Publication,
    Reading,
    TopicHistory,
    idempotency_conflict,
)
from allim.telemetry import Metrics

log = structlog.get_logger(__name__)

SOCKET_TIMEOUT_S = 5.0


class RedisBroker:
    """Source: the promise in `allim.hub.broker`."""

    durability = "memory"

    def __init__(
        self,
        url: str,
        replica: str,
        metrics: Metrics,
        *,
        prefix: str = "allim",
        history_events: int = 256,
        history_ttl_s: int = 3600,
        durable: bool = False,
    ) -> None:
        """Raises: ValueError when the URL is none that redis-py reads."""
        shard = f"{prefix}:{{0}}:"
        self._clock_key = shard + "clock"
        self._history_key = shard + "history:"
        self._idempotency_key = shard + "key:"
        self._topic_channel = shard + "topic:"
        self._pulse_channel = f"{shard}pulse:{replica}"
        self._pulse_channel_bytes = self._pulse_channel.encode()
        self._history_events = history_events
        self._history_ttl_s = history_ttl_s
        self._durable = durable
        self._metrics = metrics
        self._listener: Listener | None = None
        self._newest = ZERO  # position heard
        # protocol 2: what a subscriber reads is plain arrays; no maintenance notifications.
        # No retries: redis-py repeats a command whose answer is lost, and so its effect.
        self._pool = ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            client_name=f"allim-{replica}"[:64],
        )
        self._redis: Redis = Redis(connection_pool=self._pool)
        self._publish_script = Script(self._redis, "publish")
        self._read_script = Script(self._redis, "read")
        self._pulse_script = Script(self._redis, "pulse")
        self._origin_script = Script(self._redis, "origin")
        # Two queues, so that a long read of history delays no publish.
        self._writes = ScriptCalls(self._redis)
        self._reads = ScriptCalls(self._redis)
        self._link = Link(self._pool, self._note_origin, self._hear, self._link_down, self._link_up)

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        self._link.start(self._pulse_channel)

    async def close(self) -> None:
        await self._link.close()
        await self._writes.close()
        await self._reads.close()
        await self._pool.disconnect()

    async def publish(self, publication: Publication) -> Sequence[Position]:
        keys = [self._clock_key, self._key(publication.key)]
        args: list[Any] = [
            self._history_events,
            self._history_ttl_s,
            IDEMPOTENCY_WINDOW_S,
            publication.fingerprint,
        ]
        for topic, lines in publication.entries:
            keys.append(self._history_key + topic)
            args += (self._topic_channel + topic, lines)
        reply = await self._publish_once_or_again(publication.key, keys, args)
        if reply[0] == b"conflict":
            raise idempotency_conflict()
        return [Position.parse(text.decode()) for text in reply[1:]]

    async def _publish_once_or_again(self, key: str | None, keys: list[str], args: list[Any]) -> Any:
        """Only a key makes a second try harmless: the script finds what the first one did."""
        try:
            return await self._writes.call(self._publish_script, keys, args)
        except Unavailable:
            if key is None:
                raise
            return await self._writes.call(self._publish_script, keys, args)

    async def subscribe(self, topics: Collection[str]) -> None:
        await self._link.subscribe([self._topic_channel + topic for topic in topics])

    def unsubscribe(self, topic: str) -> None:
        self._link.unsubscribe(self._topic_channel + topic)

    async def read(self, topics: Sequence[str], after: Position | None, limit: int) -> Reading:
        if after is None:
            keys, args = [self._clock_key], ["", 0]
        else:
            keys, args = (
                [self._clock_key, *(self._history_key + topic for topic in topics)],
                [str(after), limit],
            )
        now, floor, time_ms, *pages = await self._reads.call(self._read_script, keys, args)
        return Reading(
            Position.parse(now.decode()),
            Position.parse(floor.decode()),
            int(time_ms),
            [self._page(topic, page) for topic, page in zip(topics, pages or [None] * len(topics), strict=True)],
        )

    async def pulse(self) -> None:
        await self._writes.call(self._pulse_script, [self._clock_key], [self._pulse_channel, str(self._newest)])

    def replace_link(self) -> None:
        self._link.replace()

    def _key(self, key: str | None) -> str:
        """A key of fixed form, whatever the publisher wrote."""
        if key is None:
            return self._idempotency_key
        return self._idempotency_key + hashlib.sha256(key.encode()).hexdigest()

    def _page(self, topic: str, page: Any) -> TopicHistory:
        if page is None:
            return TopicHistory(topic, (), None, 0)
        oldest_prev, more, entries = page
        read = (self._event(topic, position, *fields[1:6:4]) for position, fields in entries)
        events = [event for event in read if event is not None]
        return TopicHistory(topic, events, _position(oldest_prev) if oldest_prev else None, max(0, more))

    # What the link brings --------------------------------------------------------------------------------------

    def _hear(self, channel: bytes, message: bytes) -> None:
        assert self._listener is not None
        if channel == self._pulse_channel_bytes:
            pulse = _position(message)
            self._newest = max(self._newest, pulse)
            self._listener.on_pulse(pulse)
            return
        head, _, lines = message.partition(b"\n")
        position, _, prev = head.partition(b" ")
        event = self._event(channel.decode()[len(self._topic_channel) :], position, prev, lines)
        if event is not None:
            self._newest = max(self._newest, event.position)
            self._listener.on_event(event)

    def _event(self, topic: str, position: bytes, prev: bytes = b"", lines: bytes = b"") -> Event | None:
        """An entry that somebody else wrote into our keys must not end the streams that would read it."""
        try:
            if not (lines.startswith(b"event: ") and lines.endswith(b"\n\n")):
                raise ValueError("not the lines of an event")
            event = Event(topic, Position.parse(position.decode()), Position.parse(prev.decode()), lines)
            _ = event.control  # raises for an order we do not know
            return event
        except ValueError as error:
            self._metrics.bad_entry()
            log.error("unreadable entry skipped", topic=topic, position=position, error=str(error))
            return None

    async def _note_origin(self, run_id: str) -> None:
        """Before the link stands again: a Redis that is another process than the one before may have lost events."""
        args = [run_id, "1" if self._durable else "", str(self._newest)]
        if await self._writes.call(self._origin_script, [self._clock_key], args):
            log.warning("redis is another process, its history has a new origin", run_id=run_id)

    def _link_down(self) -> None:
        assert self._listener is not None
        self._listener.link_down()

    def _link_up(self) -> None:
        assert self._listener is not None
        self._listener.link_up()


def _position(text: bytes) -> Position:
    """The position, or the first of all when somebody else wrote this: it claims nothing."""
    try:
        return Position.parse(text.decode())
    except ValueError:
        return ZERO
