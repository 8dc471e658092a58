"""allim as a contender: one replica over Redis, signed-in streams. Limits are high, and nothing is switched off."""

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.replicas import PUBLISH_KEY, Replica, replica, token

from bench.contender import Contender, Running
from bench.generator import compact

MANY = 10_000_000
SETTINGS: dict[str, Any] = {
    "stream_lifetime_s": 3600,
    "streams_per_address": 1_000_000,
    "publish_events_per_s": MANY,
    "user_calls_per_min": MANY,
    "address_calls_per_min": MANY,
}
COMMAND = " ".join(
    ["ALLIM_REDIS_URL=redis://… ALLIM_SECRET_KEY=… ALLIM_PUBLISH_KEYS=…"]
    + [f"ALLIM_{name.upper()}={value}" for name, value in SETTINGS.items()]
)


def stream_request(user: int) -> bytes:
    """A token of the user's own session opens the stream; the topics are `user:u<n>` and `system`."""
    return f"GET /events HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token(_name(user))}\r\n\r\n".encode()


def publish_request(user: int | str | None, values: Sequence[object]) -> bytes:
    topic = "system" if user is None else f"user:{_name(user)}"
    events = [{"topic": topic, "type": "bench", "data": value} for value in values]
    return post(compact(events[0] if len(events) == 1 else events).encode())


def post(body: bytes) -> bytes:
    """The raw request that publishes what the body holds."""
    head = (
        f"POST /api/publish HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {PUBLISH_KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def versions() -> str:
    parts = [f"{name} {version(name)}" for name in ("allim", "starlette", "uvicorn", "redis", "hiredis")]
    return ", ".join([*parts, f"Python {platform.python_version()}"])


@contextmanager
def handover(folder: Path, redis_url: str) -> Iterator[Running]:
    with replica(folder=folder, redis_url=redis_url, **SETTINGS) as server:
        yield _running(server)


@contextmanager
def portable(folder: Path, redis_url: str) -> Iterator[Running]:
    with replica(portable=True, folder=folder, redis_url=redis_url, **SETTINGS) as server:
        yield _running(server)


def _running(server: Replica) -> Running:
    return Running(server.port, lambda: [server.process.pid], stream_request, publish_request, 202)


def _name(user: str | int) -> str:
    return user if isinstance(user, str) else f"u{user}"


CAN = frozenset({"idle", "broadcast", "publish", "batch", "paced", "resume"})
ALLIM = Contender("allim", handover, CAN, versions, f"{COMMAND} allim serve")
PORTABLE = Contender(
    "allim, the portable way", portable, CAN, versions, f"{COMMAND} uvicorn --factory allim.app:create_app"
)
