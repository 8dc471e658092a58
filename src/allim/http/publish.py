"""`POST /api/publish`: one event or a batch from a service, stored all or none.

A request is checked in this order: publish key, body, the key's topics and types, rate.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints
from starlette.requests import Request
from starlette.responses import Response

from allim.access.publishers import Publisher, Publishers
from allim.access.rates import Policy, Rates, ratelimit_headers
from allim.errors import Conflict, FieldError, Forbidden, Invalid, TooLarge, TooMany
from allim.http.bodies import Body, form, parse, parse_json, read_json
from allim.http.fast_path import Judged, Pending, RawHeaders, Success
from allim.http.problems import UnsupportedMediaType
from allim.http.routing import Answer, Caller, Parameter, Resource, operation, route
from allim.hub import TOPIC_FORM, TYPE_FORM, Draft, Entry, Hub, Outcome, Published

ACCEPTED, JSON = 202, "application/json"
MAX_BATCH = 1000
MAX_BODY_BYTES = 2 * 1024 * 1024
MAX_NAME_CHARS = 3200  # longer than any well-formed name, so that "too long" and "malformed" are different errors

_KEY_FORM = r"[\x21-\x7e]{1,256}"
_IDEMPOTENCY_KEY = re.compile(_KEY_FORM + r"\Z", re.ASCII)


Durability = Literal["memory", "replica", "disk"]


class NewEvent(Body):
    """An event to publish."""

    topic: Annotated[str, StringConstraints(max_length=MAX_NAME_CHARS), form(TOPIC_FORM)]
    type: Annotated[str, StringConstraints(max_length=MAX_NAME_CHARS), form(TYPE_FORM)]
    data: Any


_FIELDS = NewEvent.model_fields.keys()


class Stored(Body):
    """The event's position, and how durably it is stored."""

    id: str
    durability: Durability


class StoredBatch(Body):
    """The events' positions in the given order, and how durably they are stored."""

    ids: list[str]
    durability: Durability


def routes(
    hub: Hub, publishers: Publishers, rates: Rates, limit: Policy, memory: Callable[[], Policy | None]
) -> list[Resource]:
    """Return the route for publishing.

    Shape: `limit` counts events; `memory` returns the policy for the bytes that they add to the store, or None while
    these are not limited.
    """

    def store(
        publisher: Publisher, entries: Sequence[Entry], key: str | None
    ) -> "tuple[asyncio.Future[Outcome], tuple[Policy, ...]]":
        """Start to store. Returns the outcome to come and the charged policies."""
        demand, kept = limit.demand(publisher.name, len(entries)), memory()
        if kept is None:
            return hub.start_publish(entries, key, demand), (limit,)
        return hub.start_publish(entries, key, demand, kept.demand(publisher.name)), (limit, kept)

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
        answers={ACCEPTED: Answer("Stored.", Stored | StoredBatch)},
        fails=[Conflict],
    )
    async def publish(request: Request) -> Response:
        """Publish one event or a batch.

        A batch is stored as a whole or not at all; the first wrong event refuses it and is named by its index. 409
        when the idempotency key stands for other events. After a 503 it may be stored or not: repeat it with a key.
        """
        publisher = await publishers.publisher_of(request)
        body: object = None
        try:
            key = _idempotency_key(request.headers.get("idempotency-key"))
            body = await read_json(request, MAX_BODY_BYTES)
            entries = _entries(hub, publisher, body)
        except (Forbidden, Invalid, TooLarge, UnsupportedMediaType):
            # A refused body costs as much time as a stored one, so it is charged too.
            await rates.charge(request, (limit, publisher.name), cost=_events_in(body))
            raise
        storing, limits = store(publisher, entries, _scoped(publisher, key))
        outcome = await storing
        rates.report(request, limits[: len(outcome.quotas)], outcome.quotas)
        return Response(_stored(hub.finish_publish(outcome), body), ACCEPTED, media_type=JSON)

    def publish_fast(fields: RawHeaders, content: bytes) -> Pending | None:
        """Publish on the fast path, for a publisher whose key is known without a lookup."""
        publisher = publishers.known(fields.get(b"authorization", b""))
        if publisher is None or fields.get(b"content-type") != b"application/json":
            return None
        key = fields.get(b"idempotency-key")
        scoped = None if key is None else _scoped(publisher, _idempotency_key(key.decode("latin-1")))
        body = parse_json(content)
        entries = _entries(hub, publisher, body)

        storing, limits = store(publisher, entries, scoped)

        def answer(outcome: Outcome) -> Success | Judged:
            policies = limits[: len(outcome.quotas)]
            headers = ratelimit_headers(policies, outcome.quotas)
            try:
                rates.check(policies, outcome.quotas)
                return Success(ACCEPTED, JSON, _stored(hub.finish_publish(outcome), body), headers)
            except (Conflict, TooMany) as error:
                return Judged(error, headers)

        return Pending(storing, answer)

    return [route("/api/publish", tag="Events", post=publish).with_fast(post=publish_fast)]


