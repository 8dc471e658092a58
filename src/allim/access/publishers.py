"""Publish keys and their grants: keys from settings, and keys of a store that is asked by digest.

Secrets are kept nowhere, only their SHA-256. Fast and without salt is right for the secrets made here: 32 random
bytes can be neither guessed nor found in a table. Slow hashes are for passwords that people choose.

Knows no table: another module stores keys (`Lookup`). Source: RFC 6750 (Bearer).
"""

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from starlette.requests import HTTPConnection

from allim.access.gate import bearer_in, bearer_of
from allim.errors import Unauthenticated, Unavailable
from allim.hub import KEY_FORM

CACHE_S = 2.0
"""How long a replica keeps an answer of the store: a deleted or expired key is refused after that time."""

CACHE_ENTRIES = 10_000
LOOKUP_TIMEOUT_S = 2.0
LOOKUPS_AT_ONCE = 4  # so that made-up keys cannot take all of the store's connections

ALL = ("*",)
"""The grants of a publisher without restrictions."""

NAME_FORM = r"[A-Za-z0-9._~-]{1,64}"
TOPIC_GRANT_FORM = rf"\*|[a-z][a-z0-9_-]{{0,63}}(:(\*|{KEY_FORM}))?"
TYPE_GRANT_FORM = r"\*|[a-z][a-z0-9_.-]{0,127}|[a-z][a-z0-9_.-]{0,125}\.\*"
_NAME = re.compile(NAME_FORM)
_TOPIC_GRANT = re.compile(TOPIC_GRANT_FORM)
_TYPE_GRANT = re.compile(TYPE_GRANT_FORM)
_NEW_SECRET = re.compile(rb"ak_[A-Za-z0-9_-]{43}")
_HEX_DIGEST = re.compile(r"[0-9A-Fa-f]{64}")
_DIGEST_MARK = "sha256"


class Publisher(NamedTuple):
    """The holder of a publish key.

    Shape: `topics` are grants, `*`, a topic, or `name:*`; `types` are `*`, a type, or `prefix.*`.
    """

    name: str
    topics: tuple[str, ...]
    types: tuple[str, ...]

    @property
    def may_publish_all(self) -> bool:
        return self.topics == ALL == self.types

    def may_publish(self, topic: str, type_: str) -> bool:
        """Deny by default: both the topic and the type must be granted."""
        return self.may_publish_to(topic) and self.may_publish_type(type_)

    def may_publish_to(self, topic: str) -> bool:
        return _granted(self.topics, topic)

    def may_publish_type(self, type_: str) -> bool:
        return _granted(self.types, type_)


Lookup = Callable[[bytes], Awaitable[Publisher | None]]
"""Returns the publisher of the key with this digest; None if there is no such key."""


class SettingsKeys:
    """The publish keys that stand in the settings.

    Shape: each entry is `name:secret`, `name:sha256:<64 hex digits>` or a bare `secret`, whose name is then a
    prefix of its digest. Several keys may share a name, so that a key can be replaced without a pause. A name
    without grants may publish everything.
    """

    def __init__(self, entries: Sequence[str], grants: Mapping[str, Publisher]) -> None:
        keys = [_settings_key(entry) for entry in entries]
        if len({digest for _, digest in keys}) < len(keys):
            raise ValueError("two publish keys have the same secret")
        names = {name for name, _ in keys}
        for number, name in enumerate(grants, 1):
            if name not in names:
                raise ValueError(f"holds no publish key for the name in entry {number} of ALLIM_PUBLISH_GRANTS")
        self._keys = [(digest, grants.get(name, Publisher(name, ALL, ALL))) for name, digest in keys]

    def publisher(self, digest: bytes) -> Publisher | None:
        """Return the publisher of the key with this digest."""
        # Every key is compared, in constant time: how long it takes tells nothing about any of them.
        found = [publisher for key, publisher in self._keys if hmac.compare_digest(key, digest)]
        return found[0] if found else None


class Publishers:
    """Tells publishers by their keys: those of the settings first, then those of the store, if there is one.

    An answer of the store holds for `CACHE_S` on this replica, whether it knows the key or not, and a busy key is
    asked for once in that time, however many requests come with it.

    Shape: `count` is told of each question before it is asked, and refuses an address that asks too often: questions
    about made-up keys must not delay holders of real ones.
    """

    def __init__(
        self,
        keys: SettingsKeys,
        lookup: Lookup | None = None,
        now: Callable[[], float] = time.monotonic,
        count: Callable[[HTTPConnection], Awaitable[None]] | None = None,
    ) -> None:
        self._keys = keys
        self._lookup = lookup
        self._count = count
        self._now = now
        self._asked: dict[bytes, _Asked] = {}  # the oldest question first
        self._turns = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    def add(self, lookup: Lookup) -> None:
        """Ask this store for keys that the settings do not have.

        Raises: ValueError if there is a store already.
        """
        if self._lookup is not None:
            raise ValueError("there is a store of publish keys already")
        self._lookup = lookup

    async def publisher_of(self, connection: HTTPConnection) -> Publisher:
        """Return the publisher of the request's key.

        Raises: Unauthenticated, with the same text for each fault; Unavailable when the store does not answer;
        the errors of `count`.
        """
        secret = (bearer_of(connection) or "").encode("latin-1")  # as it was sent
        digest = digest_of(secret)
        publisher = self._keys.publisher(digest)
        if publisher is None and self._lookup is not None and _NEW_SECRET.fullmatch(secret):
            if self._count is not None and self._fresh(digest) is None:
                await self._count(connection)
            publisher = await self._stored(self._lookup, digest)
        if publisher is None:
            raise Unauthenticated(
                "The publish key is not known.", reason="publish_key" if secret else "no_publish_key"
            )
        return publisher

    def known(self, authorization: bytes) -> Publisher | None:
        """Return the publisher of an `Authorization` header if it is known without asking the store."""
        digest = digest_of(bearer_in(authorization) or b"")
        publisher = self._keys.publisher(digest)
        if publisher is None and (asked := self._fresh(digest)):
            publisher = asked.said
        return publisher

    async def _stored(self, lookup: Lookup, digest: bytes) -> Publisher | None:
        asked = self._fresh(digest)
        if asked is None:
            now = self._now()
            self._make_room(now)
            # The answer is as old as the question: a slow store must not prolong the life of a deleted key.
            asked = self._asked[digest] = _Asked(now, asyncio.create_task(self._ask(lookup, digest)))
        return await asyncio.shield(asked.answer)  # it is shared by all that wait: none may cancel it

    def _fresh(self, digest: bytes) -> "_Asked | None":
        asked = self._asked.get(digest)
        return None if asked is None or asked.is_stale(self._now()) else asked

    async def _ask(self, lookup: Lookup, digest: bytes) -> Publisher | None:
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S), self._turns:
                return await lookup(digest)
        except BaseException as error:
            self._asked.pop(digest, None)  # a failure is no answer; the next request asks again
            if isinstance(error, TimeoutError):
                raise Unavailable("The publish keys cannot be looked up.") from error
            raise

    def _make_room(self, now: float) -> None:
        """Forget everything stale, which is at the front, and the oldest when there are too many."""
        while self._asked:
            oldest = next(iter(self._asked))
            if len(self._asked) < CACHE_ENTRIES and not self._asked[oldest].is_stale(now):
                return
            del self._asked[oldest]


