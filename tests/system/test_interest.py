"""A replica pays nothing for events that none of its users wait for."""

import asyncio

import pytest
from harness.cluster import Cluster
from harness.replicas import Reader, token
from harness.waiting import until

pytestmark = pytest.mark.anyio

EVENTS = 10_000
STREAMS = 20
DISPATCHED = "allim_events_dispatched_total"


async def test_only_the_replica_that_holds_the_streams_hears_the_events(system: Cluster, who: str) -> None:
    holder, publisher, idle = system.members
    await until(
        lambda: publisher.metric("allim_streams_open") + idle.metric("allim_streams_open") == 0,
        what="earlier streams gone",
    )
    before = {member.name: member.metric(DISPATCHED) for member in system.members}
    users = [f"{who}-{number}" for number in range(STREAMS)]
    streams = [await Reader.open(holder.url, token(user)) for user in users]
    for stream in streams:
        await stream.next("stream.open")

    async def read(stream: Reader) -> list[object]:
        return [(await stream.next("t", 30)).data for _ in range(EVENTS // STREAMS)]

    readers = asyncio.gather(*map(read, streams))
    for first in range(0, EVENTS, 1000):
        batch = [(f"user:{users[number % STREAMS]}", "t", number) for number in range(first, first + 1000)]
        answer = await asyncio.to_thread(publisher.publish, *batch)
        assert answer.status_code == 202

    assert await readers == [list(range(first, EVENTS, STREAMS)) for first in range(STREAMS)]
    assert holder.metric(DISPATCHED) - before[holder.name] == EVENTS
    assert publisher.metric(DISPATCHED) == before[publisher.name]
    assert idle.metric(DISPATCHED) == before[idle.name]
    for stream in streams:
        stream.abort()
