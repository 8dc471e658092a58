"""A stream that writes into a list: the hub's contract without a connection."""

import itertools
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from allim.client import Message, Parser
from allim.hub import Backlog, CloseReason, HubSettings, Opening, Position, Run, Stream, encode
from allim.identity import Identity
from allim.settings import Settings
from allim.transports.sse import frames

_numbers = itertools.count(1)


def identity(
    subject: str = "42", *topics: str, session: str = "s1", expires_at: float = 4e9, issued_at: float = 0.0
) -> Identity:
    return Identity(subject, session, expires_at, topics, issued_at=issued_at)


def hub_settings(**changed: float) -> HubSettings:
    """The settings of a hub as a replica without any setting has them, but for these."""
    defaults = {
        name: Settings.model_fields[name].default for name in HubSettings.__slots__ if name in Settings.model_fields
    }
    return HubSettings(**{**defaults, "memory_max_bytes": 0, "revocation_s": 30 * 86400, **changed})


class ListStream(Stream):
    """Keeps the bytes of what was written."""

    def __init__(self, *topics: str, backlog_bytes: int = 262_144, who: Identity | None = None) -> None:
        name = f"stream-{next(_numbers)}"
        super().__init__(name, who or identity(), topics or ("user:42", "system"), Backlog(backlog_bytes))
        self.written = bytearray()
        self.heartbeats: list[Position | None] = []
        self.gaps: list[tuple[tuple[str, ...], str]] = []
        self.warnings: list[float] = []
        self.opening: Opening | None = None

    def write(self, run: Run) -> None:
        self.written += run.framed(frames.plain)

    def open(self, opening: Opening) -> None:
        self.opening = opening

    def heartbeat(self, position: Position | None) -> None:
        self.heartbeats.append(position)
        if position is not None:
            self.written += frames.heartbeat(position)

    def expiring(self, left_s: float) -> None:
        self.warnings.append(left_s)

    def gap(self, topics: Collection[str], reason: str) -> None:
        self.gaps.append((tuple(topics), reason))

    def close(self, reason: CloseReason) -> None:
        self.close_reason = self.close_reason or reason

    async def writable(self) -> None:
        return

    @property
    def messages(self) -> list[Message]:
        return [message for message in Parser().feed(bytes(self.written)) if message.type != "heartbeat"]

    @property
    def data(self) -> list[Any]:
        return [message.data for message in self.messages]


@dataclass
class Lines:
    """The stored lines of an event, for tests that speak to a broker directly."""

    type: str
    data: object

    def __bytes__(self) -> bytes:
        return encode(self.type, self.data)

    @staticmethod
    def data_of(lines: bytes) -> Any:
        return json.loads(lines.split(b"data: ", 1)[1])
