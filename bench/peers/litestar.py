"""Litestar's `ChannelsPlugin` with `ServerSentEvent`: a channel per user and one for everyone.

Its documentation has two Redis backends. Measured is Pub/Sub, the cheaper one with many users: the other, with
history, names every subscribed channel in each XREAD and asks again each millisecond.
In its favour: uvloop and httptools, no access log, no sign-in, no history: a publish is a bare PUBLISH.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.contender import Contender, Running
from bench.peers.environments import python_versions
from bench.peers.uvicorn import by_hand, serve

APP = "litestar_channels:app"


@contextmanager
def start(folder: Path, redis_url: str) -> Iterator[Running]:
    with serve(APP, folder, redis_url) as running:
        yield running


LITESTAR = Contender(
    name="Litestar channels",
    start=start,
    can=frozenset({"idle", "broadcast", "publish", "batch", "paced"}),
    versions=lambda: python_versions("litestar", "uvicorn", "uvloop", "redis"),
    command=by_hand(APP),
)
