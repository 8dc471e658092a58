"""Open a stream of any transport: user, topics, where to resume, capacity, session, rate and ticket, in this order.

Nothing is written to the connection here. Refusals are errors.
"""

from collections.abc import Callable
from typing import Annotated, TypeVar

from pydantic import Field
from starlette.requests import HTTPConnection

from allim.access.gate import Gate
from allim.access.permission import Permission
from allim.errors import AllimError, Forbidden, Invalid, Kicked, SignedOut, TooMany, Unauthenticated, Unavailable
from allim.http.routing import Parameter
from allim.hub import MAX_TOPICS, TOPIC_FORM, CloseReason, Hub, Start, Stream, check_topic
from allim.identity import Visitor

REPLACED_RETRY_S = 10  # for a stream that was replaced before it began
_TopicOrNothing = Annotated[str, Field(pattern=f"^({TOPIC_FORM})?$")]
PARAMETERS = (
    Parameter(
        "query",
        "topics",
        list[_TopicOrNothing],
        f"At most {MAX_TOPICS} further topics; the user's own and `system` are always there. A ticket holds its own.",
    ),
    Parameter("header", "Last-Event-ID", str, "Where to resume."),
    Parameter("query", "last_event_id", str, "Where to resume, if the header is absent."),
    *(
        Parameter("query", name, str, "The same, as libraries write it. Of all that are given the last one counts.")
        for name in ("lastEventId", "lastEventID")
    ),
)
"""The parameters of a request for a stream, for its declaration."""

_LAST_EVENT_ID = frozenset({"last_event_id", "lastEventId", "lastEventID"})

AnyStream = TypeVar("AnyStream", bound=Stream)


class Opener:
    """Opens streams, whatever their transport."""

    def __init__(self, hub: Hub, gate: Gate, permission: Permission) -> None:
        self._hub = hub
        self._gate = gate
        self._permission = permission

    async def open(
        self, connection: HTTPConnection, make: Callable[[Visitor, tuple[str, ...]], AnyStream]
    ) -> tuple[AnyStream, Start]:
        """Make a stream and join it to the hub. The transport then answers, and calls `hub.follow` or `hub.leave`.

        Raises: Unauthenticated, SignedOut or Kicked; Invalid; Forbidden; TooMany; Unavailable.
        """
        visitor, topics = await self._visitor(connection)
        stream = make(visitor, topics)
        charge = self._gate.charge(connection, visitor)
        try:
            start = await self._hub.join(stream, last_event_id(connection), visitor.ticket, charge)
        except Unauthenticated:
            await self._gate.count_ended(connection)
            raise
        if stream.close_reason is not None:  # between the request and its first byte
            self._hub.leave(stream, stream.close_reason)
            raise _refusal(stream.close_reason)
        return stream, start

    async def check(self, connection: HTTPConnection) -> None:
        """Check whether a stream would open now, and count the call.

        Raises: as `open`.
        """
        visitor, _ = await self._visitor(connection)
        await self._gate.count(connection, visitor.identity)
        self._hub.check_capacity(visitor.address)

    async def _visitor(self, connection: HTTPConnection) -> tuple[Visitor, tuple[str, ...]]:
        visitor = await self._gate.visit(connection)
        try:
            return visitor, await self._topics(connection, visitor)
        except (Invalid, Forbidden):
            # No stream is charged for the call; and a caller whose session has ended is told that first.
            await self._gate.count(connection, visitor.identity)
            raise

    async def _topics(self, connection: HTTPConnection, visitor: Visitor) -> tuple[str, ...]:
        """Return the user's own topics and the ones asked for, each once.

        Raises: Invalid for a malformed one; Forbidden for one that is not theirs or does not exist: both look alike.
        """
        asked = [topic for value in connection.query_params.getlist("topics") for topic in value.split(",") if topic]
        if len(asked) > MAX_TOPICS:
            raise Invalid.field("topics", f"at most {MAX_TOPICS} topics on one stream")
        for topic in asked:
            check_topic(topic, "topics")
        if asked and visitor.proof:
            raise Invalid.field("topics", "stand in the ticket")
        topics = visitor.topics or asked
        await self._permission.require(visitor.identity, topics)
        return tuple(dict.fromkeys((*visitor.identity.own_topics(), *topics)))


def last_event_id(connection: HTTPConnection) -> str | None:
    """Return where the client wants to resume, None if it does not say.

    The header is the newer one: a browser sends it when it reconnects to the URL it was given. In the URL the last
    one is the newest: a library appends its own to the URL that it was given. A proof behind the position is left
    out: only the gate reads it.
    """
    in_url = [value for name, value in connection.query_params.multi_items() if name in _LAST_EVENT_ID and value]
    sent = connection.headers.get("last-event-id") or (in_url[-1] if in_url else None)
    return sent and sent.partition("~")[0]


def _refusal(reason: CloseReason) -> AllimError:
    """Return the error for a stream that was ended before it began."""
    if reason.reconnect:
        return Unavailable("this replica is closing its streams")
    if reason is CloseReason.REPLACED:
        return TooMany("There are too many streams of this user.", REPLACED_RETRY_S)
    if reason is CloseReason.KICKED:
        return Kicked("The session was ended; sign in again.")
    if reason is CloseReason.SIGNED_OUT:
        return SignedOut("The session has ended; sign in again.")
    return Unauthenticated("The session has expired; sign in again.", reason="expired")
