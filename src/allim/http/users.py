"""`DELETE /api/users/{id}/streams`: an operator ends all sessions and streams of a user."""

from collections.abc import Awaitable, Callable
from typing import Annotated

import structlog
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from allim.access.gate import Gate
from allim.errors import NotFound
from allim.http.routing import Answer, Caller, Parameter, Resource, operation, route
from allim.identity import is_name

log = structlog.get_logger(__name__)

Kick = Callable[[str], Awaitable[None]]
"""Ends all present sessions of a user, and all their streams on every replica."""


def routes(gate: Gate, kick: Kick) -> list[Resource]:
    """Return the route for operators."""

    @operation(
        caller=Caller.OPERATOR,
        parameters=[Parameter("path", "id", Annotated[str, Field(min_length=1, max_length=255)], "The user.")],
        answers={204: Answer("Ended.")},
        fails=[NotFound],
    )
    async def kick_user(request: Request) -> Response:
        """End all sessions and streams of a user.

        On every replica. The user may sign in again.
        """
        operator = await gate.require_operator(request)
        subject = request.path_params["id"]
        if not is_name(subject):
            raise NotFound("No user can have this name.")
        await kick(subject)
        log.info("user kicked", user=subject, operator=operator.subject)
        return Response(status_code=204)

    return [route("/api/users/{id:path}/streams", tag="Users", delete=kick_user)]
