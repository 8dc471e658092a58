"""`GET /events`: the stream, by handover where the server offers it."""

from functools import partial
from typing import Annotated

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from allim.errors import Forbidden, Kicked
from allim.exchange import exchange_of
from allim.http.routing import Answer, Caller, Resource, operation, route
from allim.hub import Hub
from allim.transports.opening import PARAMETERS, Opener
from allim.transports.sse import frames
from allim.transports.sse.handover import EXTENSION, HandoverResponse, HandoverStream
from allim.transports.sse.portable import PortableResponse, PortableStream
from allim.transports.sse.stream import StreamDefaults


class Frame(BaseModel):
    """One frame of the stream, as a reader parses it; the data is JSON."""

    event: str
    data: Annotated[str, Field(json_schema_extra={"contentMediaType": "application/json"})]
    id: str = Field(default_factory=str)
    retry: int = Field(default_factory=int)


def routes(hub: Hub, defaults: StreamDefaults, opener: Opener) -> list[Resource]:
    """Return the stream's route."""

    @operation(
        caller=Caller.READER,
        parameters=PARAMETERS,
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
            return await answer(request)
        except Kicked:
            return Response(status_code=204)  # the one answer after which a browser does not come back by itself

    async def answer(request: Request) -> Response:
        if request.method == "HEAD":  # how a page asks why its EventSource gave up
            await opener.check(request)
            response = Response(headers=frames.HEADERS)
            del response.headers["content-length"]  # it would be the stream's, which has none
            return response
        if EXTENSION not in request.scope.get("extensions", ()):
            return PortableResponse(*await opener.open(request, partial(PortableStream, hub, defaults)))
        stream, start = await opener.open(request, partial(HandoverStream, hub, defaults))
        exchange, chunked = exchange_of(request.scope), request.scope["http_version"] == "1.1"
        return HandoverResponse(stream, start, exchange.extra_headers, exchange.fixed_headers.lines, chunked=chunked)

    return [route("/events", tag="Events", get=events)]
