"""`POST /api/publish`: events from services, one or a batch, all or nothing.

A request is judged in this order: its key, its body, what the key may publish.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import StringConstraints
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from allim.errors import FieldError, Forbidden, Invalid
from allim.http.bodies import Body, parse, read_json
from allim.http.publishers import Publisher, Publishers
from allim.http.rates import Policy, Rates
from allim.http.routing import route
from allim.hub import Draft, Hub, check_topic

MAX_BATCH = 1000
MAX_BODY_BYTES = 2 * 1024 * 1024

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,256}\Z", re.ASCII)


class NewEvent(Body):
    """One event, as a service sends it."""

    topic: Annotated[str, StringConstraints(max_length=256)]
    type: Annotated[str, StringConstraints(max_length=256)]
    data: Any


def routes(hub: Hub, publishers: Publishers, rates: Rates, limit: Policy) -> list[Route]:
    """The publishers' route."""

    async def publish(request: Request) -> Response:
        publisher = await publishers.publisher_of(request)
        key = _idempotency_key(request)
        body = await read_json(request, MAX_BODY_BYTES)
        indexed = isinstance(body, list)
        drafts = _drafts(body)
        _check_permission(publisher, drafts, indexed)
        await rates.take(request, (limit, publisher.name), cost=len(drafts))
        published = await hub.publish(drafts, f"publish/{publisher.name}/{key}" if key else None, indexed=indexed)
        ids = [str(position) for position in published.positions]
        answer = {"ids": ids} if indexed else {"id": ids[0]}
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
    topic = check_topic(event.topic, f"{under}.topic" if under else "topic")
    return Draft(topic, event.type, event.data)


def _check_permission(publisher: Publisher, drafts: Sequence[Draft], indexed: bool) -> None:
    for index, draft in enumerate(drafts):
        if not publisher.may_publish(draft.topic, draft.type):
            raise _forbidden(publisher, draft, f"[{index}]." if indexed else "")


def _forbidden(publisher: Publisher, draft: Draft, prefix: str) -> Forbidden:
    # The words are those of the key's grants alone: they tell nothing about what exists.
    fields = []
    if not publisher.may_publish_to(draft.topic):
        fields.append(FieldError(f"{prefix}topic", "is not among the topics of this publish key"))
    if not publisher.may_publish_type(draft.type):
        fields.append(FieldError(f"{prefix}type", "is not among the types of this publish key"))
    return Forbidden("; ".join(f"{field}: {message}" for field, message in fields), fields)


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.match(key):
        raise Invalid.field("Idempotency-Key", "must be 1 to 256 visible ASCII characters")
    return key
