"""A stream whose replica is killed goes on at another one, without a hole and without a double."""

import pytest
from harness.cluster import Cluster, Member
from harness.replicas import Reader, token

from allim.client import Message

pytestmark = pytest.mark.anyio

SEEN = ["only the opening", "events", "heartbeats"]


async def look(stream: Reader, publisher: Member, who: str, seen: str) -> Message:
    """Read what the case wants to have been seen; the last message."""
    last = await stream.next("stream.open")
    if seen == "events":
        publisher.publish((f"user:{who}", "t", "before"), (f"user:{who}", "t", "before"))
        for _ in range(2):
            last = await stream.next("t")
    if seen == "heartbeats":
        for _ in range(2):
            last = await stream.next("heartbeat")
    return last


async def expect_the_missed(url: str, who: str, last: Message, killed: str) -> None:
    async with await Reader.open(url, token(who), last_event_id=last.id) as stream:
        opening = (await stream.next()).data
        assert (opening["resume"], opening["replayed"], opening["resets"]) == ("complete", 5, [])
        assert opening["replica"] != killed
        assert [(await stream.next("t")).data for _ in range(5)] == [0, 1, 2, 3, 4]

        heard = await stream.next()
        assert heard.type == "heartbeat"  # and nothing more


@pytest.mark.parametrize("seen", SEEN)
async def test_on_another_replica(system: Cluster, who: str, seen: str) -> None:
    holder, publisher, successor = system.members
    async with await Reader.open(holder.url, token(who)) as stream:
        last = await look(stream, publisher, who, seen)
        with holder.down():
            await stream.rest()
            published = publisher.publish(*((f"user:{who}", "t", number) for number in range(5)))
            assert published.status_code == 202

            await expect_the_missed(successor.url, who, last, holder.name)


@pytest.mark.parametrize("seen", SEEN)
async def test_through_nginx(system: Cluster, who: str, seen: str) -> None:
    async with await Reader.open(system.url, token(who)) as stream:
        last = await look(stream, system.members[0], who, seen)
        holder = system.member(stream.messages[0].data["replica"])
        publisher, _ = system.others(holder.name)
        with holder.down():
            assert publisher.publish(*((f"user:{who}", "t", number) for number in range(5))).status_code == 202

            await expect_the_missed(system.url, who, last, holder.name)
