"""A Python client: publish events, follow a stream. Needs httpx and nothing else of this package.

with Publisher("https://example.org", key="…") as publisher:
    publisher.publish("user:42", "orders.shipped", {"orderId": 7})

async with Subscriber("https://example.org", token="…", topics=["news"]) as subscriber:
    async for message in subscriber:
        ...
"""

import asyncio
import codecs
import json
import random
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx

MAX_ATTEMPTS = 5
BACKOFF_S, MAX_BACKOFF_S = 0.25, 10.0
MAX_STREAM_PAUSE_S = 300.0  # a follower is in no hurry, a publish is
_RETRYABLE = frozenset({429, 502, 503, 504})
_LINE_END = re.compile("\r\n|\n|\r")
_SILENCE_S = 40.0  # over two heartbeats of the default; `stream.open` tells the server's own


class ClientError(Exception):
    """The server refused, for good.

    Shape: `status` is the HTTP status, `problem` the decoded problem+json, empty when there was none.
    """

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(problem.get("detail") or f"HTTP status {status}")
        self.status = status
        self.problem = problem


class NotConfirmed(Exception):
    """The server did not confirm after several attempts. The event may or may not be stored; the same
    idempotency key may be used to try again later."""


class Published(NamedTuple):
    """Shape: an id per event, in the order given; `durability` is `memory`, `replica` or `disk`."""

    ids: tuple[str, ...]
    durability: str


# Publishing -------------------------------------------------------------------------------------------------------


class _Attempts:
    """What both publishers share: the request, and what its answer means."""

    def __init__(self, url: str, key: str, body: object, idempotency_key: str | None) -> None:
        self.url = url.rstrip("/") + "/api/publish"
        self.content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        # Always one: it is what makes a second attempt harmless.
        self.headers = {
            "authorization": f"Bearer {key}",
            "content-type": "application/json",
            "idempotency-key": idempotency_key or str(uuid.uuid4()),
        }
        self.made = 0

    def failed(self, error: httpx.TransportError) -> float:
        """Seconds to wait before the next attempt.

        Raises: NotConfirmed when there is none.
        """
        return self._next(str(error) or type(error).__name__, 0.0)

    def answered(self, response: httpx.Response) -> Published | float:
        """The result, or seconds to wait before the next attempt.

        Raises: ClientError, NotConfirmed.
        """
        if response.status_code in _RETRYABLE:
            return self._next(f"HTTP status {response.status_code}", _retry_after_s(response))
        if response.status_code != 202:
            raise _refusal(response)
        answer = response.json()
        return Published(tuple(answer.get("ids") or (answer["id"],)), answer["durability"])

    def _next(self, reason: str, at_least_s: float) -> float:
        self.made += 1
        if self.made >= MAX_ATTEMPTS:
            raise NotConfirmed(f"{self.made} attempts: {reason}; key {self.headers['idempotency-key']}")
        return max(at_least_s, _backoff_s(self.made))


