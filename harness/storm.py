"""Publishers and followers that log everything, for `harness/checker.py` to judge. Hundreds of each in one loop.

A follower does what a browser's EventSource does and has a parser of its own, strict where a browser is lenient, so
that frames are judged by something other than the code that wrote them.
"""

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import quote

import httptools
import httpx

from allim.hub import ZERO, Position
from harness.checker import (
    CLOSE,
    CONNECT,
    END,
    EVENT,
    GAP,
    HEARTBEAT,
    MALFORMED,
    OPEN,
    STATUS,
    Entry,
    FollowerLog,
    Publish,
)
from harness.replicas import PUBLISH_KEY, token_for_topics
from harness.waiting import until

TYPE = "storm.event"
TEXT = 'line\nline\r\u2028data: {"n":0} 알림'  # what a careless encoder breaks frames with

PATIENCE = httpx.Timeout(15)  # above the deadline of a publish
NO_PATIENCE = httpx.Timeout(
    15, read=0.003
)  # it is sent, and most often carried out, and the answer is not waited for
LATER_EACH_TIME = 1.5  # a publisher's pause grows by this
FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 2.0


# -- Followers ------------------------------------------------------------------------------------------------


class MalformedFrame(Exception):
    """What came is no frame of docs/protocol.md."""


@lru_cache(maxsize=65536)  # hundreds of followers get the same events
def parse_frame(block: bytes) -> tuple[int | None, Entry | None]:
    """The `retry:` of a block and what it says, at time 0.

    Raises: MalformedFrame.
    """
    try:
        lines = block.decode().split("\n")
        fields = dict(line.split(": ", 1) for line in lines)
        if len(fields) != len(lines) or b"\r" in block:
            raise ValueError("a field comes twice, or a line ends with CR")
        retry_ms = int(fields.pop("retry")) if "retry" in fields else None
        if not fields:
            return retry_ms, None
        position = Position.parse(fields.pop("id")) if "id" in fields else None
        entry = _understood(fields.pop("event"), position, json.loads(fields.pop("data")))
        if fields:
            raise ValueError(f"unknown fields {[*fields]}")
        return retry_ms, entry
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedFrame(f"{block!r}: {error}") from error


def _understood(type_: str, position: Position | None, data: Any) -> Entry:
    match type_:
        case "storm.event":
            if data["text"] != TEXT:
                raise ValueError("another text than was published")
            return Entry(0, EVENT, position, data["n"])
        case "heartbeat":
            return Entry(0, HEARTBEAT, position)
        case "stream.open":
            topics = tuple(reset["topic"] for reset in data["resets"])
            reasons = tuple(reset["reason"] for reset in data["resets"])
            return Entry(0, OPEN, position, 0, topics, reasons, data["replica"], data["resume"])
        case "stream.gap":
            return Entry(0, GAP, position, 0, tuple(data["topics"]), (data["reason"],) * len(data["topics"]))
        case "stream.close":
            return Entry(0, CLOSE, position, said=data["reason"], resume=str(data["reconnect"]).lower())
    raise ValueError(f"unknown type {type_}")


@dataclass
class Follower:
    """One client: connects, reads, logs, and comes back with its last event ID."""

    log: FollowerLog
    url: str
    who: str
    silence_s: float
    rng: random.Random
    cursor: Position | None = None
    retry_s: float = 1.0
    heard_at: float = 0.0
    connection: "Connection | None" = None
    task: asyncio.Task[None] | None = None

    async def follow(self) -> None:
        host, port = self.url.removeprefix("http://").split(":")
        loop = asyncio.get_running_loop()
        while True:
            self.connection = connection = Connection(self)
            self.note(Entry(time.time(), CONNECT, self.cursor))
            self.heard_at = loop.time()
            try:
                await loop.create_connection(lambda made=connection: made, host, int(port))  # type: ignore[misc]
            except OSError as error:
                self.note(Entry(time.time(), END, said=type(error).__name__))
            else:
                await connection.ended
            await asyncio.sleep(self.retry_s * self.rng.uniform(1, 1.2))

    def request(self) -> bytes:
        lines = [f"GET /events?topics={quote(','.join(self.log.topics), safe=',:')} HTTP/1.1", "host: storm"]
        lines += [f"authorization: Bearer {self.who}", "accept: text/event-stream"]
        lines += [f"last-event-id: {self.cursor}"] if self.cursor is not None else []
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def note(self, entry: Entry) -> None:
        self.log.entries.append(entry)

    def watch(self, now: float) -> None:
        """No frame for too long: the line is dead, whatever the kernel says."""
        connection = self.connection
        if connection is not None and not connection.ended.done() and now - self.heard_at > self.silence_s:
            connection.give_up("silence")

    def leave(self) -> None:
        if self.task is not None:
            self.task.cancel()
        if self.connection is not None:
            self.connection.give_up("left")


