"""The answers that a connection gives before there is an application to give them."""

import json
from typing import NamedTuple


class Refusal(NamedTuple):
    """An answer that is given before there is an application to give it.

    Shape: `name` is the one under which it is counted; `answer` is the whole response.
    """

    name: str
    answer: bytes


def _refusal(name: str, status: int, title: str, detail: str, code: str, retry_after_s: int = 0) -> Refusal:
    problem = {
        "type": f"urn:allim:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "retryable": bool(retry_after_s),
    }
    body = json.dumps(problem)
    head = f"HTTP/1.1 {status} {title}\r\ncontent-type: application/problem+json\r\ncontent-length: {len(body)}\r\n"
    retry = f"retry-after: {retry_after_s}\r\n" if retry_after_s else ""
    return Refusal(name, f"{head}{retry}connection: close\r\n\r\n{body}".encode())


BAD_REQUEST = _refusal("bad_request", 400, "Bad request", "The request could not be read.", "bad_request")
BAD_HOST = _refusal(
    "bad_host", 400, "Bad request", "Host: must be one name or address, with a port or without.", "bad_request"
)
NO_BODY_HERE = _refusal(
    "body_not_allowed", 400, "Bad request", "A request with this method must not have a body.", "bad_request"
)
SLOW_BODY = _refusal("slow_body", 408, "Request timeout", "The body arrived too slowly.", "slow_body")
BODY_TOO_LARGE = _refusal("body_too_large", 413, "Content too large", "The body is over the limit.", "too_large")
TOO_MANY_CONNECTIONS = _refusal(
    "connections_per_address", 429, "Too many requests", "Too many connections from this address.", "too_many", 5
)
HEAD_TOO_LARGE = _refusal(
    "head_too_large",
    431,
    "Request header fields too large",
    "The head of the request is over the limit.",
    "head_too_large",
)
