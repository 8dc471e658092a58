"""The bodies of requests and answers."""

from typing import Annotated

from pydantic import AfterValidator, Field

from allim.access.publishers import (
    NAME_FORM,
    TOPIC_GRANT_FORM,
    TYPE_GRANT_FORM,
    check_name,
    check_topic_grant,
    check_type_grant,
)
from allim.domains.keys.store import PublishKey
from allim.http.bodies import Body, Instant, Whole, form
from allim.times import utc

MAX_GRANTS = 100
MAX_GRACE_S = 7 * 86400


def _grace(seconds: int) -> int:
    if not 0 <= seconds <= MAX_GRACE_S:
        raise ValueError(f"must be a whole number from 0 to {MAX_GRACE_S}")
    return seconds


_SOME = Field(min_length=1, max_length=MAX_GRANTS)


class NewKey(Body):
    """`POST /api/keys`: both lists must be given, so that nobody may publish everything by an oversight."""

    name: Annotated[str, AfterValidator(check_name), form(NAME_FORM)]
    topics: Annotated[list[Annotated[str, AfterValidator(check_topic_grant), form(TOPIC_GRANT_FORM)]], _SOME]
    types: Annotated[list[Annotated[str, AfterValidator(check_type_grant), form(TYPE_GRANT_FORM)]], _SOME]


class Rotation(Body):
    """`POST /api/keys/{id}/rotation`: how long the old key is still good."""

    grace_s: Annotated[
        Whole, AfterValidator(_grace), Field(json_schema_extra={"minimum": 0, "maximum": MAX_GRACE_S})
    ] = 3600


class KeyView(Body):
    """A key as operators see it; `expires_at` is null as long as it has no successor."""

    id: str
    name: str
    topics: list[str]
    types: list[str]
    created_at: Instant
    expires_at: Instant | None


class IssuedView(KeyView):
    """A new key with its secret, shown this once."""

    key: str


class KeyPage(Body):
    """A part of the list, newest first; `nextCursor` is null on the last one."""

    items: list[KeyView]
    next_cursor: str | None


def view(key: PublishKey) -> KeyView:
    """The key without what only the log needs."""
    return KeyView.model_construct(
        id=key.id,
        name=key.name,
        topics=list(key.topics),
        types=list(key.types),
        created_at=utc(key.created_at),
        expires_at=None if key.expires_at is None else utc(key.expires_at),
    )


def issued_view(key: PublishKey, secret: str) -> IssuedView:
    """The new key with its secret."""
    return IssuedView.model_construct(**dict(view(key)), key=secret)
