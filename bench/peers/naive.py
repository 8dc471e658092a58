"""Starlette with sse-starlette, as most tutorials write it.

A queue per stream, the JSON encoded again for each stream, one Redis channel that every replica hears in full, a
comment to each stream every 15 s (sse-starlette's default).
In its favour: uvloop and httptools, no access log, no sign-in, no history: a publish is a bare PUBLISH.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.contender import Contender, Running
from bench.peers.environments import python_versions
from bench.peers.uvicorn import by_hand, serve

APP = "naive:app"


@contextmanager
def start(folder: Path, redis_url: str) -> Iterator[Running]:
    with serve(APP, folder, redis_url) as running:
        yield running


NAIVE = Contender(
    name="sse-starlette, a queue per stream",
    start=start,
    can=frozenset({"idle", "broadcast", "publish", "batch", "paced"}),
    versions=lambda: python_versions("sse-starlette", "starlette", "uvicorn", "uvloop", "redis"),
    command=by_hand(APP),
)
