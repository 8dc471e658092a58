"""Who may read which topic: what the token grants, and what the topic's own room decides. All else is refused."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from allim.errors import FieldError, Forbidden
from allim.identity import Identity

Rule = Callable[[Identity, str], Awaitable[bool]]
"""Decides for one kind of topic whether somebody may read it, given what stands after the colon, or ""."""


class Permission:
    """The rules, by the kind of topic: what stands before the colon."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self._rules = rules

    async def require(self, identity: Identity, topics: Sequence[str]) -> None:
        """Return when they may read all of these topics.

        Raises: Forbidden naming `topics`, in the same words whether a topic is not theirs or does not exist.
        """
        for topic in topics:
            if not identity.may_read(topic) and not await self._decide(identity, topic):
                message = "one of them is not yours to read, or does not exist"
                raise Forbidden(f"topics: {message}", [FieldError("topics", message)])

    async def _decide(self, identity: Identity, topic: str) -> bool:
        kind, _, key = topic.partition(":")
        rule = self._rules.get(kind)
        return rule is not None and await rule(identity, key)
