"""Followers that come back as a browser's EventSource does, publishers that keep on; what their logs must show."""

import asyncio
import itertools
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx

from allim.client import Message
from allim.hub import Position
from harness.replicas import PUBLISH_KEY, Reader, token
from harness.waiting import until

TYPE = "t"  # of the events the publishers publish
AGAIN_S = 0.2  # between two attempts of one publish
AT_ONCE = 50  # followers that open together
BROWSER_WAITS_S = 300.0  # for the head of an answer; longer than any test


class Frame(NamedTuple):
    """Units: `at` in seconds of the monotonic clock."""

    at: float
    message: Message


@dataclass
class Connection:
    """One attempt to open the stream, and all that came over it.

    Shape: `status` is 0 while there is no answer, and for an attempt that got none.
    """

    asked_at: float
    status: int = 0
    frames: list[Frame] = field(default_factory=list)
    ended_at: float | None = None

    @property
    def opening(self) -> Any:
        """What `stream.open` said; None where nothing was opened, as nginx' answer without a replica."""
        return self.frames[0].message.data if self.frames else None

    @property
    def opened_at(self) -> float | None:
        return self.frames[0].at if self.frames else None

    @property
    def close_reason(self) -> str | None:
        last = self.frames[-1].message if self.frames else None
        return last.data["reason"] if last is not None and last.type == "stream.close" else None


@dataclass
class Follower:
    """Follows one user's stream. It waits `retry` and resumes with its last event ID, whatever happens to it."""

    url: str
    subject: str
    lifetime_s: int = 3600
    connections: list[Connection] = field(default_factory=list)
    last_event_id: str | None = None
    retry_s: float = 2.0

    @property
    def topics(self) -> tuple[str, str]:
        return f"user:{self.subject}", "system"

    @property
    def open(self) -> bool:
        return bool(self.connections) and self.connections[-1].ended_at is None and self.now.opening is not None

    @property
    def now(self) -> Connection:
        return self.connections[-1]

    @property
    def opened(self) -> list[Connection]:
        return [connection for connection in self.connections if connection.opening is not None]

    @property
    def events(self) -> list[Message]:
        frames = itertools.chain.from_iterable(connection.frames for connection in self.connections)
        return [frame.message for frame in frames if frame.message.type == TYPE]

    async def follow(self) -> None:
        """Until cancelled."""
        while True:
            connection = Connection(time.monotonic())
            self.connections.append(connection)
            with suppress(OSError, EOFError):  # cut off, refused, or in the middle of a frame
                await self._once(connection)
            connection.ended_at = time.monotonic()
            await asyncio.sleep(self.retry_s)

    async def _once(self, connection: Connection) -> None:
        who = token(self.subject, self.lifetime_s)
        resume = self.last_event_id
        async with await Reader.open(self.url, who, last_event_id=resume, head_within_s=BROWSER_WAITS_S) as stream:
            connection.status = stream.status
            try:
                while True:
                    message = await stream.next(timeout_s=BROWSER_WAITS_S)
                    connection.frames.append(Frame(time.monotonic(), message))
                    if message.id:
                        self.last_event_id = message.id
            finally:
                if stream.parser.retry_ms is not None:
                    self.retry_s = stream.parser.retry_ms / 1000


@asynccontextmanager
async def following(url: str | Callable[[int], str], count: int, name: str) -> AsyncIterator[list[Follower]]:
    """So many followers, each of a user of its own, all open; `url` may depend on the follower's number."""
    where = (lambda _: url) if isinstance(url, str) else url
    followers = [Follower(where(number), f"{name}-{number}") for number in range(count)]
    tasks = []
    try:
        for start in range(0, count, AT_ONCE):
            batch = followers[start : start + AT_ONCE]
            tasks += [asyncio.create_task(follower.follow()) for follower in batch]
            await until_open(batch)
        yield followers
        for task in tasks:
            assert not task.done() or task.result() is None  # a follower that failed is a failed test
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_open(followers: Collection[Follower], timeout_s: float = 60.0) -> None:
    await until(lambda: all(follower.open for follower in followers), timeout_s, "every follower open")