class Connection(asyncio.Protocol):
    """One connection of a follower. The response is parsed by httptools, its body by `parse_frame`."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None
        self.parser = httptools.HttpResponseParser(self)
        self.rest = b""
        self.why = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.follower.request())

    def data_received(self, data: bytes) -> None:
        self.follower.heard_at = asyncio.get_running_loop().time()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._malformed(f"HTTP: {error!r}")

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.follower.note(Entry(time.time(), END, said=self.why or repr(exc or "")))
            self.ended.set_result(None)

    def give_up(self, why: str) -> None:
        self.why = why
        if self.transport is not None:
            self.transport.abort()

    # httptools' side

    def on_headers_complete(self) -> None:
        status = self.parser.get_status_code()
        self.follower.note(Entry(time.time(), STATUS, said=str(status)))
        if status != 200:
            self.give_up(f"status {status}")

    def on_body(self, body: bytes) -> None:
        if self.why:
            return
        *blocks, self.rest = (self.rest + body).split(b"\n\n")
        now = time.time()
        for block in blocks:
            self._take(block, now)

    def on_message_complete(self) -> None:
        self.give_up(self.why or "complete")

    def _take(self, block: bytes, now: float) -> None:
        follower = self.follower
        try:
            retry_ms, entry = parse_frame(block)
        except MalformedFrame as error:
            self._malformed(str(error))
            return
        if retry_ms is not None:
            follower.retry_s = retry_ms / 1000
        if entry is not None:
            follower.note(entry._replace(at=now))
            follower.cursor = entry.position or follower.cursor

    def _malformed(self, text: str) -> None:
        self.follower.note(Entry(time.time(), MALFORMED, said=text[:500]))
        self.give_up("malformed")


# -- Publishers -----------------------------------------------------------------------------------------------


@dataclass
class Publisher:
    """Publishes once without a key; with one until it is answered or the deadline has come.

    A share of publishes does not wait for its first answer: those with a key are retried, of the others it is unknown
    whether they happened.
    """

    urls: Sequence[str]
    http: httpx.AsyncClient
    rng: random.Random
    log: list[Publish]
    numbers: "itertools.count[int]"
    deadline_s: float = 30.0
    keyed_share: float = 0.8
    impatient_share: float = 0.03
    batch_share: float = 0.3
    batch_events: int = 6

    async def publish(self, topics: Sequence[str], *, key: str | None) -> Publish:
        """One event per topic, in one publish."""
        events = tuple((topic, next(self.numbers)) for topic in topics)
        bodies = [{"topic": topic, "type": TYPE, "data": {"n": n, "text": TEXT}} for topic, n in events]
        body = json.dumps(bodies if len(bodies) > 1 else bodies[0]).encode()
        began = time.time()
        result, positions, said = await self._until_answered(body, key)
        record = Publish(key, events, result, positions, began, time.time(), said)
        self.log.append(record)
        return record

    async def publish_some(self, topics: Sequence[str], weights: Sequence[float]) -> None:
        """One of a storm's publishes, of topics drawn by weight."""
        count = self.rng.randint(2, self.batch_events) if self.rng.random() < self.batch_share else 1
        key = f"{self.rng.getrandbits(64):016x}" if self.rng.random() < self.keyed_share else None
        await self.publish(self.rng.choices(topics, weights, k=count), key=key)

    async def _until_answered(
        self, body: bytes, key: str | None
    ) -> tuple[Literal["ok", "refused", "unknown"], tuple[Position, ...], str]:
        headers = {"authorization": f"Bearer {PUBLISH_KEY}", "content-type": "application/json"}
        headers |= {"idempotency-key": key} if key else {}
        give_up_at = time.monotonic() + self.deadline_s
        pause_s, said = FIRST_PAUSE_S, []
        urls = itertools.cycle(self.rng.sample(self.urls, len(self.urls)))
        patience = NO_PATIENCE if self.rng.random() < self.impatient_share else PATIENCE
        while True:
            url = f"{next(urls)}/api/publish"
            try:
                response = await self.http.post(url, content=body, headers=headers, timeout=patience)
            except httpx.TransportError as error:
                said.append(type(error).__name__)
            else:
                if response.status_code == 202:
                    answer = response.json()
                    ids = answer.get("ids") or [answer["id"]]
                    return "ok", tuple(Position.parse(text) for text in ids), " ".join(said)
                said.append(str(response.status_code))
                if response.status_code < 500:
                    return "refused", (), " ".join([*said, response.text[:300]])
            if key is None or time.monotonic() + pause_s > give_up_at:
                return "unknown", (), " ".join(said)
            patience = PATIENCE
            await asyncio.sleep(pause_s * self.rng.uniform(0.5, 1))
            pause_s = min(pause_s * LATER_EACH_TIME, LAST_PAUSE_S)


