"""Two replicas of one system, quick to notice, and publishes of one event to them."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from harness.replicas import Replica, replica

TOPICS = ("user:42", "system")


@contextmanager
def two_replicas(
    redis_url: str, other: Mapping[str, object] | None = None, **settings: object
) -> Iterator[tuple[Replica, Replica]]:
    """Shape: `other` holds settings that the second replica has for itself."""
    first: dict[str, Any] = {"pulse_s": 0.2, "heartbeat_s": 1, "history_events": 10_000, "drain_s": 0}
    first |= {"redis_url": redis_url, **settings}
    with replica(**first) as one, replica(**{**first, **(other or {})}) as two:
        yield one, two
        for running in (one, two):
            running.process.kill()  # leaving gracefully takes seconds and is not the subject here


def publish(to: Replica, data: str) -> str:
    """One event, accepted at once; its position."""
    answer = to.publish(("user:42", "t", data))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def publish_until_accepted(to: Replica, data: str, timeout_s: float = 60.0) -> str:
    """Try under one key, the same for the same data, until it is accepted; the position."""
    deadline = time.monotonic() + timeout_s
    key = data.replace(" ", "-")
    while (answer := to.publish(("user:42", "t", data), idempotency_key=key)).status_code != 202:
        assert (answer.status_code, time.monotonic() < deadline) == (503, True), answer.text
    return str(answer.json()["id"])