class Publisher:
    """Publishes events, for synchronous code."""

    def __init__(self, url: str, key: str, *, timeout_s: float = 10.0) -> None:
        self._url = url
        self._key = key
        self._http = httpx.Client(timeout=timeout_s)

    def publish(self, topic: str, type_: str, data: object, *, idempotency_key: str | None = None) -> Published:
        """Publish one event; retried under one idempotency key, so it happens once.

        Raises: ClientError when refused, NotConfirmed when nothing answered.
        """
        return self._send({"topic": topic, "type": type_, "data": data}, idempotency_key)

    def publish_batch(
        self, events: Sequence[tuple[str, str, object]], *, idempotency_key: str | None = None
    ) -> Published:
        """Publish up to 1,000 (topic, type, data), all or none.

        Raises: as `publish`.
        """
        return self._send(_batch(events), idempotency_key)

    def close(self) -> None:
        self._http.close()

    def _send(self, body: object, idempotency_key: str | None) -> Published:
        attempts = _Attempts(self._url, self._key, body, idempotency_key)
        while True:
            try:
                response = self._http.post(attempts.url, content=attempts.content, headers=attempts.headers)
            except httpx.TransportError as error:
                outcome: Published | float = attempts.failed(error)
            else:
                outcome = attempts.answered(response)
            if isinstance(outcome, Published):
                return outcome
            time.sleep(outcome)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncPublisher:
    """Publishes events, for asyncio."""

    def __init__(self, url: str, key: str, *, timeout_s: float = 10.0) -> None:
        self._url = url
        self._key = key
        self._http = httpx.AsyncClient(timeout=timeout_s)

    async def publish(self, topic: str, type_: str, data: object, *, idempotency_key: str | None = None) -> Published:
        """As `Publisher.publish`."""
        return await self._send({"topic": topic, "type": type_, "data": data}, idempotency_key)

    async def publish_batch(
        self, events: Sequence[tuple[str, str, object]], *, idempotency_key: str | None = None
    ) -> Published:
        """As `Publisher.publish_batch`."""
        return await self._send(_batch(events), idempotency_key)

    async def close(self) -> None:
        await self._http.aclose()

    async def _send(self, body: object, idempotency_key: str | None) -> Published:
        attempts = _Attempts(self._url, self._key, body, idempotency_key)
        while True:
            try:
                response = await self._http.post(attempts.url, content=attempts.content, headers=attempts.headers)
            except httpx.TransportError as error:
                outcome: Published | float = attempts.failed(error)
            else:
                outcome = attempts.answered(response)
            if isinstance(outcome, Published):
                return outcome
            await asyncio.sleep(outcome)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


# Following --------------------------------------------------------------------------------------------------------


class Message(NamedTuple):
    """One event of a stream.

    Shape: `id` is the position to resume from, the last one seen when the event brings none; `data` is decoded
    JSON. Beside domain events come `stream.open`, `stream.gap`, `stream.expiring`, `stream.close` and `heartbeat`:
    docs/protocol.md.
    """

    type: str
    data: Any
    id: str


class Parser:
    """Bytes in, messages out.

    Source: WHATWG HTML, 9.2.6. Line ends are CR, LF and CRLF and nothing else, wherever the bytes are cut.
    """

    def __init__(self, last_event_id: str = "") -> None:
        self.last_event_id = last_event_id
        self.retry_ms: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._at_start = True
        self._id = last_event_id
        self._type = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Message]:
        """The messages that this chunk completes."""
        messages = []
        for line in self._lines(self._decoder.decode(chunk)):
            if line:
                self._take_field(line)
            elif (message := self._dispatch()) is not None:
                messages.append(message)
        return messages

    def _lines(self, text: str) -> Iterator[str]:
        text = self._rest + text
        if self._at_start and text:
            text = text.removeprefix("\ufeff")
            self._at_start = False
        begin = 0
        for end in _LINE_END.finditer(text):
            if end[0] == "\r" and end.end() == len(text):
                break  # its LF may come with the next chunk
            yield text[begin : end.start()]
            begin = end.end()
        self._rest = text[begin:]

    def _take_field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit() and len(value) < 10:
            self.retry_ms = int(value)

    def _dispatch(self) -> Message | None:
        self.last_event_id = self._id
        type_, self._type = self._type or "message", ""
        data, self._data = self._data, []
        if not data:
            return None
        text = "\n".join(data)
        return Message(type_, json.loads(text) if text else "", self.last_event_id)


class _NotNow(Exception):
    """The server refused this attempt and may grant the next.

    Units: `retry_after_s` is 0 when it did not say when.
    """

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(f"HTTP status {response.status_code}")
        self.retry_after_s = _retry_after_s(response, MAX_STREAM_PAUSE_S)


