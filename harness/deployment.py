"""A whole deployment under a test's hand: nginx, replicas, fault proxies and Redis, each of which may break.

    followers → nginx → replica 0 → proxy 0 ┐
                      → replica 1 → proxy 1 ┼→ Redis
                      → replica 2 → proxy 2 ┘

`harness/cluster.py` runs `allim up` as a user would; here every process is ours, so that nobody restarts it unasked.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from allim.up import find_program, nginx_command, write_nginx
from harness.leaks import inspect
from harness.proxy import FaultProxy, fault_proxy
from harness.replicas import Replica, launch_replica
from harness.servers import Redis, lasting_port, redis_server
from harness.waiting import START_S, accepts, until_sync


@dataclass
class Nginx:
    """nginx from the project's template, with its workers in a process group of their own.

    `changed` are texts of the configuration, and what stands in their place; `origins` are those of pages,
    `trusted` are proxies in front.
    """

    port: int
    folder: Path
    log: Path
    changed: Mapping[str, str] = field(default_factory=dict)
    origins: Sequence[str] = ()
    trusted: Sequence[str] = ()
    process: "subprocess.Popen[bytes]" = field(init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def configure(self, *ports: int) -> None:
        """Write the configuration for replicas at these ports."""
        written = self.folder / "written"
        self.folder.mkdir(exist_ok=True)
        servers = [f"127.0.0.1:{port}" for port in ports]
        listen = f"127.0.0.1:{self.port}"
        write_nginx(written, listen=listen, servers=servers, origins=self.origins, trusted=self.trusted)
        text = (written / "nginx.conf").read_text()
        shutil.rmtree(written)
        for name, value in self.changed.items():
            assert name in text, name
            text = text.replace(name, value)
        (self.folder / "nginx.conf").write_text(text)

    def start(self) -> None:
        command = nginx_command(find_program("nginx", os.environ), self.folder)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        until_sync(lambda: accepts(self.port), START_S, what=f"nginx: {self.log.read_text()[-2000:]}")

    def workers(self) -> set[int]:
        """The processes of all workers, also of those that only wait for their last streams."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return set(map(int, children.split()))

    def reload(self) -> None:
        """New workers take what comes; the old ones keep their streams until these end."""
        old = self.workers()
        self.process.send_signal(signal.SIGHUP)
        until_sync(lambda: self.workers() - old and all(map(_leaves, old)), what="new workers")

    def kill(self) -> None:
        """kill -9 for the master and every worker."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)
        inspect(self.log)


def _leaves(worker: int) -> bool:
    """Whether a worker of nginx accepts no more connections, or has ended."""
    try:
        return b"shutting down" in Path(f"/proc/{worker}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it ended before the file was opened, or read
        return True


@dataclass
class Deployment:
    """Shape: `proxies[i]` stands between `replicas[i]` and Redis; empty and None for what was not asked for."""

    folder: Path
    redis: Redis
    proxies: list[FaultProxy]
    replicas: list[Replica]
    nginx: Nginx | None

    @property
    def url(self) -> str:
        """Where clients go: nginx, or the only replica."""
        return self.nginx.url if self.nginx else self.replicas[0].url

    @property
    def urls(self) -> list[str]:
        return [replica.url for replica in self.replicas]

    def until_ready(self, timeout_s: float = START_S) -> None:
        for replica in self.replicas:
            replica.until_ready(timeout_s)

    def heal(self) -> None:
        """Bring everything back that may have been broken, data apart, and wait until it is ready."""
        self.redis.resume()
        if self.redis.process.poll() is not None:
            self.redis.start()
        for proxy in self.proxies:
            proxy.heal()
        for replica in self.replicas:
            replica.resume()
            if replica.process.poll() is not None:
                replica.start()
        if self.nginx and self.nginx.process.poll() is not None:
            self.nginx.start()
        self.until_ready()


@contextmanager
def deployment(
    replicas: int = 3,
    *,
    redis: Redis | None = None,
    redis_options: Sequence[str] = (),
    proxied: bool = True,
    nginx: bool = True,
    nginx_changed: Mapping[str, str] | None = None,
    nginx_trusted: Sequence[str] = (),
    folder: Path | None = None,
    **settings: Any,
) -> Iterator[Deployment]:
    """Replicas of one deployment, ready, over a Redis of their own unless one is given.

    `folder` is kept with all logs, where one is given.
    """
    home = folder or Path(tempfile.mkdtemp(prefix="allim-deployment-"))
    if os.geteuid() == 0:
        home.chmod(0o711)  # nginx's workers run as nobody and have to reach their folder
    with ExitStack() as stack:
        if folder is None:
            stack.callback(shutil.rmtree, home, ignore_errors=True)
        server = redis or stack.enter_context(redis_server(*redis_options))
        proxies = [
            stack.enter_context(fault_proxy(server.port, port=lasting_port()))
            for _ in range(replicas if proxied else 0)
        ]
        ports = [proxy.port for proxy in proxies] or [server.port] * replicas
        running = []
        for port in ports:
            url = _at_port(server.url, port)
            running.append(launch_replica(home, redis_url=url, **settings))
            stack.callback(running[-1].end)
        origins = str(settings.get("cors_origins", "")).split(",")
        where = lasting_port(), home / "nginx", home / "nginx.log"
        front = Nginx(*where, nginx_changed or {}, origins, nginx_trusted) if nginx else None
        if front:
            front.configure(*(replica.port for replica in running))
            front.start()
            stack.callback(front.end)
        deployed = Deployment(home, server, proxies, running, front)
        deployed.until_ready()
        yield deployed


def _at_port(url: str, port: int) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.hostname}:{port}"))
