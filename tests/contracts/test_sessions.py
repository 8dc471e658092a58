"""How long a stream may live, and how many a user may have: over memory, and over Redis with a replica more."""

import asyncio
import time
from collections.abc import Callable

import pytest
from harness.streams import ListStream, identity
from harness.waiting import until

from allim.errors import Kicked, SignedOut, TooMany, Unauthenticated, Unavailable
from allim.hub import CloseReason, Hub
from allim.identity import Ticket

pytestmark = pytest.mark.anyio

MakeHub = Callable[..., "asyncio.Future[Hub]"]


async def opened(hub: Hub, stream: ListStream, ticket: Ticket | None = None) -> ListStream:
    await hub.follow(stream, await hub.join(stream, None, ticket))
    return stream


@pytest.fixture
async def hubs(make_hub: MakeHub, store: object) -> tuple[Hub, Hub]:
    """Where the order is given, and where the stream is; over memory they are the same."""
    here = await make_hub(streams_per_user=2)
    return here, here if store is None else await make_hub(streams_per_user=2)


async def test_a_sign_out_ends_the_sessions_streams_and_refuses_new_ones(hubs: tuple[Hub, Hub]) -> None:
    here, there = hubs
    mine, other = await opened(there, ListStream()), await opened(there, ListStream(who=identity(session="s2")))

    await here.sessions.sign_out(identity())

    await until(lambda: mine.ended)
    assert (mine.close_reason, other.close_reason) == (CloseReason.SIGNED_OUT, None)
    with pytest.raises(SignedOut):
        await there.join(ListStream(), None)
    there.leave(mine, CloseReason.SIGNED_OUT)
    await opened(there, ListStream(who=identity(session="s3")))


async def test_a_kick_ends_every_session_until_now_and_no_later_one(hubs: tuple[Hub, Hub]) -> None:
    here, there = hubs
    sessions = [identity(session=name, issued_at=time.time()) for name in ("s1", "s2")]
    old = [await opened(there, ListStream(who=who)) for who in sessions]
    other = await opened(there, ListStream(who=identity("43")))

    await here.sessions.kick("42")

    await until(lambda: all(stream.ended for stream in old))
    assert [stream.close_reason for stream in old] == [CloseReason.KICKED] * 2
    assert not other.ended
    with pytest.raises(Kicked):
        await there.join(ListStream(), None)
    later = await opened(there, ListStream(who=identity(issued_at=time.time() + 1)))
    assert not later.ended


async def test_a_kick_ends_streams_whose_token_seems_to_be_from_after_it(hubs: tuple[Hub, Hub]) -> None:
    here, there = hubs
    late = time.time() + 90
    old = await opened(there, ListStream(who=identity(issued_at=late)._replace(after_kick=0.0)))

    await here.sessions.kick("42")

    await until(lambda: old.ended)
    assert old.close_reason is CloseReason.KICKED
    moment = await here.sessions.last_kick("42")
    again = ListStream(who=identity(issued_at=time.time() - 90)._replace(after_kick=moment))
    assert old.opening is not None
    await there.follow(again, await there.join(again, str(old.opening.position)))
    assert (again.live, again.ended) == (True, False)


async def test_a_kick_read_from_history_does_not_end_a_session_from_after_it(hubs: tuple[Hub, Hub]) -> None:
    here, there = hubs
    first = await opened(there, ListStream(who=identity(issued_at=time.time())))
    assert first.opening is not None
    await here.sessions.kick("42")
    await until(lambda: first.ended)

    later = ListStream(who=identity(issued_at=time.time() + 1))
    await there.follow(later, await there.join(later, str(first.opening.position)))

    assert (later.live, later.ended) == (True, False)


async def test_a_renewed_session_goes_on_and_is_warned_again(hubs: tuple[Hub, Hub]) -> None:
    here, there = hubs
    stream = await opened(there, ListStream(who=identity(expires_at=time.time() + 1.5)))
    await until(lambda: stream.warnings)
    assert 0 < stream.warnings[0] <= 1.5

    await here.sessions.extend(identity(), time.time() + 3.5)
    await until(lambda: len(stream.warnings) == 2)

    assert not stream.ended
    assert 1.5 < stream.warnings[1] <= 3.5
    await until(lambda: stream.ended)
    assert stream.close_reason is CloseReason.TOKEN_EXPIRED
    assert time.time() <= stream.expires_at + 0.5


async def test_an_expiry_far_away_is_not_told(hubs: tuple[Hub, Hub]) -> None:
    here, _ = hubs
    soon = await opened(here, ListStream(who=identity(expires_at=time.time() + 30)))
    late = await opened(here, ListStream(who=identity(expires_at=time.time() + 90)))

    await until(lambda: soon.warnings)

    assert late.warnings == []


async def test_one_stream_too_many_ends_the_oldest_wherever_it_is(hubs: tuple[Hub, Hub]) -> None:
    here, there = hubs
    first, second = await opened(there, ListStream()), await opened(there, ListStream())
    third = await opened(here, ListStream())

    await until(lambda: first.ended)

    assert first.close_reason is CloseReason.REPLACED
    assert not first.close_reason.reconnect
    assert (second.ended, third.ended) == (False, False)
    assert b"stream.close" not in third.written


async def test_a_ticket_opens_one_stream(hubs: tuple[Hub, Hub]) -> None:
    here, there = hubs
    await opened(here, ListStream(), Ticket("one", 60))

    with pytest.raises(Unauthenticated, match="used before"):
        await there.join(ListStream(), None, Ticket("one", 60))


def from_address(address: str) -> ListStream:
    stream = ListStream()
    stream.address = address
    return stream


async def test_an_address_has_so_many_streams_and_one_that_left_makes_room(make_hub: MakeHub) -> None:
    hub = await make_hub(streams_per_address=2)

    first = await opened(hub, from_address("192.0.2.1"))
    await opened(hub, from_address("192.0.2.1"))
    with pytest.raises(TooMany):
        await hub.join(from_address("192.0.2.1"), None)
    await opened(hub, from_address("192.0.2.2"))
    for _ in range(3):
        await opened(hub, from_address(""))

    hub.leave(first, CloseReason.CLIENT_LEFT)

    await opened(hub, from_address("192.0.2.1"))


async def test_addresses_of_one_wider_network_have_more_streams_and_not_without_end(make_hub: MakeHub) -> None:
    hub = await make_hub(streams_per_address=1)

    streams = [await opened(hub, from_address(f"2001:db8:0:{number}::/64")) for number in range(4)]
    with pytest.raises(TooMany):
        await hub.join(from_address("2001:db8:0:4::/64"), None)
    await opened(hub, from_address("2001:db8:0:100::/64"))
    hub.leave(streams[0], CloseReason.CLIENT_LEFT)
    await opened(hub, from_address("2001:db8:0:4::/64"))


async def test_a_full_replica_sends_streams_elsewhere(make_hub: MakeHub) -> None:
    hub = await make_hub(streams_per_replica=1)
    stream = await opened(hub, ListStream())

    with pytest.raises(Unavailable, match="room"):
        await hub.join(ListStream(), None)

    assert not stream.ended


async def test_a_replica_without_memory_to_spare_sends_streams_elsewhere(make_hub: MakeHub) -> None:
    hub = await make_hub(memory_max_bytes=1)

    async def refused() -> bool:
        stream = ListStream()
        try:
            await hub.join(stream, None)
        except Unavailable:
            return True
        hub.leave(stream, CloseReason.CLIENT_LEFT)
        return False

    for _ in range(50):
        if await refused():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it took every stream")
