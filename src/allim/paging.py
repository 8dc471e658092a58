"""Pages of a list that is ordered by time and id, newest first.

A cursor names the last item of the previous page, so items added meanwhile neither shift nor repeat anything. It
grants nothing: a route authorises first. `allim.http.paging` reads a page from a request.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from allim.errors import Invalid

DEFAULT_LIMIT = 20
MAX_LIMIT = 100

_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")

Item = TypeVar("Item")


class After(NamedTuple):
    """The item after which a page begins."""

    time: float
    id: str


class Page(NamedTuple):
    """The requested page; `after` is None for the first."""

    limit: int
    after: After | None


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


def one_page(found: Sequence[Item], page: Page, after: Callable[[Item], After]) -> tuple[list[Item], str | None]:
    """Return a page's items and the cursor of the next page, if there is one.

    Shape: `found` has one item more than the page's limit if there is a next page.
    """
    items = list(found[: page.limit])
    return items, encode_cursor(after(items[-1])) if len(found) > page.limit else None