# -- Both -----------------------------------------------------------------------------------------------------


@dataclass
class Storm:
    """Followers and publishers over a deployment, on one event loop.

    Shape: `urls` are the replicas' own; followers go to `front`, but one in ten straight to a replica. Every fifth
    follows the shared topics too. Publishers go to all of them in turn.
    """

    urls: Sequence[str]
    front: str
    seed: int
    heartbeat_s: float
    shared: Sequence[str] = ("board:news", "board:chat")
    publishes: list[Publish] = field(default_factory=list)
    followers: list[Follower] = field(default_factory=list)
    ends: dict[str, Position] = field(default_factory=dict)
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    @asynccontextmanager
    async def following(self, count: int) -> AsyncIterator[None]:
        """This many followers, all open; they leave at the end."""
        for number in range(count):
            self._follow(number)
        watch = asyncio.create_task(self._watch(), name="follower watch")
        try:
            await until(lambda: all(follower.cursor for follower in self.followers), 30, "every stream open")
            yield
        finally:
            for follower in self.followers:
                follower.leave()
            watch.cancel()
            await asyncio.gather(watch, *(f.task for f in self.followers if f.task), return_exceptions=True)

    async def publish(self, per_s: float, stop: asyncio.Event, at_once: int = 200) -> None:
        """Publish at this pace until told to stop, then wait for what is under way.

        Publishes do not wait for each other, so an outage piles them up, to `at_once` of them.
        """
        topics = [f"user:{follower.log.name}" for follower in self.followers]
        weights = {"system": 0.02 * len(topics), **dict.fromkeys(self.shared, 0.05 * len(topics))}
        drawn_from = [*topics, *weights], [1.0] * len(topics) + [*weights.values()]
        async with self._publisher(at_once) as publisher:
            under_way: set[asyncio.Task[None]] = set()
            due = time.monotonic()
            while not stop.is_set():
                due = max(due + 1 / per_s, time.monotonic() - 1)  # what an outage held up is not made up for
                if len(under_way) < at_once:
                    task = asyncio.create_task(publisher.publish_some(*drawn_from))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            await asyncio.gather(*under_way)

    async def end(self, timeout_s: float) -> list[str]:
        """A last event on every topic; who has it has everything before, or was told. Names those who have not."""
        topics = sorted({topic for follower in self.followers for topic in follower.log.topics})
        async with self._publisher(at_once=4) as publisher:
            for at in range(0, len(topics), 100):
                published = await publisher.publish(topics[at : at + 100], key=f"end-{self.seed}-{at}")
                self.ends |= dict(zip(topics[at : at + 100], published.positions, strict=False))
        with suppress(AssertionError):
            await until(lambda: not self._behind(), timeout_s)
        return self._behind()

    def _behind(self) -> list[str]:
        newest = max(self.ends.values(), default=ZERO)
        return [
            follower.log.name
            for follower in self.followers
            if (follower.cursor or ZERO) < max(self.ends.get(topic, newest) for topic in follower.log.topics)
        ]

    def _follow(self, number: int) -> None:
        user = f"u{number}"
        direct = number % 10 == 1
        topics = (f"user:{user}", "system", *(self.shared if number % 5 == 0 else ()))
        follower = Follower(
            FollowerLog(user, topics, behind_nginx=not direct),
            self.urls[number // 10 % len(self.urls)] if direct else self.front,
            token_for_topics(user, *self.shared),
            2 * self.heartbeat_s + 10,  # as allim.client
            random.Random(f"{self.seed} {user}"),
        )
        follower.task = asyncio.create_task(follower.follow(), name=f"follower {user}")
        self.followers.append(follower)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            now = asyncio.get_running_loop().time()
            for follower in self.followers:
                follower.watch(now)

    @asynccontextmanager
    async def _publisher(self, at_once: int) -> AsyncIterator[Publisher]:
        limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
        async with httpx.AsyncClient(trust_env=False, limits=limits) as http:
            yield Publisher([*self.urls, self.front], http, random.Random(self.seed), self.publishes, self._numbers)
