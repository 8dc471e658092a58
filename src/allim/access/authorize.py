"""Permission to read topics, asked of the application that knows its users: over a signed webhook, or a function.

The webhook is one POST with `{"subject", "topics"}`, answered by `{"topics", "ttl_s"}`. Its signature is an HMAC over
the time and the body, so that the application can refuse questions of others and old ones.
"""

import asyncio
import hashlib
import hmac
import inspect
import json
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from allim.access.fetch import read_bounded
from allim.errors import AuthorizeUnavailable
from allim.identity import Identity

if TYPE_CHECKING:  # late, because most replicas ask no application
    import httpx

log = structlog.get_logger(__name__)

HEADER = "Allim-Signature"
TIMEOUT_S = 2.0  # for the whole question, waiting for a free connection included
MAX_ANSWER_BYTES = 64 * 1024
MAX_TTL_S = 3600.0
CACHE_ENTRIES = 10_000
CACHE_CHARS = 8_000_000  # of topics, in all remembered answers: one question may have 100 topics of 3,000 characters
ASKED_AT_ONCE = 32  # connections to the application
LOG_EVERY_S = 1.0
RETRY_AFTER_S = 2

Authorize = Callable[[Identity, Sequence[str]], Iterable[str] | Awaitable[Iterable[str]]]
"""Returns which of the topics an identity may read. An application that embeds allim hands it to `create_app`."""

_Question = tuple[str, tuple[str, ...]]


async def ask(authorize: Authorize, identity: Identity, topics: Sequence[str]) -> frozenset[str]:
    """Return which of the topics may be read. The function may be `async` or not."""
    answer = authorize(identity, topics)
    return frozenset(await answer if inspect.isawaitable(answer) else answer)


def signature(secret: str, body: bytes, at: int) -> str:
    """Return the value of `Allim-Signature`: the time, and the HMAC-SHA256 of `<time>.<body>` in hexadecimal.

    Units: `at` in Unix seconds.
    """
    digest = hmac.digest(secret.encode(), b"%d." % at + body, hashlib.sha256).hex()
    return f"t={at},v1={digest}"


class Webhook:
    """Asks the application over HTTP, and remembers each answer for as long as it says.

    Requests with the same question wait for the same answer. A failure is not remembered.

    Shape: `count` is called with the outcome of each question: `cached`, `answered`, `timeout`, `unreachable` or
    `bad_answer`.
    """

    def __init__(
        self,
        url: str,
        secret: str,
        client: "httpx.AsyncClient | None" = None,
        *,
        count: Callable[[str], None] = lambda _: None,
        now: Callable[[], float] = time.monotonic,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        import httpx

        self._url = url
        self._secret = secret
        limits = httpx.Limits(max_connections=ASKED_AT_ONCE, max_keepalive_connections=ASKED_AT_ONCE)
        self._client = client or httpx.AsyncClient(limits=limits)
        self._count = count
        self._now = now
        self._timeout_s = timeout_s
        self._known: dict[_Question, tuple[float, frozenset[str]]] = {}
        self._known_chars = 0
        self._asking: dict[_Question, asyncio.Task[frozenset[str]]] = {}
        self._log_at = -math.inf
        self.failure = ""  # why the last question was not answered

    async def __call__(self, identity: Identity, topics: Sequence[str]) -> frozenset[str]:
        """Return which of these topics the identity's user may read.

        Raises: AuthorizeUnavailable when the application does not answer in time, or answers nonsense.
        """
        question = identity.subject, tuple(sorted(set(topics)))
        until, granted = self._known.get(question, (-math.inf, frozenset()))
        if self._now() < until:
            self._count("cached")
            return granted
        asking = self._asking.get(question)
        if asking is None:
            asking = self._asking[question] = asyncio.create_task(self._ask(question), name="allim authorize")
            asking.add_done_callback(lambda _: self._asking.pop(question))
        return await asyncio.shield(asking)  # a caller that leaves does not end the others' question

    async def close(self) -> None:
        """Cancel the questions under way."""
        for asking in [*self._asking.values()]:
            asking.cancel()
        if self._asking:
            await asyncio.wait([*self._asking.values()])
        await self._client.aclose()

    async def _ask(self, question: _Question) -> frozenset[str]:
        import httpx

        outcome, why = "answered", ""
        try:
            async with asyncio.timeout(self._timeout_s):
                content = await read_bounded(self._client, self._request(question), MAX_ANSWER_BYTES)
            granted, ttl_s = _read(content, question[1])
            self._remember(question, granted, ttl_s)
            return granted
        except TimeoutError:
            outcome, why = "timeout", f"no answer within {self._timeout_s:g} s"
        except httpx.HTTPError as error:
            outcome, why = "unreachable", str(error) or type(error).__name__
        except (ValueError, RecursionError) as error:
            outcome, why = "bad_answer", str(error)
        finally:
            self._count(outcome)
        self.failure = why
        self._log(outcome, why)
        raise AuthorizeUnavailable(_DETAILS[outcome], RETRY_AFTER_S)

    def _request(self, question: _Question) -> "httpx.Request":
        subject, topics = question
        body = json.dumps({"subject": subject, "topics": topics}, separators=(",", ":")).encode()
        headers = {
            "content-type": "application/json",
            "accept": "application/json",
            "accept-encoding": "identity",
            HEADER: signature(self._secret, body, int(time.time())),
        }
        return self._client.build_request("POST", self._url, content=body, headers=headers, timeout=None)

    def _remember(self, question: _Question, granted: frozenset[str], ttl_s: float) -> None:
        if ttl_s > 0:
            self._forget(question)
            self._known[question] = self._now() + ttl_s, granted
            self._known_chars += _chars_of(question)
            while len(self._known) > CACHE_ENTRIES or self._known_chars > CACHE_CHARS:
                self._forget(next(iter(self._known)))

    def _forget(self, question: _Question) -> None:
        if self._known.pop(question, None) is not None:
            self._known_chars -= _chars_of(question)

    def _log(self, outcome: str, why: str) -> None:
        if self._now() >= self._log_at:
            log.warning("authorize not answered", outcome=outcome, error=why)
            self._log_at = self._now() + LOG_EVERY_S


_DETAILS = {
    "timeout": "The application that decides on topics does not answer in time.",
    "unreachable": "The application that decides on topics cannot be reached.",
    "bad_answer": "The application that decides on topics gives an answer that cannot be used.",
}


def _chars_of(question: _Question) -> int:
    return sum(map(len, question[1]))


def _read(content: bytes, asked: Sequence[str]) -> tuple[frozenset[str], float]:
    """Return which of the asked topics are granted, and for how many seconds this answer is good.

    Raises: ValueError, RecursionError.
    """
    match json.loads(content):
        case {"topics": list(topics), "ttl_s": ttl_s} | {"topics": list(topics), "ttlS": ttl_s}:
            return frozenset(topic for topic in asked if topic in topics), _ttl_s(ttl_s)
    raise ValueError("must be a JSON object with `topics`, a list, and `ttl_s`, a number")


def _ttl_s(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError("`ttl_s` must be a number of seconds, 0 or more")
    return float(min(value, MAX_TTL_S))
