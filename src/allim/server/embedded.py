"""A replica that is another ASGI application, with allim mounted inside: its streams are handed over all the same."""

import asyncio
import logging
from functools import partial
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from allim.embedding import find
from allim.server.protocol import HandoverProtocol
from allim.server.replica import listen, run_until_signal, shared_limits
from allim.settings import Settings
from allim.telemetry import configure_logging
from allim.transports.sse import frames
from allim.transports.sse.handover import AT_START, CLIENT_GONE, EXTENSION, HandedOver, HandoverStream

_STREAM = (b"content-type", frames.MEDIA_TYPE.encode())


def run(app: ASGIApp, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve an ASGI application in which allim is mounted, until a signal; then drain its streams.

    A stream costs what it costs under `allim serve`. Logging is set up as there, unless the application has done so.
    Raises: ValueError if there is no allim in the application; OSError if the address cannot be used.
    """
    allim = find(app)
    settings: Settings = allim.state.settings
    if not logging.getLogger().handlers:
        configure_logging(settings.server_id, settings.log_level, pretty=settings.log_format == "text")
    # No route of the application's own is known here, so a body is never refused for a missing one.
    http = partial(EmbeddingProtocol, shared=shared_limits(allim, settings), knows=lambda _: False)
    run_until_signal(HandoverAtStart(app), http, settings, listen(host, port), allim.state.leave, "auto")


class EmbeddingProtocol(HandoverProtocol):
    """The protocol for routes of others: bodies of any size, and WebSockets."""

    max_body_bytes = 1 << 62
    body_timeout_s = float("inf")  # a body that comes too slowly is refused all the same

    def on_headers_complete(self) -> None:
        if not (self.parser.should_upgrade() and self._should_upgrade()):
            super().on_headers_complete()
            return
        url, headers = self.url, self.headers
        HttpToolsProtocol.on_message_begin(self)
        self.url = url
        self.headers += headers  # the list that stands in the scope
        HttpToolsProtocol.on_headers_complete(self)

    def read_without_upgrade(self, rest: bytes) -> None:
        if not self._should_upgrade():
            super().read_without_upgrade(rest)
            return
        scope, transport = self.scope, self.transport
        transport.set_protocol(asyncio.Protocol())  # or the end of this protocol would close the transport
        self.connection_lost(HandedOver())
        self.scope = scope
        self.handle_websocket_upgrade()
        self.scope = None  # type: ignore[assignment]


class HandoverAtStart:
    """The outermost ASGI middleware: hands a connection over when the response of its stream begins.

    By then the middleware of the application has added its headers, which the stream's response has as well. The rest
    of the response, which has no body, is dropped.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        offer = _Offer(scope, send)
        scope["extensions"][AT_START] = offer.take
        try:
            await self.app(scope, receive, offer.send)
        finally:
            offer.refuse()


class _Offer:
    """The offer to one request to hand its connection over."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._hand_over: Any = scope["extensions"][EXTENSION]
        self._chunked = scope["http_version"] == "1.1"
        self._send = send
        self._stream: HandoverStream | None = None
        self._outcome: asyncio.Future[bool] | None = None

    def take(self, stream: HandoverStream) -> "asyncio.Future[bool]":
        """Take the offer. The outcome is False if the client has gone, or if the response became another one."""
        self._stream = stream
        self._outcome = asyncio.get_running_loop().create_future()
        return self._outcome

    def refuse(self) -> None:
        """Hand nothing over any more."""
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(False)

    async def send(self, message: Message) -> None:
        """Send a message of the response, or hand the connection over in its place."""
        outcome, stream = self._outcome, self._stream
        if outcome is None or stream is None:
            await self._send(message)
        elif not outcome.done():
            begins = message["type"] == "http.response.start" and _is_stream(message)
            outcome.set_result(begins and self._hand_over(stream, self._head(message)))
            if not outcome.result():
                # uvicorn would log a missing answer to a client that has gone as a defect.
                await self._send({**message, "status": CLIENT_GONE} if begins else message)
        elif outcome.cancelled() or not outcome.result():
            await self._send(message)

    def _head(self, message: Message) -> bytes:
        return frames.raw_head(message["headers"], chunked=self._chunked)


def _is_stream(message: Message) -> bool:
    """Return whether the response that begins is still that of the stream, and not one that middleware put there."""
    return message["status"] == 200 and any(
        name == _STREAM[0] and value.startswith(_STREAM[1]) for name, value in message["headers"]
    )
