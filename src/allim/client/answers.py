"""Judge HTTP answers: which are allim's own, which may pass, where a redirect leads, and how long to wait."""

import random
import re
from typing import Any

import httpx

from allim.client.errors import ClientError

BACKOFF_S = 0.25
MAX_REDIRECTS = 5
OWN_TYPE = "urn:allim:problem:"
_PASSING = frozenset({408, 425, 429})
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+")


def may_pass(status: int) -> bool:
    """Return whether the same request may succeed later, also if a proxy answered."""
    return status >= 500 or status in _PASSING


def problem_of(response: httpx.Response) -> dict[str, Any] | None:
    """Return allim's own problem document, which nginx writes too; None for an answer of anything on the way."""
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        return None
    try:
        problem = response.json()
    except ValueError:
        return None
    if isinstance(problem, dict) and str(problem.get("type", "")).startswith(OWN_TYPE):
        return problem
    return None


def redirected(response: httpx.Response, hops: int) -> httpx.Request | None:
    """Return the request that follows a redirect; None when the answer is none.

    The credentials go to the origin that they were given for, and to the same host when http is redirected to https.

    Raises: ClientError for a redirect to another origin, for one that changes the method, and after too many `hops`.
    """
    request = response.next_request
    if request is None:
        return None
    status, asked = response.status_code, response.request.method
    if hops >= MAX_REDIRECTS:
        raise ClientError(status, {"detail": f"more than {MAX_REDIRECTS} redirects in a row"})
    to = f"HTTP status {status} redirects to {request.url.copy_with(query=None, fragment=None)}"
    if "authorization" not in request.headers:  # httpx removes it where it must not go
        detail = f"{to}, another origin, and credentials are not sent there; if it is allim's, give its URL"
        raise ClientError(status, {"detail": detail})
    if request.method != asked:
        detail = f"{to} and turns a {asked} into a {request.method}; give that URL"
        raise ClientError(status, {"detail": detail})
    return request


def backoff_s(attempt: int, at_most_s: float) -> float:
    """Return a pause with full jitter: clients that failed together do not come back together."""
    return random.uniform(0, min(at_most_s, BACKOFF_S * 2 ** min(attempt, 32)))


def retry_after_s(response: httpx.Response) -> float:
    """Return the seconds of `Retry-After`, 0 when there are none."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0


def base_url(url: str) -> str:
    """Return a server's address without its last slash.

    Raises: ValueError when it is none.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"url: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("url: must begin with http:// or https:// and name a host")
    return url.rstrip("/")


def bearer(name: str, secret: str) -> str:
    """Return the value of `Authorization`.

    Raises: ValueError naming the credential when no header can hold it. The text does not repeat it.
    """
    if not _VISIBLE_ASCII.fullmatch(secret):
        raise ValueError(f"{name}: must be visible ASCII characters; a line end is easily read along with it")
    return f"Bearer {secret}"