def _entries(hub: Hub, publisher: Publisher, body: object) -> list[Entry]:
    """Return the entries to store, after checking that the publisher may publish them.

    Raises: Invalid, TooLarge or Forbidden naming the fields of the first wrong event.
    """
    if not isinstance(body, list):
        draft = _draft(body, "")
        entry = hub.encode(draft)
        _check_permission(publisher, [draft], indexed=False)
        return [entry]
    if not body:
        raise Invalid.field("body", "must have at least 1 event")
    if len(body) > MAX_BATCH:
        raise Invalid.field("body", f"must have at most {MAX_BATCH} events")
    drafts, entries = [], []
    for index, event in enumerate(body):
        under = f"[{index}]"
        draft = _draft(event, under)
        entries.append(hub.encode(draft, under))
        drafts.append(draft)
    _check_permission(publisher, drafts, indexed=True)
    return entries


def _events_in(body: object) -> int:
    """Return the number of events for which a refused body is charged: at least one, at most MAX_BATCH."""
    return min(max(len(body), 1), MAX_BATCH) if isinstance(body, list) else 1


def _draft(value: object, under: str) -> Draft:
    # A value with the form of a `NewEvent` is taken directly; pydantic is only needed to explain the faults of
    # others.
    if type(value) is dict and value.keys() == _FIELDS:
        topic, type_, data = value["topic"], value["type"], value["data"]
        if type(topic) is str and type(type_) is str and len(topic) <= MAX_NAME_CHARS >= len(type_):
            return Draft(topic, type_, data)
    event = parse(NewEvent, value, under)
    return Draft(event.topic, event.type, event.data)


def _stored(published: Published, body: object) -> bytes:
    """Return `Stored` or `StoredBatch` as JSON: IDs are digits and hyphens, so nothing needs escaping."""
    if isinstance(body, list):
        quoted = ",".join([f'"{position}"' for position in published.positions])
        ids = f'"ids":[{quoted}]'
    else:
        ids = f'"id":"{published.positions[0]}"'
    return f'{{{ids},"durability":"{published.durability}"}}'.encode()


def _check_permission(publisher: Publisher, drafts: Sequence[Draft], *, indexed: bool) -> None:
    if publisher.may_publish_all:
        return
    for index, draft in enumerate(drafts):
        if not publisher.may_publish(draft.topic, draft.type):
            raise _forbidden(publisher, draft, f"[{index}]." if indexed else "")


def _forbidden(publisher: Publisher, draft: Draft, prefix: str) -> Forbidden:
    # The text depends on the key's grants alone, so it reveals nothing about which topics exist.
    fields = []
    if not publisher.may_publish_to(draft.topic):
        fields.append(FieldError(f"{prefix}topic", "is not among the topics of this publish key"))
    if not publisher.may_publish_type(draft.type):
        fields.append(FieldError(f"{prefix}type", "is not among the types of this publish key"))
    return Forbidden("; ".join(f"{field}: {message}" for field, message in fields), fields)


def _idempotency_key(key: str | None) -> str | None:
    if key is not None and not _IDEMPOTENCY_KEY.match(key):
        raise Invalid.field("Idempotency-Key", "must be 1 to 256 visible ASCII characters")
    return key


def _scoped(publisher: Publisher, key: str | None) -> str | None:
    """Return the idempotency key with its publisher in front: publishers do not share keys."""
    return f"publish/{publisher.name}/{key}" if key else None
