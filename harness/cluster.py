"""The whole system: nginx, Redis and replicas, as `allim up` starts them."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from harness.leaks import inspect
from harness.replicas import PUBLISH_KEY, ROOT, SECRET, Replica
from harness.servers import end, free_port
from harness.waiting import START_S, until_sync


@dataclass
class Member(Replica):
    """One replica of a cluster. `process` and `log` are those of the whole cluster."""

    name: str = ""

    @property
    def pid(self) -> int | None:
        """The process that serves this port now; another one after each kill."""
        wanted = ["serve", "--host", "127.0.0.1", "--port", str(self.port)]
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it ended meanwhile
                if path.read_bytes().decode(errors="replace").split("\0")[-7:-1][-len(wanted) :] == wanted:
                    return int(path.parent.name)
        return None

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """kill -9. supervisord starts it again, in its own time."""
        pid = self.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until_sync(lambda: self.pid != pid, what=f"{self.name} gone")

    @contextmanager
    def down(self) -> Iterator[None]:
        """kill -9, and what supervisord starts instead is frozen before it can do anything."""
        self.kill()
        successor = until_sync(lambda: self.pid, timeout_s=START_S, what=f"{self.name} started again")
        assert successor is not None
        os.kill(successor, signal.SIGSTOP)
        assert not self.ready()
        try:
            yield
        finally:
            os.kill(successor, signal.SIGKILL)


@dataclass
class Cluster:
    """A running system; `url` is nginx."""

    url: str
    members: list[Member]
    database: Path
    process: "subprocess.Popen[bytes]"
    output: Path
    addresses: dict[str, str] = field(default_factory=dict)

    def member(self, name: str) -> Member:
        return next(member for member in self.members if member.name == name)

    def others(self, *names: str) -> list[Member]:
        return [member for member in self.members if member.name not in names]

    def until_whole(self) -> None:
        """Wait until every replica is ready, after one was killed."""
        for member in self.members:
            until_sync(member.ready, timeout_s=START_S, what=f"{member.name} ready: {self.said()[-3000:]}")

    def said(self) -> str:
        return self.output.read_text(errors="replace")


@contextmanager
def cluster(replicas: int = 3, **settings: object) -> Iterator[Cluster]:
    """`allim up --replicas N` with a data folder of its own, ready; ended by SIGTERM."""
    folder = Path(tempfile.mkdtemp(prefix="allim-cluster-"))
    environ = {
        **{name: value for name, value in os.environ.items() if name != "ALLIM_REDIS_URL"},
        "ALLIM_DATA_DIR": str(folder / "data"),
        "ALLIM_SECRET_KEY": SECRET,
        "ALLIM_PUBLISH_KEYS": f"tests:{PUBLISH_KEY}",
        "ALLIM_PULSE_S": "0.5",
        "ALLIM_HEARTBEAT_S": "1",
        "ALLIM_DRAIN_S": "1",
        **{f"ALLIM_{name.upper()}": str(value) for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "allim", "up", "--replicas", str(replicas), "--port", str(free_port())]
    output = folder / "output"
    with output.open("wb") as out:
        process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(inspect, output)
        stack.callback(end, process, timeout_s=40)
        yield started(process, output, folder / "data" / "allim.db")


def started(process: "subprocess.Popen[bytes]", output: Path, database: Path) -> Cluster:
    """Return the cluster of a process that runs `allim up`, once it says that it serves."""

    def said() -> str:
        return output.read_text(errors="replace")

    until_sync(lambda: "Ctrl-C to stop" in said() or process.poll() is not None, timeout_s=START_S, what="allim up")
    assert process.poll() is None, said()
    lines = [line.split() for line in said().splitlines()]
    addresses = {line[0]: line[1] for line in lines if len(line) == 2 and "://" in line[1]}
    members = [
        Member(int(url.rpartition(":")[2]), process, output, name=name)
        for name, url in addresses.items()
        if name.startswith("replica-")
    ]
    return Cluster(addresses["page"].rstrip("/"), members, database, process, output, addresses)