class _Asked(NamedTuple):
    """A question to the store and its answer, which may still be on its way."""

    at: float
    answer: asyncio.Task[Publisher | None]

    @property
    def said(self) -> Publisher | None:
        """None also while nothing was said. A question that failed is not kept."""
        return self.answer.result() if self.answer.done() and not self.answer.cancelled() else None

    def is_stale(self, now: float) -> bool:
        return now >= self.at + CACHE_S


def read_grants(entries: Sequence[str]) -> dict[str, Publisher]:
    """Read the grants of publishers in the settings, by name.

    Shape: each entry is `name=topics` or `name=topics;types`, with `|` between several grants.
    Raises: ValueError with the number of the wrong entry; its text is not repeated, it may be a misplaced secret.
    """
    publishers: dict[str, Publisher] = {}
    for number, entry in enumerate(entries, 1):
        try:
            publisher = _granted_publisher(entry)
        except ValueError:
            raise ValueError(f"entry {number} must look like `name=user:*|news;orders.*`") from None
        if publisher.name in publishers:
            raise ValueError(f"entry {number} is the second one for its name")
        publishers[publisher.name] = publisher
    return publishers


def check_name(name: str) -> str:
    """Give the publisher's name back when it is well-formed.

    Raises: ValueError.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("must be 1 to 64 of A-Z a-z 0-9 . _ ~ -")
    return name


def check_topic_grant(grant: str) -> str:
    """Give the grant back when it can grant topics.

    Raises: ValueError.
    """
    if not _TOPIC_GRANT.fullmatch(grant):
        raise ValueError("must be a topic, `name:*`, or `*`")
    return grant


def check_type_grant(grant: str) -> str:
    """Give the grant back when it can grant types of events.

    Raises: ValueError.
    """
    if not _TYPE_GRANT.fullmatch(grant):
        raise ValueError("must be a type of events, `prefix.*`, or `*`")
    return grant


def new_secret() -> str:
    """Make a secret that cannot be guessed, in the form of a key."""
    return f"ak_{secrets.token_urlsafe(32)}"


def digest_of(secret: bytes) -> bytes:
    """Return the digest that is kept of a secret. The top of this module says why SHA-256 is enough."""
    return hashlib.sha256(secret).digest()


def _settings_key(entry: str) -> tuple[str, bytes]:
    """The name and the digest."""
    name, separator, secret = entry.strip().partition(":")
    if name and not separator:
        digest = digest_of(_as_sent(name))
        return digest.hex()[:8], digest
    # A digest without a name would otherwise pass for the secret of a publisher called `sha256`.
    if not secret or name == _DIGEST_MARK or not _NAME.fullmatch(name):
        raise ValueError("a publish key must be `name:secret`, `name:sha256:<64 hex digits>` or `secret`")
    mark, separator, digits = secret.partition(":")
    if not separator or mark.lower() != _DIGEST_MARK:
        return name, digest_of(_as_sent(secret))
    if not _HEX_DIGEST.fullmatch(digits):
        raise ValueError("the digest of a publish key must be `name:sha256:<64 hex digits>`")
    digest = bytes.fromhex(digits)
    if digest == digest_of(b""):  # of a variable that was not set, most likely; a request without a key would have it
        raise ValueError("the digest of a publish key is that of an empty secret")
    return name, digest


def _granted_publisher(entry: str) -> Publisher:
    name, _, grants = entry.partition("=")
    topics, separator, types = grants.partition(";")
    return Publisher(
        check_name(name),
        tuple(map(check_topic_grant, topics.split("|"))),
        tuple(map(check_type_grant, types.split("|"))) if separator else ALL,
    )


def _granted(grants: tuple[str, ...], word: str) -> bool:
    """Return whether a grant is the word itself, or a prefix of it followed by `*`."""
    return any(word == grant or (grant.endswith("*") and word.startswith(grant[:-1])) for grant in grants)


def _as_sent(secret: str) -> bytes:
    return secret.encode("utf-8", "surrogateescape")  # as it stood in the environment
