"""Names of topics. Source: docs/protocol.md, "Users and their topics"."""

from urllib.parse import quote


def user_topic(subject: str) -> str:
    """Return the topic of one user alone: `auth0|42` has `user:auth0%7C42`."""
    return f"user:{quote(subject, safe='')}"
