"""Publish events, with one deadline for all attempts of a publish and one idempotency key."""

import asyncio
import math
import os
import re
import time
import uuid
from collections.abc import Sequence
from typing import NamedTuple, NoReturn, Self

import httpx

from allim.client.answers import backoff_s, base_url, bearer, may_pass, problem_of, redirected, retry_after_s
from allim.client.encoding import encode
from allim.client.errors import ClientError, NotConfirmed
from allim.client.network import Network, tls

TIMEOUT_S = 10.0
MAX_BACKOFF_S = 2.0
LAST_ATTEMPT_S = 2.0  # an attempt gets half of the time that is left, so that another can follow, or this much
_NOTHING_WAS_DONE = frozenset({408, 429})  # as allim's own answers: the body did not come, the rate was used up
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,256}")


class Published(NamedTuple):
    """Shape: an id per event, in the order given; `durability` is `memory`, `replica` or `disk`."""

    ids: tuple[str, ...]
    durability: str


class _Publish:
    """One publish over its attempts: the request, the meaning of an answer, and when to give up.

    Both publishers share it. It reads no socket.
    """

    def __init__(self, body: object, idempotency_key: str | None, timeout_s: float) -> None:
        self.key = str(uuid.uuid4()) if idempotency_key is None else idempotency_key
        if not _IDEMPOTENCY_KEY.fullmatch(self.key):
            raise ValueError("idempotency_key: must be 1 to 256 visible ASCII characters")
        self.content = encode(body)
        self.headers = {
            "accept-encoding": "identity",
            "content-type": "application/json",
            "idempotency-key": self.key,  # always one: it makes a second attempt harmless
        }
        self._timeout_s = _seconds(timeout_s)
        self._deadline = time.monotonic() + timeout_s
        self._attempts = 0
        self._sent = False
        self._may_be_stored = False

    def begin(self) -> float:
        """Begin an attempt, and return the moment of the monotonic clock at which it ends."""
        self._attempts += 1
        self._sent = False
        now = time.monotonic()
        left_s = self._deadline - now
        return now + max(left_s / 2, min(left_s, LAST_ATTEMPT_S))

    def note(self, step: str, _: object) -> None:
        """Take note of httpx' steps: before the head of the request is sent, nothing can be stored."""
        self._sent = self._sent or step.endswith("send_request_headers.started")

    async def note_async(self, step: str, details: object) -> None:
        self.note(step, details)

    def failed(self, reason: str, retry_after_s: float = 0.0, *, nothing_done: bool = False) -> float:
        """Return the seconds to wait before the next attempt.

        Raises: NotConfirmed when there is no time for one.
        """
        self._may_be_stored = self._may_be_stored or (self._sent and not nothing_done)
        pause_s = max(retry_after_s, backoff_s(self._attempts, MAX_BACKOFF_S))
        if time.monotonic() + pause_s >= self._deadline:
            raise self._not_confirmed(reason)
        return pause_s

    def answered(self, response: httpx.Response) -> Published | float:
        """Return the result, or the seconds to wait before the next attempt.

        Raises: ClientError, NotConfirmed.
        """
        status = response.status_code
        published = _published(response) if status == httpx.codes.ACCEPTED else None
        if published is not None:
            return published
        problem = problem_of(response)
        reason = f"HTTP status {status}"
        if problem is None:
            # A page that a proxy shows during a deploy is gone in a moment.
            if not may_pass(status):
                reason += ", not from allim; check that this is its URL"
            return self.failed(reason, retry_after_s(response))
        if may_pass(status):
            return self.failed(reason, retry_after_s(response), nothing_done=status in _NOTHING_WAS_DONE)
        return self.refused(ClientError(status, problem))

    def refused(self, error: ClientError) -> NoReturn:
        """Raise the refusal, or NotConfirmed if an earlier attempt may have stored the events."""
        if self._may_be_stored:
            raise self._not_confirmed(f"refused after an attempt without an answer: {error}") from error
        raise error

    def _not_confirmed(self, reason: str) -> NotConfirmed:
        tries = "1 attempt" if self._attempts == 1 else f"{self._attempts} attempts"
        text = f"{tries} in {self._timeout_s:g} s: {reason}"
        return NotConfirmed(text, self.key, self._may_be_stored)


class _Connections(NamedTuple):
    """The connections of a process."""

    pid: int
    http: httpx.Client
    network: Network

    @classmethod
    def open(cls) -> Self:
        network, http = Network(), httpx.Client(verify=tls())
        network.use(http)
        return cls(os.getpid(), http, network)


class _Sender:
    """The server, the key and the time limit of a publisher."""

    def __init__(self, url: str, key: str, timeout_s: float) -> None:
        self._url = base_url(url) + "/api/publish"
        self._authorization = bearer("key", key)
        self._timeout_s = _seconds(timeout_s)

    def _begin(self, body: object, idempotency_key: str | None, timeout_s: float | None) -> _Publish:
        return _Publish(body, idempotency_key, self._timeout_s if timeout_s is None else timeout_s)


