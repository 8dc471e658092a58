"""Follow a stream, and resume it where it was lost."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from allim.client.answers import backoff_s, base_url, bearer, may_pass, problem_of, redirected, retry_after_s
from allim.client.errors import ClientError
from allim.client.network import tls
from allim.client.parser import Message, Parser

T = TypeVar("T")

CONNECT_S = 10.0
MAX_BACKOFF_S = 10.0
MAX_PAUSE_S = 300.0  # of `Retry-After`
FOREIGN_S = 60.0  # how long answers that are not allim's are taken for a deploy, once a stream was open
FIRST_FOREIGN_S = 10.0  # and before that, when the URL may be wrong
_SILENCE_S = 40.0  # over two heartbeats of the default; `stream.open` tells the server's own
_ENCODINGS = ("", "identity", "gzip", "deflate")  # httpx decodes these without further packages


class _NotNow(Exception):
    """The server refused this attempt and may grant the next."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(f"HTTP status {response.status_code}")
        self.retry_after_s = min(retry_after_s(response), MAX_PAUSE_S)


class _Foreign(Exception):
    """Something between here and allim answered. `error` is raised when that lasts."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.error = ClientError(status, {"detail": detail})


class Subscriber:
    """Follows a stream for as long as it is iterated, and resumes it where it was lost.

    Nothing is kept on disk: keep `last_event_id` yourself to resume after a restart. Between two iterations no
    connection is open, so a forked process may iterate as well.

    Shape: `token` is a token, or a function that is awaited for one before each connection; with a function an
    expired token is no end. It renews nothing by itself: `stream.expiring` comes a minute before the end. `on_retry`
    is called with the reason when an attempt has failed and another follows.
    Raises: ValueError for a URL or a token that cannot be.
    """

    def __init__(
        self,
        url: str,
        token: str | Callable[[], Awaitable[str]],
        *,
        topics: Sequence[str] = (),
        last_event_id: str = "",
        on_retry: Callable[[str], object] | None = None,
    ) -> None:
        self.last_event_id = last_event_id
        self._url = base_url(url) + "/events"
        if isinstance(token, str):
            bearer("token", token)
        self._token = token
        self._topics = ",".join(topics)
        self._on_retry = on_retry
        self._silence_s = _SILENCE_S
        self._was_open = False
        self._following: AsyncGenerator[Message, None] | None = None
        self._pid = os.getpid()

    def __aiter__(self) -> AsyncIterator[Message]:
        """Messages in order, over all reconnects.

        Raises: ClientError when the server refuses the stream, or ends it and says not to come back, and when
        another server answers for longer than a deploy takes; and errors of the function for the token, except
        httpx.TransportError, after which both are tried again.
        """
        self._pid = os.getpid()
        self._following = self._follow()
        return self._following

    async def _follow(self) -> AsyncGenerator[Message, None]:
        failures = 0
        foreign_since: float | None = None
        async with httpx.AsyncClient(verify=tls()) as http:
            while True:
                parser = Parser(self.last_event_id)
                least_s = 0.0
                heard = False
                reason = ""
                try:
                    async with aclosing(self._once(http, parser)) as messages:
                        async for message in messages:
                            heard, failures, foreign_since = True, 0, None
                            yield message
                            if message.type == "stream.close" and self._is_final(message.data):
                                raise ClientError(200, {"detail": f"the stream was ended: {message.data['reason']}"})
                except _Foreign as answer:
                    foreign_since = foreign_since or time.monotonic()
                    if time.monotonic() - foreign_since >= (FOREIGN_S if self._was_open else FIRST_FOREIGN_S):
                        raise answer.error from None
                    reason = str(answer)
                except _NotNow as refusal:
                    reason, least_s, foreign_since = str(refusal), refusal.retry_after_s, None
                except httpx.TransportError as error:
                    reason, foreign_since = str(error) or type(error).__name__, None
                else:
                    if not heard and parser.retry_ms is None:
                        reason = "the answer ended without an event"  # and is no success
                if reason:
                    failures += 1
                    self._tell(reason)
                # A pause in any case: a proxy may end every answer at once. The server tells all it refuses the same
                # `Retry-After`, so the random part is added to it.
                retry_s = (parser.retry_ms or 0) / 1000
                await asyncio.sleep(max(retry_s, least_s + backoff_s(failures, MAX_BACKOFF_S)))

    def _tell(self, reason: str) -> None:
        if self._on_retry is not None:
            self._on_retry(reason)

    def _is_final(self, close: dict[str, Any]) -> bool:
        can_renew = close["reason"] == "token_expired" and callable(self._token)
        return not (close["reconnect"] or can_renew)

    async def _once(self, http: httpx.AsyncClient, parser: Parser) -> AsyncGenerator[Message, None]:
        token = await self._token() if callable(self._token) else self._token
        headers = {
            "authorization": bearer("token", token),
            "accept": "text/event-stream",
            "accept-encoding": "identity",  # a proxy that compresses may hold events back
        }
        if self.last_event_id:
            headers["last-event-id"] = self.last_event_id
        params = {"topics": self._topics} if self._topics else {}
        timeout = httpx.Timeout(CONNECT_S, read=self._silence_s)
        request = http.build_request("GET", self._url, params=params, headers=headers, timeout=timeout)
        async with aclosing(await self._open(http, request)) as response:
            try:
                await self._judge(response)
                heard_at = time.monotonic()
                async for chunk in response.aiter_bytes():  # as they come, also those that a proxy has compressed
                    for message in parser.feed(chunk):
                        heard_at = time.monotonic()
                        self.last_event_id = message.id
                        if message.type == "stream.open":
                            self._was_open = True
                            self._silence_s = 2 * message.data["heartbeat_s"] + 10
                        yield message
                    if time.monotonic() - heard_at > self._silence_s:
                        raise httpx.ReadTimeout(f"bytes, but no event for {self._silence_s:g} s")
            except httpx.DecodingError as error:
                encoding = response.headers["content-encoding"]
                raise _Foreign(
                    response.status_code, f"a proxy says Content-Encoding: {encoding}, and the bytes are not"
                ) from error

    async def _open(self, http: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
        """Return the answer of allim or its proxy, after redirects, with a body that is yet to be read."""
        hops = 0
        while True:
            response = await self._within(http.send(request, stream=True))
            try:
                following = redirected(response, hops)
            except ClientError:
                await response.aclose()
                raise
            if following is None:
                return response
            await response.aclose()
            hops, request = hops + 1, following

    async def _within(self, answer: Awaitable[T]) -> T:
        """Return an answer that may also come byte by byte.

        Raises: httpx.ReadTimeout.
        """
        try:
            async with asyncio.timeout(self._silence_s):
                return await answer
        except TimeoutError:
            raise httpx.ReadTimeout(f"no whole answer within {self._silence_s:g} s") from None

    async def _judge(self, response: httpx.Response) -> None:
        """Return if the answer is a stream.

        Raises: ClientError, _NotNow, _Foreign.
        """
        status = response.status_code
        if status == httpx.codes.NO_CONTENT:
            raise ClientError(status, {"detail": "the stream was refused: the server says not to come back"})
        if status != httpx.codes.OK:
            if may_pass(status):
                raise _NotNow(response)
            await self._within(response.aread())
            problem = problem_of(response)
            if problem is not None:
                raise ClientError(status, problem)
            raise _Foreign(status, f"HTTP status {status}, not from allim; check that this is its URL")
        if (fault := _no_stream(response)) is not None:
            if self._was_open:
                raise _Foreign(status, fault)
            raise ClientError(status, {"detail": fault})

    async def close(self) -> None:
        """End the stream, also one whose loop was left by `break`."""
        if self._following is not None and self._pid == os.getpid():
            await self._following.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _no_stream(response: httpx.Response) -> str | None:
    """Return why a 200 is no stream that can be read; None when it is one."""
    kind = response.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "text/event-stream":
        return f"the answer is no event stream (Content-Type: {kind or 'none'}); check that this is allim's URL"
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        return f"a proxy compresses the stream as {encoding}, unasked; switch that off for text/event-stream"
    return None
