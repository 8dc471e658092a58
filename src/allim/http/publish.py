"""`POST /api/publish`: events from services, one or a batch, all or nothing."""

import re
from typing import Annotated, Any

from pydantic import StringConstraints
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from allim.errors import Invalid
from allim.http.auth import PublishKeys
from allim.http.bodies import Body, parse, read_json
from allim.http.routing import route
from allim.hub import Draft, Hub

MAX_BATCH = 1000
MAX_BODY_BYTES = 2 * 1024 * 1024

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,256}\Z", re.ASCII)


class NewEvent(Body):
    """One event, as a service sends it."""

    topic: Annotated[str, StringConstraints(max_length=256)]
    type: Annotated[str, StringConstraints(max_length=256)]
    data: Any


def routes(hub: Hub, keys: PublishKeys) -> list[Route]:
    """The publishers' route."""

    async def publish(request: Request) -> Response:
        publisher = keys.publisher_of(request)
        key = _idempotency_key(request)
        body = await read_json(request, MAX_BODY_BYTES)
        drafts = _drafts(body)
        published = await hub.publish(
            drafts, f"publish/{publisher}/{key}" if key else None, indexed=isinstance(body, list)
        )
        ids = [str(position) for position in published.positions]
        answer = {"ids": ids} if isinstance(body, list) else {"id": ids[0]}
        return JSONResponse({**answer, "durability": published.durability}, 202)

    return [route("/api/publish", post=publish)]


def _drafts(body: object) -> list[Draft]:
    if not isinstance(body, list):
        return [_draft(body, "")]
    if not body:
        raise Invalid.field("body", "must have at least 1 event")
    if len(body) > MAX_BATCH:
        raise Invalid.field("body", f"must have at most {MAX_BATCH} events")
    return [_draft(event, f"[{index}]") for index, event in enumerate(body)]


def _draft(value: object, under: str) -> Draft:
    event = parse(NewEvent, value, under)
    return Draft(event.topic, event.type, event.data)


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.match(key):
        raise Invalid.field("Idempotency-Key", "must be 1 to 256 visible ASCII characters")
    return key
