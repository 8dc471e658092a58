"""`POST /api/publish`: events from services, one or a batch, all or nothing.

A request is judged in this order: its key, its body, what the key may publish.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints
from starlette.requests import Request
from starlette.responses import Response

from allim.errors import Conflict, FieldError, Forbidden, Invalid
from allim.http.bodies import Body, form, parse, read_json
from allim.http.publishers import Publisher, Publishers
from allim.http.rates import Policy, Rates
from allim.http.routing import Answer, Caller, Parameter, Resource, operation, route
from allim.hub import TOPIC_FORM, TYPE_FORM, Draft, Entry, Hub, Published

MAX_BATCH = 1000
MAX_BODY_BYTES = 2 * 1024 * 1024
MAX_NAME_CHARS = 256  # beyond every form, so that what is much too long is told from what is malformed

_KEY_FORM = r"[\x21-\x7e]{1,256}"
_IDEMPOTENCY_KEY = re.compile(_KEY_FORM + r"\Z", re.ASCII)


Durability = Literal["memory", "replica", "disk"]


class NewEvent(Body):
    """One event, as a service sends it."""

    topic: Annotated[str, StringConstraints(max_length=MAX_NAME_CHARS), form(TOPIC_FORM)]
    type: Annotated[str, StringConstraints(max_length=MAX_NAME_CHARS), form(TYPE_FORM)]
    data: Any


_FIELDS = NewEvent.model_fields.keys()


class Stored(Body):
    """The event's position, and how well it is stored."""

    id: str
    durability: Durability


class StoredBatch(Body):
    """The events' positions in the order given, and how well they are stored."""

    ids: list[str]
    durability: Durability


def routes(hub: Hub, publishers: Publishers, rates: Rates, limit: Policy) -> list[Resource]:
    """The publishers' route."""

    @operation(
        caller=Caller.PUBLISHER,
        body=NewEvent | Annotated[list[NewEvent], Field(min_length=1, max_length=MAX_BATCH)],
        parameters=[
            Parameter(
                "header",
                "Idempotency-Key",
                Annotated[str, form(_KEY_FORM)],
                "The same key with the same events publishes them once, for 24 hours.",
            )
        ],
        answers={202: Answer("Stored.", Stored | StoredBatch)},
        fails=[Conflict],
    )
    async def publish(request: Request) -> Response:
        """Publish one event or a batch.

        A batch is stored as a whole or not at all; the first wrong event refuses it and is named by its index. 409
        when the idempotency key stands for other events. After a 503 it may be stored or not: repeat it with a key.
        """
        publisher = await publishers.publisher_of(request)
        key = _idempotency_key(request)
        body = await read_json(request, MAX_BODY_BYTES)
        indexed = isinstance(body, list)
        drafts: list[Draft] = []
        entries: list[Entry] = []
        for draft, under in _drafts(body):
            entries.append(hub.encode(draft, under))
            drafts.append(draft)
        if not publisher.may_publish_all:
            _check_permission(publisher, drafts, indexed)
        await rates.take(request, (limit, publisher.name), cost=len(drafts))
        published = await hub.store(entries, f"publish/{publisher.name}/{key}" if key else None)
        return _answer(published, indexed)

    return [route("/api/publish", tag="Events", post=publish)]


def _drafts(body: object) -> Iterator[tuple[Draft, str]]:
    """One by one, each with its path in the body, so that the first wrong event is the one that is named."""
    if not isinstance(body, list):
        yield _draft(body, ""), ""
        return
    if not body:
        raise Invalid.field("body", "must have at least 1 event")
    if len(body) > MAX_BATCH:
        raise Invalid.field("body", f"must have at most {MAX_BATCH} events")
    for index, event in enumerate(body):
        under = f"[{index}]"
        yield _draft(event, under), under


def _draft(value: object, under: str) -> Draft:
    # What has the shape of a `NewEvent` needs no pydantic to say so: its part is to explain what has not.
    if type(value) is dict and value.keys() == _FIELDS:
        topic, type_, data = value["topic"], value["type"], value["data"]
        if type(topic) is str and type(type_) is str and len(topic) <= MAX_NAME_CHARS >= len(type_):
            return Draft(topic, type_, data)
    event = parse(NewEvent, value, under)
    return Draft(event.topic, event.type, event.data)


def _answer(published: Published, indexed: bool) -> Response:
    """`Stored` or `StoredBatch` as JSON: the IDs are digits and hyphens, so nothing in it needs escaping."""
    quoted = [f'"{position}"' for position in published.positions]
    told = f'"ids":[{",".join(quoted)}]' if indexed else f'"id":{quoted[0]}'
    return Response(f'{{{told},"durability":"{published.durability}"}}', 202, media_type="application/json")


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
