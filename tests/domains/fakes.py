"""Stand-ins for what the wiring hands to the rooms."""

from collections.abc import Awaitable, Callable, Sequence

from allim.errors import Conflict, Unavailable
from allim.hub import ZERO, Draft, Holder, Published, SessionState, is_kicked


class RecordingHub:
    """Keeps events. As the hub promises, a known key stores nothing new, and other drafts are a conflict."""

    def __init__(self) -> None:
        self.events: list[Draft] = []
        self.ended: list[tuple[str, str]] = []
        self.kicked: dict[str, float] = {}
        self.extended: list[tuple[str, str, float]] = []
        self.calls = 0
        self.is_down = False
        self.before_publish: Callable[[Draft], Awaitable[None]] | None = None
        self._known: dict[str, list[Draft]] = {}

    async def publish(self, drafts: Sequence[Draft], key: str | None = None) -> Published:
        self.calls += 1
        if self.before_publish is not None:
            await self.before_publish(drafts[0])
        if self.is_down:
            raise Unavailable("The history does not answer.")
        if key is None or key not in self._known:
            self.events += drafts
        if key is not None and self._known.setdefault(key, list(drafts)) != list(drafts):
            raise Conflict("The key was used for other events.")
        return Published(tuple(ZERO for _ in drafts), "memory")

    async def last_kick(self, subject: str) -> float | None:
        return None if self.is_down else self.kicked.get(subject, 0.0)

    async def kick(self, subject: str) -> None:
        if self.is_down:
            raise Unavailable("The history does not answer.")
        self.kicked[subject] = self.kicked.get(subject, 0.0) + 1

    async def session_states(self, holders: Sequence[Holder]) -> Sequence[SessionState]:
        if self.is_down:
            raise Unavailable("The history does not answer.")
        return [self._state(holder) for holder in holders]

    def _state(self, holder: Holder) -> SessionState:
        if (holder.subject, holder.session) in self.ended:
            return SessionState.SIGNED_OUT
        return SessionState.KICKED if is_kicked(holder, self.kicked.get(holder.subject, -1)) else SessionState.GOOD

    async def sign_out(self, holder: Holder) -> None:
        if self.is_down:
            raise Unavailable("The history does not answer.")
        self.ended.append((holder.subject, holder.session))

    async def extend(self, holder: Holder, expires_at: float) -> None:
        if self.is_down:
            raise Unavailable("The history does not answer.")
        self.extended.append((holder.subject, holder.session, expires_at))

    def types(self, topic: str) -> list[str]:
        """The types of the topic's events, in order, with the step for progress."""
        return [_label(draft) for draft in self.events if draft.topic == topic]


class Clock:
    """A clock that only moves when told."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


async def profile(account_id: str) -> dict[str, object] | None:
    """Knows every account, except those whose name begins with "no"."""
    return None if account_id.startswith("no") else {"id": account_id, "name": "지우", "email": "a@example.com"}


def _label(draft: Draft) -> str:
    data = draft.data
    assert isinstance(data, dict)
    return f"{draft.type} {data['step']}" if "step" in data else draft.type
