"""An ASGI application of `bench/peers/apps` under uvicorn as `uvicorn[standard]` runs it: uvloop and httptools."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.servers import lasting_port

from bench.contender import Running
from bench.peers import publication
from bench.peers.environments import PEERS, python
from bench.peers.processes import process

OPTIONS = ("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning")


@contextmanager
def serve(app: str, folder: Path, redis_url: str) -> Iterator[Running]:
    """One process."""
    port = lasting_port()
    command = [python(), "-m", "uvicorn", "--app-dir", str(PEERS / "apps"), app, "--port", str(port), *OPTIONS]
    with process(command, folder, port, environ={"REDIS_URL": redis_url}) as server:
        yield publication.running(port, lambda: [server.pid])


def by_hand(app: str) -> str:
    return f"REDIS_URL=… uvicorn --app-dir bench/peers/apps {app} {' '.join(OPTIONS)}"