class Publisher(_Sender):
    """Publishes events, for synchronous code, from any number of threads.

    A process that is forked opens connections of its own; the parent's stay open.

    Shape: `timeout_s` is the most that a publish takes, over all its attempts.
    Raises: ValueError for a URL, a key or a time that cannot be.
    """

    def __init__(self, url: str, key: str, *, timeout_s: float = TIMEOUT_S) -> None:
        super().__init__(url, key, timeout_s)
        self._opened = _Connections.open()

    def publish(
        self,
        topic: str,
        type_: str,
        data: object,
        *,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Published:
        """Publish one event; retried under one idempotency key, so it happens once.

        Raises: ClientError when refused, and certainly not stored; NotConfirmed when there is no answer in time, and
        it may be stored; TypeError or ValueError, naming the place, for data that JSON cannot hold.
        """
        return self._send(self._begin(_event(topic, type_, data), idempotency_key, timeout_s))

    def publish_batch(
        self,
        events: Sequence[tuple[str, str, object]],
        *,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Published:
        """Publish up to 1,000 (topic, type, data), all or none.

        Raises: as `publish`.
        """
        return self._send(self._begin(_batch(events), idempotency_key, timeout_s))

    def close(self) -> None:
        if self._opened.pid == os.getpid():
            self._opened.http.close()
        else:
            self._opened.network.forget()

    def _send(self, publish: _Publish) -> Published:
        while True:
            try:
                response = self._attempt(publish)
            except httpx.RequestError as error:
                outcome: Published | float = publish.failed(str(error) or type(error).__name__)
            except ClientError as error:
                publish.refused(error)
            else:
                outcome = publish.answered(response)
            if isinstance(outcome, Published):
                return outcome
            time.sleep(outcome)

    def _attempt(self, publish: _Publish) -> httpx.Response:
        until = publish.begin()
        _, http, network = self._connections()
        with network.until(until):
            response = http.post(
                self._url,
                content=publish.content,
                headers={**publish.headers, "authorization": self._authorization},
                timeout=_left_s(until),
                extensions={"trace": publish.note},
            )
            hops = 0
            while (request := redirected(response, hops)) is not None:
                hops += 1
                response = http.send(request)
        return response

    def _connections(self) -> _Connections:
        """Return this process' own. Two threads may each open some; each uses its own."""
        opened = self._opened
        if opened.pid != os.getpid():
            opened.network.forget()
            opened = self._opened = _Connections.open()
        return opened

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncPublisher(_Sender):
    """Publishes events, for asyncio.

    Connections belong to one event loop of one process: in another loop, and after a fork, new ones are opened.

    Shape and Raises: as `Publisher`.
    """

    def __init__(self, url: str, key: str, *, timeout_s: float = TIMEOUT_S) -> None:
        super().__init__(url, key, timeout_s)
        self._http = httpx.AsyncClient(verify=tls())
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None  # where the connections were opened

    async def publish(
        self,
        topic: str,
        type_: str,
        data: object,
        *,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Published:
        """As `Publisher.publish`."""
        return await self._send(self._begin(_event(topic, type_, data), idempotency_key, timeout_s))

    async def publish_batch(
        self,
        events: Sequence[tuple[str, str, object]],
        *,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Published:
        """As `Publisher.publish_batch`."""
        return await self._send(self._begin(_batch(events), idempotency_key, timeout_s))

    async def close(self) -> None:
        if self._home == _home():
            await self._http.aclose()

    async def _send(self, publish: _Publish) -> Published:
        while True:
            try:
                response = await self._attempt(publish)
            except httpx.RequestError as error:
                outcome: Published | float = publish.failed(str(error) or type(error).__name__)
            except TimeoutError:
                outcome = publish.failed("no whole answer in time")
            except ClientError as error:
                publish.refused(error)
            else:
                outcome = publish.answered(response)
            if isinstance(outcome, Published):
                return outcome
            await asyncio.sleep(outcome)

    async def _attempt(self, publish: _Publish) -> httpx.Response:
        until = publish.begin()
        http = self._client()
        async with asyncio.timeout(_left_s(until)):
            response = await http.post(
                self._url,
                content=publish.content,
                headers={**publish.headers, "authorization": self._authorization},
                timeout=_left_s(until),
                extensions={"trace": publish.note_async},
            )
            hops = 0
            while (request := redirected(response, hops)) is not None:
                hops += 1
                response = await http.send(request)
        return response

    def _client(self) -> httpx.AsyncClient:
        home = _home()
        if self._home not in (None, home):
            self._http = httpx.AsyncClient(verify=tls())
        self._home = home
        return self._http

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _event(topic: str, type_: str, data: object) -> dict[str, object]:
    return {"topic": topic, "type": type_, "data": data}


def _batch(events: Sequence[tuple[str, str, object]]) -> list[dict[str, object]]:
    return [_event(*event) for event in events]


def _published(response: httpx.Response) -> Published | None:
    """Return the content of allim's 202 response; None for that of any other server."""
    try:
        answer = response.json()
        return Published(tuple(answer.get("ids") or (answer["id"],)), answer["durability"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _home() -> tuple[int, asyncio.AbstractEventLoop]:
    return os.getpid(), asyncio.get_running_loop()


def _left_s(until: float) -> float:
    return max(until - time.monotonic(), 0.001)


def _seconds(timeout_s: float) -> float:
    if not 0 < timeout_s < math.inf:
        raise ValueError("timeout_s: must be a number of seconds above 0")
    return timeout_s
