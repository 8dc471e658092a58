"""Reads from a request which page of a list it asks for: `?limit=&cursor=`."""

import re
from typing import Annotated

from pydantic import Field
from starlette.requests import Request

from allim.errors import FieldError, Invalid
from allim.http.routing import Parameter
from allim.paging import DEFAULT_LIMIT, MAX_LIMIT, Page, decode_cursor

PARAMETERS = (
    Parameter(
        "query", "limit", Annotated[int, Field(ge=1, le=MAX_LIMIT)], f"Maximum of items; {DEFAULT_LIMIT} if absent."
    ),
    Parameter("query", "cursor", str, "`nextCursor` of the previous page; absent for the first."),
)
"""For the declarations of lists."""

_KNOWN = {parameter.name for parameter in PARAMETERS}


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
