"""What a system must offer to be measured. Here is no measuring, and nothing of any one system."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Running(NamedTuple):
    """A contender that runs.

    Shape: `stream_request(n)` is the whole raw HTTP/1.1 request that opens user n's stream, of the user's own topic
    and the one for everyone. `publish_request(n, values)` is the whole raw request that publishes these JSON values
    as events of type "bench" to user n, or to everyone when n is None; it keeps the connection alive, and has several
    values only where the contender can "batch". `answer_ok` is the status, or the statuses, of a good publish.
    `pids` are the server processes whose CPU and memory count: workers, not Redis.
    """

    host_port: int
    pids: Callable[[], list[int]]
    stream_request: Callable[[int], bytes]
    publish_request: Callable[[int | str | None, Sequence[object]], bytes]
    answer_ok: int | tuple[int, ...]


@dataclass(frozen=True)
class Contender:
    """One system under measurement.

    Shape: `name` as in the table; `start(folder, redis_url)` runs it until the context ends. `can` is of "idle",
    "broadcast", "publish", "batch", "paced", "resume" (a stream with `Last-Event-ID` gets what came after it): what
    it cannot do is said in the table. `versions` is one line, `command` is how one starts it by hand.
    """

    name: str
    start: Callable[[Path, str], AbstractContextManager[Running]]
    can: frozenset[str]
    versions: Callable[[], str]
    command: str
