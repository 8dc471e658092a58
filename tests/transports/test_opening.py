"""What the opening of a stream does first is the same for every transport."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import pytest
from harness.streams import ListStream, hub_settings
from starlette.requests import HTTPConnection

from allim.access.permission import Permission
from allim.access.rates import Policy
from allim.brokers.memory import MemoryBroker, MemoryLedger
from allim.errors import AllimError, Forbidden, Invalid, Kicked, SignedOut, TooMany, Unauthenticated, Unavailable
from allim.exchange import exchange_of
from allim.hub import CloseReason, Hub
from allim.identity import Visitor
from allim.telemetry import Metrics
from allim.transports.opening import Opener, last_event_id
from tests.access.gates import bearer, gate_of

pytestmark = pytest.mark.anyio


def asked(kind: str = "http", query: Mapping[str, Any] | None = None, **headers: str) -> HTTPConnection:
    """A request for a stream by user 42, over HTTP or WebSocket."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in (bearer("42") | headers).items()]
    query_string = urlencode(query or {}, doseq=True).encode()
    return HTTPConnection({"type": kind, "headers": raw, "query_string": query_string, "client": ("192.0.2.1", 1)})


class Opening:
    """A hub over memory, and who opens its streams."""

    def __init__(self) -> None:
        ledger = MemoryLedger()
        self.hub = Hub(MemoryBroker(), ledger, Metrics(), hub_settings(streams_per_replica=1))
        gate = gate_of(ledger, user_calls=Policy("user", 3, 60), ended_calls=Policy("ended", 1000, 60))
        self.opener = Opener(self.hub, gate, Permission({}))


@pytest.fixture
async def opening() -> AsyncIterator[Opening]:
    opening = Opening()
    async with opening.hub.running():
        yield opening


def make(visitor: Visitor, topics: tuple[str, ...]) -> ListStream:
    return ListStream(*topics, who=visitor.identity)


def ending(reason: CloseReason) -> Callable[[Visitor, tuple[str, ...]], ListStream]:
    """Makes a stream that has ended before its first byte."""

    def make_ended(visitor: Visitor, topics: tuple[str, ...]) -> ListStream:
        stream = make(visitor, topics)
        stream.close(reason)
        return stream

    return make_ended


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_a_stream_of_any_transport_joins_the_hub_and_is_a_call_of_its_user(opening: Opening, kind: str) -> None:
    connection = asked(kind)

    stream, start = await opening.opener.open(connection, make)
    await opening.hub.follow(stream, start)

    assert stream.topics == ("user:42", "system")
    assert stream.live
    assert exchange_of(connection.scope).extra_headers["ratelimit"].startswith('"user";r=2;')


async def test_asking_whether_one_would_open_is_a_call_and_opens_none(opening: Opening) -> None:
    for _ in range(2):
        await opening.opener.check(asked())
    await opening.opener.open(asked(), make)

    with pytest.raises(TooMany):
        await opening.opener.check(asked())


async def test_asking_is_refused_like_opening(opening: Opening) -> None:
    await opening.opener.open(asked(), make)

    with pytest.raises(Unavailable, match="room"):
        await opening.opener.open(asked(), make)
    with pytest.raises(Unavailable, match="room"):
        await opening.opener.check(asked())


@pytest.mark.parametrize(
    ("topics", "error"), [("board", Forbidden), ("BAD!", Invalid), (",".join(["system"] * 101), Invalid)]
)
async def test_a_refused_topic_is_a_call_and_no_stream_is_made(
    opening: Opening, topics: str, error: type[AllimError]
) -> None:
    for _ in range(3):
        with pytest.raises(error):
            await opening.opener.open(asked(query={"topics": topics}), make)

    with pytest.raises(TooMany):
        await opening.opener.open(asked(query={"topics": topics}), make)


@pytest.mark.parametrize(
    ("reason", "error", "code"),
    [
        (CloseReason.SIGNED_OUT, SignedOut, "signed_out"),
        (CloseReason.KICKED, Kicked, "kicked"),
        (CloseReason.TOKEN_EXPIRED, Unauthenticated, "unauthenticated"),
        (CloseReason.REPLACED, TooMany, "too_many"),
        (CloseReason.DRAIN, Unavailable, "unavailable"),
        (CloseReason.ROTATE, Unavailable, "unavailable"),
    ],
)
async def test_a_stream_that_ended_before_its_first_byte_is_refused_with_the_reason_and_forgotten(
    opening: Opening, reason: CloseReason, error: type[AllimError], code: str
) -> None:
    with pytest.raises(error) as caught:
        await opening.opener.open(asked(), ending(reason))

    assert caught.value.code == code
    await opening.opener.open(asked(), make)


@pytest.mark.parametrize(
    ("query", "header", "expected"),
    [
        ({}, None, None),
        ({"last_event_id": "1-0"}, None, "1-0"),
        ({"last_event_id": ["1-0", "2-0"], "lastEventId": "3-0"}, None, "3-0"),
        ({"lastEventID": ["3-0", ""]}, None, "3-0"),
        ({"last_event_id": "1-0"}, "2-0", "2-0"),
        ({}, "2-0~proof", "2-0"),
    ],
)
def test_the_newest_last_event_id_counts(query: Mapping[str, Any], header: str | None, expected: str | None) -> None:
    headers = {} if header is None else {"last_event_id": header}

    assert last_event_id(asked(query=query, **headers)) == expected
