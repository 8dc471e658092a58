"""What the bench asks of a system under measurement."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Running(NamedTuple):
    """A started contender. Its requests are whole HTTP/1.1 messages."""

    host_port: int
    pids: Callable[[], list[int]]
    stream_request: Callable[[int], bytes]
    publish_request: Callable[[str | None | int, Sequence[object]], bytes]
    answer_ok: int | tuple[int, ...]


@dataclass(frozen=True)
class Contender:
    """One system under measurement; `start(folder, redis_url)` runs it until the context ends."""

    name: str
    start: Callable[[Path, str], AbstractContextManager[Running]]
    can: frozenset[str]
    versions: Callable[[], str]
    command: str
