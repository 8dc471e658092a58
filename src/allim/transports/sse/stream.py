"""The part that both ways to write a stream share: its frames, and its end."""

import random
from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field

from allim.hub import CloseReason, Hub, Opening, Position, Run, Stream
from allim.identity import Visitor
from allim.transports.sse import frames


@dataclass(frozen=True, slots=True)
class StreamDefaults:
    """Values that are the same in every stream of this replica.

    Units: `retry_ms` is the mean; each frame draws between half and one and a half of it.
    """

    replica: str
    heartbeat_s: float
    retry_ms: int
    rng: random.Random = field(default_factory=random.Random)

    def retry(self) -> int:
        return round(self.retry_ms * self.rng.uniform(0.5, 1.5))


class SseStream(Stream):
    """A stream as `text/event-stream`. Subclasses carry the bytes.

    Shape: `proof` is put behind each id of a stream that a ticket opened, so that only its own reader can resume it.
    Its bytes are made for it alone. It is empty for all other streams, which share theirs.
    """

    __slots__ = ("defaults", "hub", "proof")

    def __init__(self, hub: Hub, defaults: StreamDefaults, visitor: Visitor, topics: tuple[str, ...]) -> None:
        super().__init__(hub.new_stream_id(), visitor.identity, topics, hub.new_backlog(), visitor.address)
        self.hub = hub
        self.defaults = defaults
        self.proof = b"~" + visitor.proof.encode() if visitor.proof else b""

    def write(self, run: Run) -> None:
        self.send(run.framed(frames.plain))

    def open(self, opening: Opening) -> None:
        defaults = self.defaults
        self.send(
            frames.opening(self.id, self.subject, defaults.replica, opening, defaults.heartbeat_s, defaults.retry())
        )

    def heartbeat(self, position: Position | None) -> None:
        self.send(frames.heartbeat(position))

    def gap(self, topics: Collection[str], reason: str) -> None:
        self.send(frames.gap(topics, reason))

    def expiring(self, left_s: float) -> None:
        self.send(frames.expiring(left_s))

    def close(self, reason: CloseReason) -> None:
        if self.ended:
            return
        self.close_reason = reason
        self.finish(frames.close(reason, self.defaults.retry()) if reason.told else None)

    @abstractmethod
    def send(self, frames: bytes) -> None:
        """Give frames to the connection, with the proof in them. Returns at once."""

    @abstractmethod
    def finish(self, last: bytes | None) -> None:
        """End the connection: with this frame, after all written bytes; or, with None, at once."""
