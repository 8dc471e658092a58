"""`GET /events`: identity, topics, permission; then the stream, by handover where the server offers it."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from allim.errors import FieldError, Forbidden, Invalid, Unauthenticated, Unavailable
from allim.hub import Hub, check_topic
from allim.identity import Identity
from allim.transports.sse import frames
from allim.transports.sse.handover import EXTENSION, HandoverResponse, HandoverStream
from allim.transports.sse.portable import PortableResponse, PortableStream
from allim.transports.sse.stream import Speech

MAX_TOPICS = 100
_KNOWN = frozenset({"topics", "last_event_id"})


def routes(hub: Hub, speech: Speech, identify: Callable[[Request], Identity]) -> list[Route]:
    """The stream's route. `identify` says who asks, or raises Unauthenticated."""

    async def events(request: Request) -> Response:
        identity = identify(request)
        topics = _topics(request, identity)
        if request.method == "HEAD":
            return Response(headers=frames.HEADERS)
        handed_over = EXTENSION in request.scope.get("extensions", ())
        kind = HandoverStream if handed_over else PortableStream
        stream = kind(hub, speech, identity, topics)
        begin = await hub.join(stream, _last_event_id(request))
        if stream.ended:
            raise _refusal(stream)
        headers = {"x-request-id": request.state.request_id}
        if isinstance(stream, HandoverStream):
            return HandoverResponse(stream, begin, headers)
        return PortableResponse(stream, begin, headers)

    return [Route("/events", events, methods=["GET"])]


def _topics(request: Request, identity: Identity) -> tuple[str, ...]:
    """The user's own topics and the ones asked for, each once.

    Raises: Invalid for a malformed one, Forbidden for one that is not theirs or does not exist: both look alike.
    """
    for name in request.query_params:
        if name not in _KNOWN:
            raise Invalid.field(name[:100], "is not a known parameter; known are topics and last_event_id")
    asked = [topic for value in request.query_params.getlist("topics") for topic in value.split(",") if topic]
    if len(asked) > MAX_TOPICS:
        raise Invalid.field("topics", f"at most {MAX_TOPICS} topics on one stream")
    for topic in asked:
        check_topic(topic, "topics")
    refused = [topic for topic in asked if not identity.may_read(topic)]
    if refused:
        message = f"you may not read {', '.join(refused)}"
        raise Forbidden(f"topics: {message}", [FieldError("topics", message)])
    return tuple(dict.fromkeys((*identity.own_topics(), *asked)))


def _last_event_id(request: Request) -> str | None:
    """The header is the newer one: a browser sends it when it reconnects to the URL it was given."""
    return request.headers.get("last-event-id") or request.query_params.get("last_event_id")


def _refusal(stream: HandoverStream | PortableStream) -> Unauthenticated | Unavailable:
    """The stream was ended (a sign-out, a drain) between the request and its first byte."""
    assert stream.close_reason is not None
    stream.hub.leave(stream, stream.close_reason)
    if stream.close_reason.reconnect:
        return Unavailable("this replica is closing its streams")
    return Unauthenticated("the session has ended")