@dataclass
class Load:
    """What was accepted while publishers ran."""

    positions: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    refused: list[int] = field(default_factory=list)  # statuses other than 202; 0 for no answer

    @property
    def accepted(self) -> int:
        return sum(map(len, self.positions.values()))

    def after(self, topics: Collection[str], position: str) -> list[str]:
        """What was accepted on topics after a position, in order."""
        accepted = [other for topic in topics for other in self.positions[topic] if newer(other, position)]
        return sorted(accepted, key=Position.parse)


@asynccontextmanager
async def publishing(
    urls: str | Sequence[str], topics: Sequence[str], per_s: float, publishers: int = 4
) -> AsyncIterator[Load]:
    """Publish to random topics at that rate; each event is tried again, under its key, until it is accepted."""
    load = Load()
    stop = asyncio.Event()
    where = [urls] if isinstance(urls, str) else urls
    tasks = [asyncio.create_task(_publish(load, where, topics, publishers / per_s, stop)) for _ in range(publishers)]
    try:
        yield load
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def _publish(
    load: Load, urls: Sequence[str], topics: Sequence[str], every_s: float, stop: asyncio.Event
) -> None:
    loop = asyncio.get_running_loop()
    authorization = {"authorization": f"Bearer {PUBLISH_KEY}"}
    async with httpx.AsyncClient(headers=authorization, timeout=60, trust_env=False) as http:
        next_at = loop.time()
        while not stop.is_set():
            topic, key = random.choice(topics), f"load-{random.getrandbits(64):x}"
            load.positions[topic].append(await _until_accepted(http, load, urls, topic, key))
            next_at = max(next_at + every_s, loop.time() - 1)  # what an outage took is not made up for at once
            await asyncio.sleep(max(0, next_at - loop.time()))


async def _until_accepted(http: httpx.AsyncClient, load: Load, urls: Sequence[str], topic: str, key: str) -> str:
    body = {"topic": topic, "type": TYPE, "data": key}
    while True:
        status = 0
        with suppress(httpx.TransportError):
            answer = await http.post(
                f"{random.choice(urls)}/api/publish", json=body, headers={"idempotency-key": key}
            )
            if answer.status_code == 202:
                return str(answer.json()["id"])
            status = answer.status_code
        load.refused.append(status)
        await asyncio.sleep(AGAIN_S)


async def until_complete(followers: Collection[Follower], load: Load, timeout_s: float = 30.0) -> None:
    """Wait for the last event of each follower; then every one has exactly what was accepted, in order, once."""

    def expected(follower: Follower) -> list[str]:
        return load.after(follower.topics, follower.opened[0].frames[0].message.id)

    def arrived(follower: Follower) -> bool:
        wanted = expected(follower)
        return not wanted or [event.id for event in follower.events[-1:]] == wanted[-1:]

    with suppress(AssertionError):  # who misses what is said below
        await until(lambda: all(map(arrived, followers)), timeout_s)
    for follower in followers:
        got, wanted = [event.id for event in follower.events], expected(follower)
        missed, extra = sorted(set(wanted) - set(got)), sorted(set(got) - set(wanted))
        assert got == wanted, f"{follower.subject}: {missed=} {extra=} {follower.connections}"
        assert {connection.opening["resume"] for connection in follower.opened[1:]} <= {"complete"}
        assert not any(frame.message.type == "stream.gap" for c in follower.connections for frame in c.frames)


def topics_of(followers: Collection[Follower]) -> list[str]:
    """Each follower's own topic, and the one they share, as often as each of the others."""
    return [*(follower.topics[0] for follower in followers), "system"]


def newer(position: str, than: str) -> bool:
    return Position.parse(position) > Position.parse(than)


def statuses(followers: Collection[Follower]) -> set[int]:
    """All answers the followers ever got; 0 for none."""
    connections = itertools.chain.from_iterable(follower.connections for follower in followers)
    return {c.status for c in connections if c.status or c.ended_at is not None}


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
