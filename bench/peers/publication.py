"""The requests that the three application peers share: `GET /events/<user>` and `POST /publish`."""

from collections.abc import Callable, Sequence

from bench.contender import Running
from bench.peers import requests


def running(port: int, pids: Callable[[], list[int]]) -> Running:
    def publish(user: str | int | None, events: Sequence[object]) -> bytes:
        return requests.post(
            port, "/publish", requests.compact({"user": user, "type": "bench", "events": list(events)})
        )

    return Running(port, pids, lambda user: requests.get(port, f"/events/{user}"), publish, 202)
