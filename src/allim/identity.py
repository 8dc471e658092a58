"""Who is asking, and which topics they may read. Knows no HTTP and no tokens."""

from dataclasses import dataclass

SYSTEM_TOPIC = "system"
USER, OPERATOR = "user", "operator"  # roles


def user_topic(subject: str) -> str:
    """The topic that belongs to one user alone."""
    return f"user:{subject}"


@dataclass(frozen=True, slots=True)
class Identity:
    """A signed-in user.

    Shape: `subject` is the token's `sub`; `session` its `sid`, by which a sign-out finds the session's
    streams; `topics` are the extra topics the token grants, exact or `prefix:*`; `role` is `user` or `operator`.
    Units: `expires_at` and `issued_at` in Unix seconds; 0 when the token does not say when it was issued.
    """

    subject: str
    session: str
    expires_at: float
    topics: tuple[str, ...] = ()
    role: str = USER
    issued_at: float = 0.0

    def own_topics(self) -> tuple[str, str]:
        """The topics every stream of this user has."""
        return (user_topic(self.subject), SYSTEM_TOPIC)

    def may_read(self, topic: str) -> bool:
        """Deny by default: own topics, and what the token grants."""
        return topic in self.own_topics() or any(_grants(grant, topic) for grant in self.topics)


def _grants(grant: str, topic: str) -> bool:
    if grant.endswith(":*"):
        return topic.startswith(grant[:-1])
    return grant == topic
