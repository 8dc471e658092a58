"""`POST /api/tickets`."""

from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from allim.access.gate import Gate
from allim.access.permission import Permission
from allim.access.tickets import Tickets
from allim.http.bodies import Body, form, parse, read_json_or_nothing
from allim.http.routing import Answer, Caller, Resource, operation, route
from allim.hub import MAX_TOPICS, TOPIC_FORM, check_topic

_MAX_BODY_BYTES = 32 * 1024


class NewTicket(Body):
    """`POST /api/tickets`: the further topics of the stream."""

    topics: list[Annotated[str, form(TOPIC_FORM)]] = Field([], max_length=MAX_TOPICS)


class TicketView(Body):
    """A ticket, valid for one stream within `expiresInS` seconds."""

    ticket: str
    expires_in_s: int


def routes(gate: Gate, tickets: Tickets, permission: Permission) -> list[Resource]:
    """Return the route for tickets."""

    @operation(caller=Caller.USER, body=NewTicket | None, answers={201: Answer("Valid for one stream.", TicketView)})
    async def create_ticket(request: Request) -> Response:
        """Create a ticket for one stream.

        For clients that can send neither a cookie nor a header: `GET /events?ticket=`.
        """
        identity = await gate.identify(request)
        new = parse(NewTicket, await read_json_or_nothing(request, _MAX_BODY_BYTES))
        topics = [check_topic(topic, f"topics[{index}]") for index, topic in enumerate(new.topics)]
        await permission.require(identity, topics)
        ticket = tickets.issue(identity, tuple(dict.fromkeys(topics)))
        view = TicketView.model_construct(ticket=ticket, expires_in_s=tickets.lifetime_s)
        return JSONResponse(view.model_dump(), 201, {"Cache-Control": "no-store"})

    return [route("/api/tickets", tag="Events", post=create_ticket)]
