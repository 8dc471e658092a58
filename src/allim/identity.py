"""Identities and the topics they may read. Knows no HTTP and no tokens."""

import re
import secrets
import time
from collections.abc import Sequence
from typing import NamedTuple, Self
from urllib.parse import quote

CLOCK_LEEWAY_S = 300.0
"""The tolerated difference between two machines' clocks. With NTP they are within a second; Kerberos allows five
minutes as well (RFC 4120, 8.2)."""

SYSTEM_TOPIC = "system"
USER, OPERATOR = "user", "operator"  # roles
ALLIM = "allim"  # the issuer of the tokens that are signed here
DAY_S = 86_400.0

_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,255}")


def is_name(text: str) -> bool:
    """Return whether the text can name a user or a session: 1 to 255 characters, no control character."""
    return _NAME.fullmatch(text) is not None


def topic_key(name: str) -> str:
    """Return a name as it stands behind the colon of a topic: percent-encoded (RFC 3986) where the alphabet of topics
    has no such character. `auth0|42` becomes `auth0%7C42`; letters, digits, `.`, `_`, `~` and `-` stay.
    """
    return quote(name, safe="")


def user_topic(subject: str) -> str:
    """Return the topic that belongs to one user alone."""
    return f"user:{topic_key(subject)}"


class Identity(NamedTuple):
    """A signed-in user.

    Shape: `subject` is the token's `sub`; `session` its `sid`, by which a sign-out finds the session's
    streams; `topics` are the extra topics the token grants, exact or `prefix:*`; `role` is `user` or `operator`;
    `issuer` signed the token, "" when it has no name.
    Units: `expires_at` and `issued_at` in Unix seconds; 0 when the token does not say when it was issued.
    `after_kick` is the moment of the user's last kick before the token was issued, 0 when there was none, None when
    the token does not say.
    """

    subject: str
    session: str
    expires_at: float
    topics: tuple[str, ...] = ()
    role: str = USER
    issued_at: float = 0.0
    after_kick: float | None = None
    issuer: str = ALLIM

    @classmethod
    def of(
        cls,
        subject: str,
        *,
        topics: Sequence[str] = (),
        role: str = USER,
        expires_at: float | None = None,
        session: str | None = None,
    ) -> Self:
        """Return an identity for which an application vouches at this moment.

        Shape: without `session` it is a session of its own.
        Units: `expires_at` in Unix seconds; without it the identity is good for a day.
        """
        now = time.time()
        return cls(
            subject,
            secrets.token_urlsafe(16) if session is None else session,
            now + DAY_S if expires_at is None else expires_at,
            tuple(topics),
            role,
            now,
            issuer="",
        )

    def own_topics(self) -> tuple[str, str]:
        """Return the topics that every stream of this user has."""
        return (user_topic(self.subject), SYSTEM_TOPIC)

    def may_read(self, topic: str) -> bool:
        """Return whether the topic is the user's own or granted by the token."""
        return topic in self.own_topics() or any(_grants(grant, topic) for grant in self.topics)


class Ticket(NamedTuple):
    """A single-use credential for one stream. It expires in `keep_s` seconds."""

    id: str
    keep_s: float


class Visitor(NamedTuple):
    """A client that asks for a stream, with its credentials.

    Shape: `address` is the network it is counted under, "" if it is not counted. With a ticket: `topics` are the
    ticket's; `ticket` is the unspent ticket, None when the client resumes the stream on which it was spent; `proof`
    is appended to every id on the stream, so that a client that returns an id has read that stream.
    """

    identity: Identity
    address: str = ""
    topics: tuple[str, ...] = ()
    ticket: Ticket | None = None
    proof: str = ""


def _grants(grant: str, topic: str) -> bool:
    if grant.endswith(":*"):
        return topic.startswith(grant[:-1])
    return grant == topic
