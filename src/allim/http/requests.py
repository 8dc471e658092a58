"""Request IDs and the access log, as pure ASGI middleware: streams pass through untouched.

The query string is never logged: it may hold a last event ID or, one day, a ticket.
"""

import re
import secrets
import time
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._~-]{1,64}\Z", re.ASCII)
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


class Requests:
    """Gives every request an ID, puts it into the answer and every log line, and logs how the request ended.

    While the replica is `leaving`, an answer ends its connection: a proxy keeps none that is about to be closed.

    A proxy's `X-Request-ID` is kept when it is one; anything else gets a new one. A request whose connection is
    handed over starts no response here: the hub logs when its stream opens and closes.
    """

    def __init__(self, app: ASGIApp, leaving: Callable[[], bool] = lambda: False) -> None:
        self.app = app
        self.leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if _REQUEST_ID.match(asked) else secrets.token_hex(8)
        added: dict[str, str] = {}
        scope.setdefault("state", {}).update(request_id=request_id, answer_headers=added)
        started_at = time.perf_counter()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in added.items():
                    headers.setdefault(name, value)
                if self.leaving():
                    headers["connection"] = "close"
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, send_with_id)
            finally:
                if status is not None and scope["path"] not in _QUIET:
                    client = scope.get("client")
                    log.info(
                        "request",
                        method=scope["method"],
                        path=scope["path"],
                        status=status,
                        duration_ms=round((time.perf_counter() - started_at) * 1000, 2),
                        client=client[0] if client else None,
                    )
