"""Permission to read topics: granted by the token or by a rule for the kind of topic, otherwise refused."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from allim.access.authorize import Authorize, ask
from allim.errors import FieldError, Forbidden
from allim.identity import Identity

Rule = Callable[[Identity, str], Awaitable[bool]]
"""Returns whether an identity may read a topic of one kind, given the part after the colon, or ""."""


class Permission:
    """The rules by kind of topic, which is the part before the colon. `authorize` decides on all other topics."""

    def __init__(self, rules: Mapping[str, Rule], authorize: Authorize | None = None) -> None:
        self._rules = rules
        self._authorize = authorize

    async def require(self, identity: Identity, topics: Sequence[str]) -> None:
        """Check that the identity may read all of these topics.

        Raises: Forbidden naming `topics`, with the same text for a topic that does not exist; AuthorizeUnavailable.
        """
        rest = [topic for topic in topics if not identity.may_read(topic) and not await self._decide(identity, topic)]
        if rest and not (self._authorize is not None and await ask(self._authorize, identity, rest) >= {*rest}):
            message = "one of these topics does not exist, or you may not read it"
            raise Forbidden(f"topics: {message}", [FieldError("topics", message)])

    async def _decide(self, identity: Identity, topic: str) -> bool:
        kind, _, key = topic.partition(":")
        rule = self._rules.get(kind)
        return rule is not None and await rule(identity, key)
