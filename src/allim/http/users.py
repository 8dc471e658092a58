"""`DELETE /api/users/{id}/streams`: an operator ends everything a user has open."""

import re
from collections.abc import Awaitable, Callable

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from allim.errors import Invalid
from allim.http.gate import Gate
from allim.http.routing import route

log = structlog.get_logger(__name__)

_SUBJECT = re.compile(r"[A-Za-z0-9._~-]{1,128}")

Kick = Callable[[str], Awaitable[None]]
"""Ends every session a user has until now, and all their streams on every replica."""


def routes(gate: Gate, kick: Kick) -> list[Route]:
    """The operators' route."""

    async def kick_user(request: Request) -> Response:
        operator = await gate.require_operator(request)
        subject = request.path_params["id"]
        if not _SUBJECT.fullmatch(subject):
            raise Invalid.field("id", "must be 1 to 128 of A-Z a-z 0-9 . _ ~ -")
        await kick(subject)
        log.info("user kicked", user=subject, operator=operator.subject)
        return Response(status_code=204)

    return [route("/api/users/{id}/streams", delete=kick_user)]