class Subscriber:
    """Follows a stream for as long as it is iterated, and resumes it where it was lost.

    Nothing is kept on disk: keep `last_event_id` yourself to resume after a restart.

    Shape: `token` is a token, or a function that is awaited for one before each connection; with a function an
    expired token is no end. It renews nothing by itself: `stream.expiring` comes a minute before the end.
    """

    def __init__(
        self,
        url: str,
        token: str | Callable[[], Awaitable[str]],
        *,
        topics: Sequence[str] = (),
        last_event_id: str = "",
    ) -> None:
        self.last_event_id = last_event_id
        self._url = url.rstrip("/") + "/events"
        self._token = token
        self._topics = ",".join(topics)
        self._silence_s = _SILENCE_S
        self._following: AsyncGenerator[Message, None] | None = None
        self._http = httpx.AsyncClient(timeout=httpx.Timeout(10.0))

    def __aiter__(self) -> AsyncIterator[Message]:
        """Messages in order, over all reconnects.

        Raises: ClientError when the server refuses the stream, or ends it and says not to come back; and what the
        function for the token raises, except httpx.TransportError, after which both are tried again.
        """
        self._following = self._follow()
        return self._following

    async def _follow(self) -> AsyncGenerator[Message, None]:
        failures = 0
        while True:
            parser = Parser(self.last_event_id)
            retry_after_s = 0.0
            heard = False
            try:
                async with aclosing(self._once(parser)) as messages:
                    async for message in messages:
                        heard, failures = True, 0
                        yield message
                        if message.type == "stream.close" and self._is_final(message.data):
                            raise ClientError(200, {"detail": f"the stream was ended: {message.data['reason']}"})
            except _NotNow as refusal:
                failures += 1
                retry_after_s = refusal.retry_after_s
            except httpx.TransportError:
                failures += 1
            else:
                failures += not heard and parser.retry_ms is None  # an answer that says nothing is no success
            retry_s = (parser.retry_ms or 0) / 1000
            # A pause in any case: a proxy may end every answer at once. The server tells all it refuses the same
            # `Retry-After`, so what keeps them apart is added to it.
            await asyncio.sleep(max(retry_s, retry_after_s + _backoff_s(failures)))

    def _is_final(self, close: dict[str, Any]) -> bool:
        can_renew = close["reason"] == "token_expired" and callable(self._token)
        return not (close["reconnect"] or can_renew)

    async def _once(self, parser: Parser) -> AsyncGenerator[Message, None]:
        token = await self._token() if callable(self._token) else self._token
        headers = {"authorization": f"Bearer {token}", "accept": "text/event-stream"}
        if self.last_event_id:
            headers["last-event-id"] = self.last_event_id
        params = {"topics": self._topics} if self._topics else {}
        timeout = httpx.Timeout(10.0, read=self._silence_s)
        async with self._http.stream("GET", self._url, params=params, headers=headers, timeout=timeout) as response:
            if response.status_code in _RETRYABLE:
                raise _NotNow(response)
            if response.status_code == 204:
                raise ClientError(204, {"detail": "the stream was refused: the server says not to come back"})
            if response.status_code != 200:
                await response.aread()
                raise _refusal(response)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise ClientError(200, {"detail": "the answer is no event stream; is the URL that of allim?"})
            async for chunk in response.aiter_raw():
                for message in parser.feed(chunk):
                    self.last_event_id = message.id
                    if message.type == "stream.open":
                        self._silence_s = 2 * message.data["heartbeat_s"] + 10
                    yield message

    async def close(self) -> None:
        """End the stream, also one whose loop was left by `break`."""
        if self._following is not None:
            await self._following.aclose()
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _batch(events: Sequence[tuple[str, str, object]]) -> list[dict[str, object]]:
    return [{"topic": topic, "type": type_, "data": data} for topic, type_, data in events]


def _backoff_s(attempt: int) -> float:
    """Full jitter: clients that failed together do not come back together."""
    return random.uniform(0, min(MAX_BACKOFF_S, BACKOFF_S * 2**attempt))


def _retry_after_s(response: httpx.Response, at_most_s: float = MAX_BACKOFF_S) -> float:
    value = response.headers.get("retry-after", "")
    return min(float(value), at_most_s) if value.isascii() and value.isdigit() else 0.0


def _refusal(response: httpx.Response) -> ClientError:
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        return ClientError(response.status_code, response.json())
    return ClientError(response.status_code, {})
