"""Pages of a list that is ordered by time and id, newest first.

A cursor names the last item of the previous page, so items added meanwhile neither shift nor repeat anything. It
grants nothing: a route authorises first.
"""

import base64
import binascii
import json
import math
import re
from typing import Annotated, NamedTuple

from pydantic import Field
from starlette.requests import Request

from allim.errors import FieldError, Invalid
from allim.http.routing import Parameter

DEFAULT_LIMIT = 20
MAX_LIMIT = 100

PARAMETERS = (
    Parameter(
        "query", "limit", Annotated[int, Field(ge=1, le=MAX_LIMIT)], f"Maximum of items; {DEFAULT_LIMIT} if absent."
    ),
    Parameter("query", "cursor", str, "`nextCursor` of the previous page; absent for the first."),
)
"""For the declarations of lists."""

_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_KNOWN = {parameter.name for parameter in PARAMETERS}


class After(NamedTuple):
    """The item after which a page begins."""

    time: float
    id: str


class Page(NamedTuple):
    """The requested page; `after` is None for the first."""

    limit: int
    after: After | None


def read_page(request: Request) -> Page:
    """Read the page from `?limit=&cursor=`.

    Raises: Invalid naming each parameter that is unknown, repeated or wrong.
    """
    _refuse_unknown(request)
    cursor = request.query_params.get("cursor")
    return Page(
        _limit(request.query_params.get("limit", str(DEFAULT_LIMIT))),
        None if cursor is None else decode_cursor(cursor),
    )


def encode_cursor(after: After) -> str:
    """Return the cursor's text, safe in a URL."""
    return base64.urlsafe_b64encode(json.dumps(after).encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> After:
    """Read a cursor.

    Raises: Invalid naming `cursor` unless `encode_cursor` could have made it.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        time, id_ = json.loads(base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True))
        after = After(float(time), id_) if isinstance(time, float | int) and isinstance(id_, str) else None
    except (binascii.Error, ValueError, TypeError, RecursionError, OverflowError):
        after = None
    if after is None or not math.isfinite(after.time) or not _ID.fullmatch(after.id):
        raise Invalid.field("cursor", "is not a cursor from here; leave it out for the first page")
    return after


def _refuse_unknown(request: Request) -> None:
    names = [name for name, _ in request.query_params.multi_items()]
    fields = [
        FieldError(name[:64], "is not a known parameter") for name in dict.fromkeys(names) if name not in _KNOWN
    ]
    fields += [FieldError(name, "must be given once") for name in sorted(_KNOWN) if names.count(name) > 1]
    if fields:
        raise Invalid("; ".join(f"{field}: {message}" for field, message in fields), fields[:20])


def _limit(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= MAX_LIMIT:
        raise Invalid.field("limit", f"must be a whole number from 1 to {MAX_LIMIT}")
    return int(text)
