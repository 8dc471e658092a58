"""Identities and the topics they may read. Knows no HTTP and no tokens."""

from typing import NamedTuple

CLOCK_LEEWAY_S = 300.0
"""The tolerated difference between two machines' clocks. With NTP they are within a second; Kerberos allows five
minutes as well (RFC 4120, 8.2)."""

SYSTEM_TOPIC = "system"
USER, OPERATOR = "user", "operator"  # roles


def user_topic(subject: str) -> str:
    """Return the topic that belongs to one user alone."""
    return f"user:{subject}"


class Identity(NamedTuple):
    """A signed-in user.

    Shape: `subject` is the token's `sub`; `session` its `sid`, by which a sign-out finds the session's
    streams; `topics` are the extra topics the token grants, exact or `prefix:*`; `role` is `user` or `operator`.
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
