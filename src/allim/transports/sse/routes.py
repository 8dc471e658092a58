"""`GET /events`: who, topics, permission; then the stream, by handover where the server offers it."""

from typing import Annotated, Protocol

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from allim.access.permission import Permission
from allim.errors import Forbidden, Invalid, Kicked, TooMany, Unauthenticated, Unavailable
from allim.http.routing import Answer, Caller, Parameter, Resource, operation, route
from allim.hub import MAX_TOPICS, TOPIC_FORM, CloseReason, Hub, Toll, check_topic
from allim.identity import Identity, Visitor
from allim.transports.sse import frames
from allim.transports.sse.handover import EXTENSION, HandoverResponse, HandoverStream, ProvenHandoverStream
from allim.transports.sse.portable import PortableResponse, PortableStream, ProvenPortableStream
from allim.transports.sse.stream import Speech

REPLACED_RETRY_S = 10  # for one that was replaced before it began
_TopicOrNothing = Annotated[str, Field(pattern=f"^({TOPIC_FORM})?$")]
_PARAMETERS = (
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
_LAST_EVENT_ID = frozenset({"last_event_id", "lastEventId", "lastEventID"})


class Door(Protocol):
    """Who comes in, and what they pay for it. Errors as in `allim.access.gate`."""

    async def visit(self, request: Request) -> Visitor: ...

    def toll(self, request: Request, visitor: Visitor) -> Toll: ...

    async def count(self, request: Request, identity: Identity) -> None: ...

    async def count_ended(self, request: Request) -> None: ...


class Frame(BaseModel):
    """One frame of the stream, as a reader parses it; the data is JSON."""

    event: str
    data: Annotated[str, Field(json_schema_extra={"contentMediaType": "application/json"})]
    id: str = Field(default_factory=str)
    retry: int = Field(default_factory=int)


def routes(hub: Hub, speech: Speech, gate: Door, permission: Permission) -> list[Resource]:
    """The stream's route."""

    @operation(
        caller=Caller.READER,
        parameters=_PARAMETERS,
        answers={
            200: Answer("The stream: frame after frame.", Frame, media_type="text/event-stream"),
            204: Answer("An operator ended the session: do not come back."),
        },
        fails=[Forbidden],
    )
    async def events(request: Request) -> Response:
        """Open a stream.

        The first event is `stream.open`, with the verdict on the resume; then come the events of the stream's topics,
        a `heartbeat` in silence, and `stream.close` before an end that can be told.
        """
        try:
            return await answer(request, await gate.visit(request))
        except Kicked:
            return Response(status_code=204)  # the one answer after which a browser does not come back by itself

    async def answer(request: Request, visitor: Visitor) -> Response:
        try:
            topics = await _topics(request, visitor, permission)
        except (Invalid, Forbidden):
            await gate.count(request, visitor.identity)  # no stream pays for it; and who has signed out hears that
            raise
        if request.method == "HEAD":  # how a page asks why its EventSource gave up
            await gate.count(request, visitor.identity)
            hub.check_room(visitor.address)
            response = Response(headers=frames.HEADERS)
            del response.headers["content-length"]  # it would be the stream's, which has none
            return response
        stream = _kind(request, visitor)(hub, speech, visitor, topics)
        try:
            begin = await hub.join(stream, _last_event_id(request), visitor.ticket, gate.toll(request, visitor))
        except Unauthenticated:
            await gate.count_ended(request)
            raise
        if stream.ended:
            raise _refusal(stream)
        if isinstance(stream, HandoverStream):
            state, chunked = request.scope["state"], request.scope["http_version"] == "1.1"
            return HandoverResponse(stream, begin, state["answer_headers"], state["standing"].lines, chunked=chunked)
        return PortableResponse(stream, begin)

    return [route("/events", tag="Events", get=events)]


def _kind(request: Request, visitor: Visitor) -> type[HandoverStream] | type[PortableStream]:
    if EXTENSION in request.scope.get("extensions", ()):
        return ProvenHandoverStream if visitor.proof else HandoverStream
    return ProvenPortableStream if visitor.proof else PortableStream


async def _topics(request: Request, visitor: Visitor, permission: Permission) -> tuple[str, ...]:
    """The user's own topics and the ones asked for, each once.

    Raises: Invalid for a malformed one, Forbidden for one that is not theirs or does not exist: both look alike.
    """
    asked = [topic for value in request.query_params.getlist("topics") for topic in value.split(",") if topic]
    if len(asked) > MAX_TOPICS:
        raise Invalid.field("topics", f"at most {MAX_TOPICS} topics on one stream")
    for topic in asked:
        check_topic(topic, "topics")
    if asked and visitor.proof:
        raise Invalid.field("topics", "stand in the ticket")
    topics = visitor.topics or asked
    await permission.require(visitor.identity, topics)
    return tuple(dict.fromkeys((*visitor.identity.own_topics(), *topics)))


def _last_event_id(request: Request) -> str | None:
    """Return where the client wants to resume, None for nowhere.

    The header is the newer one: a browser sends it when it reconnects to the URL it was given. In the URL the last
    one is the newest: a library appends its own to the URL that it was given.
    What stands behind a position is its stream's proof, which concerns the gate alone.
    """
    in_url = [value for name, value in request.query_params.multi_items() if name in _LAST_EVENT_ID and value]
    sent = request.headers.get("last-event-id") or (in_url[-1] if in_url else None)
    return sent and sent.partition("~")[0]


def _refusal(stream: HandoverStream | PortableStream) -> Unauthenticated | TooMany | Unavailable:
    """The stream was ended (a sign-out, a drain) between the request and its first byte."""
    assert stream.close_reason is not None
    stream.hub.leave(stream, stream.close_reason)
    if stream.close_reason.reconnect:
        return Unavailable("this replica is closing its streams")
    if stream.close_reason is CloseReason.REPLACED:
        return TooMany("There are too many streams of this user.", REPLACED_RETRY_S)
    if stream.close_reason is CloseReason.KICKED:
        return Kicked("the session was ended")
    reason = "signed_out" if stream.close_reason is CloseReason.SIGNED_OUT else "expired"
    return Unauthenticated("the session has ended", reason=reason)
