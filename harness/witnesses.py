"""What a fault test looks at: followers that remember all they read, publishers that try until it is certain."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

from allim.client import Message
from allim.hub import Position
from harness.replicas import PUBLISH_KEY, Reader, token
from harness.waiting import until

TRY_AGAIN_S = 0.05
PUBLISH_PATIENCE_S = 15.0  # more than the replica's own deadline for a publish


@dataclass
class Witness:
    """One stream, read in the background from its opening to its end."""

    reader: Reader
    reading: "asyncio.Task[list[Message]]"

    @property
    def messages(self) -> list[Message]:
        return self.reader.messages

    @property
    def opening(self) -> dict[str, Any]:
        return dict(self.messages[0].data)

    @property
    def resets(self) -> dict[str, str]:
        """The verdict's reasons by topic."""
        return {reset["topic"]: reset["reason"] for reset in self.opening["resets"]}

    @property
    def events(self) -> list[Message]:
        return [message for message in self.messages if message.type == "t"]

    @property
    def data(self) -> list[Any]:
        return [message.data for message in self.events]

    @property
    def gaps(self) -> list[tuple[frozenset[str], str]]:
        told = [message.data for message in self.messages if message.type == "stream.gap"]
        return [(frozenset(gap["topics"]), gap["reason"]) for gap in told]

    @property
    def heartbeats(self) -> int:
        return sum(message.type == "heartbeat" for message in self.messages)

    @property
    def last_event_id(self) -> str:
        return self.messages[-1].id

    @property
    def ended(self) -> bool:
        return self.reading.done()

    def positions(self) -> list[Position]:
        """Where the stream stood after each message, which must never fall, and rise with each event."""
        positions = [Position.parse(message.id) for message in self.messages]
        for before, after, message in zip(positions, positions[1:], self.messages[1:], strict=False):
            assert after > before if message.type == "t" else after >= before, f"{message} after {before}"
        return positions

    async def until_data(self, wanted: Any, timeout_s: float = 60.0) -> None:
        await until(lambda: wanted in self.data, timeout_s, f"{wanted} in {self.data[-5:]}, gaps {self.gaps}")

    async def until_told(self, topics: Sequence[str], reason: str = "origin", timeout_s: float = 60.0) -> None:
        await until(lambda: (frozenset(topics), reason) in self.gaps, timeout_s, f"gap {topics} in {self.gaps}")


@asynccontextmanager
async def witnessing(url: str, who: str, last_event_id: str | None = None) -> AsyncIterator[Witness]:
    """A follower whose opening has been read."""
    async with await Reader.open(url, token(who), last_event_id=last_event_id) as reader:
        assert reader.status == 200, (await reader.reader.read(2000)).decode()
        reading = asyncio.create_task(reader.rest(timeout_s=300))
        try:
            follower = Witness(reader, reading)
            await until(lambda: follower.messages, what="stream.open")
            yield follower
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def history(url: str, who: str) -> list[Message]:
    """All that history keeps for a user."""
    async with witnessing(url, who, last_event_id="0-0") as follower:
        await until(lambda: len(follower.events) >= follower.opening["replayed"], what="history")
        return follower.events[: follower.opening["replayed"]]


@dataclass
class Publisher:
    """Publishes numbered batches under keys, one after another, each until it is answered.

    Shape: `accepted` holds the positions by batch; event `i` of batch `n` has the data `[n, i]`; `slowest_s` is the
    longest time from the first try of a batch to its acceptance.
    """

    urls: Sequence[str]
    topic: str
    name: str = "publisher"
    size: int = 5
    pause_s: float = 0.01
    accepted: dict[int, list[str]] = field(default_factory=dict)
    durabilities: set[str] = field(default_factory=set)
    slowest_s: float = 0.0
    stopping: bool = False

    @property
    def data(self) -> list[list[int]]:
        """What was accepted, in order."""
        return [[number, index] for number in sorted(self.accepted) for index in range(self.size)]

    @property
    def positions(self) -> set[str]:
        return {position for batch in self.accepted.values() for position in batch}

    async def run(self) -> Self:
        """Publish until `stopping`; the batch in hand is finished."""
        number = 0
        async with httpx.AsyncClient(timeout=PUBLISH_PATIENCE_S) as client:
            while not self.stopping:
                await self._publish(client, number)
                number += 1
                await asyncio.sleep(self.pause_s)
        return self

    async def _publish(self, client: httpx.AsyncClient, number: int) -> None:
        body = [{"topic": self.topic, "type": "t", "data": [number, index]} for index in range(self.size)]
        headers = {"authorization": f"Bearer {PUBLISH_KEY}", "idempotency-key": f"{self.name}-{number}"}
        began_at = time.monotonic()
        tries = 0
        while True:
            url = self.urls[(number + tries) % len(self.urls)]
            tries += 1
            answer = await client.post(f"{url}/api/publish", json=body, headers=headers)
            if answer.status_code == 202:
                break
            assert (answer.status_code, "retry-after" in answer.headers) == (503, True), answer.text
            await asyncio.sleep(TRY_AGAIN_S)
        self.accepted[number] = answer.json()["ids"]
        self.durabilities.add(answer.json()["durability"])
        self.slowest_s = max(self.slowest_s, time.monotonic() - began_at)


@asynccontextmanager
async def publishing(urls: Sequence[str], topic: str, **options: Any) -> AsyncIterator[Publisher]:
    """A publisher at work; at the end it finishes the batch in hand."""
    publisher = Publisher(urls, topic, **options)
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher
        publisher.stopping = True
        await asyncio.wait_for(task, 60)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def assert_batches_are_whole(data: Sequence[Any], size: int) -> None:
    """Each batch is there from its first to its last event, or not at all."""
    batches: dict[int, list[int]] = defaultdict(list)
    for number, index in data:
        batches[number].append(index)
    assert {tuple(indices) for indices in batches.values()} <= {tuple(range(size))}
