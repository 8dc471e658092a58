"""Attackers that want a server's sockets, memory or time, and what it costs a signed-in user meanwhile.

    python -m tests.system.attacks --url http://127.0.0.1:8000 --user 42 --token … --attackers FILE --key …

They come from many addresses of 127.0.0.0/8. A wave is one process; the user who is measured is another.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import re
import resource
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx

from allim.client import AsyncPublisher, Subscriber

ADDRESSES = 20  # that a wave comes from
PUBLISH_EVERY_S = 0.2
CHUNK = b"x" * 65536
LAST_CHUNK = b"0\r\n\r\n"  # ends an answer of nginx, which keeps the connection
TOLD = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2}) ")


class Counts(NamedTuple):
    """What became of a wave: `refused` got no connection, `cut` were closed without a word, `open` still hold on."""

    tried: int
    refused: int
    cut: int
    open: int
    answers: dict[int, int]


@dataclass(eq=False)
class Attacker(asyncio.Protocol):
    """One connection, and what it was told."""

    transport: asyncio.Transport | None = None
    heard: bytearray = field(default_factory=bytearray)
    closed: bool = False
    over: bool = False
    writable: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def status(self) -> int | None:
        told = TOLD.match(self.heard)
        return int(told[1]) if told else None

    @property
    def holds_on(self) -> bool:
        """Whether it has what it wants: neither its connection nor its stream is ended, and nothing refused."""
        return self.transport is not None and not (self.closed or self.over) and self.status in {None, 200}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self.over = data.endswith(LAST_CHUNK)
        if len(self.heard) < 64:
            self.heard += data

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.writable.set()

    async def say(self, data: bytes) -> None:
        """Send it, as fast as it is taken."""
        await self.writable.wait()
        if not self.closed and self.transport is not None:
            self.transport.write(data)


Attack = Callable[[Attacker], Awaitable[None]]
"""What one attacker does with its connection, until it is cancelled or has nothing more to do."""


async def wave(url: str, attack: Attack, count: int, hold_s: float, addresses: int = ADDRESSES) -> Counts:
    """So many attackers at once, until all are ended or refused, `hold_s` at most."""
    raise_file_limit()
    attackers = [Attacker() for _ in range(count)]
    host, _, port = urlsplit(url).netloc.partition(":")
    loop = asyncio.get_running_loop()
    at_once = asyncio.Semaphore(500)
    refused = 0

    async def one(number: int, attacker: Attacker) -> None:
        nonlocal refused
        source = (f"127.0.{1 + number % addresses}.1", 0)
        try:
            async with at_once:
                await loop.create_connection(lambda: attacker, host, int(port), local_addr=source)
        except OSError:
            refused += 1
            return
        await attack(attacker)

    tasks = [asyncio.create_task(one(number, attacker)) for number, attacker in enumerate(attackers)]
    deadline = time.monotonic() + hold_s
    while time.monotonic() < deadline and (
        not all(task.done() for task in tasks) or any(a.holds_on for a in attackers)
    ):
        await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    counts = Counts(
        tried=count,
        refused=refused,
        cut=sum(attacker.closed and attacker.status is None for attacker in attackers),
        open=sum(attacker.holds_on for attacker in attackers),
        answers=dict(Counter(attacker.status for attacker in attackers if attacker.status is not None)),
    )
    for attacker in attackers:
        if attacker.transport is not None and not attacker.closed:
            attacker.transport.abort()
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return counts


async def silent(_: Attacker) -> None:
    """Say nothing."""


async def trickle(attacker: Attacker) -> None:
    """A head that never ends, a byte per second."""
    await attacker.say(b"GET /events HTTP/1.1\r\nHost: allim.test\r\nX-Endless: ")
    while not attacker.closed:
        await attacker.say(b"x")
        await asyncio.sleep(1)


async def stream(attacker: Attacker, token: str, query: str = "") -> None:
    """A stream like any other."""
    await attacker.say(
        f"GET /events{query} HTTP/1.1\r\nHost: allim.test\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    )


def streams_of(tokens: Sequence[str]) -> Attack:
    """Streams of these users, in turn."""
    turns = itertools.cycle(tokens)

    async def one(attacker: Attacker) -> None:
        await stream(attacker, next(turns))

    return one


async def body(attacker: Attacker, size: int = 64 << 20, *, announced: bool = True) -> None:
    """A body far over every limit, sent as fast as it is taken and until there is an answer."""
    length = b"Content-Length: %d" % size if announced else b"Transfer-Encoding: chunked"
    await attacker.say(
        b"POST /api/session HTTP/1.1\r\nHost: allim.test\r\nContent-Type: application/json\r\n%b\r\n\r\n" % length
    )
    chunk = CHUNK if announced else b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK)
    for _ in range(size // len(CHUNK)):
        if attacker.closed or attacker.heard:
            return
        await attacker.say(chunk)
        await asyncio.sleep(0)


async def slow_body(attacker: Attacker) -> None:
    """A body of which a byte comes now and then."""
    await attacker.say(b"POST /api/session HTTP/1.1\r\nHost: allim.test\r\nContent-Length: 1000\r\n\r\n")
    while not attacker.closed and not attacker.heard:
        await attacker.say(b"{")
        await asyncio.sleep(5)


async def head(attacker: Attacker, size: int = 1 << 20) -> None:
    """Headers far over every limit."""
    await attacker.say(b"GET /events HTTP/1.1\r\nHost: allim.test\r\n")
    for number in range(size // 8192):
        if attacker.closed or attacker.heard:
            return
        await attacker.say(b"X-%d: %b\r\n" % (number, b"x" * 8180))
        await asyncio.sleep(0)


def many_topics(token: str, count: int = 10_000) -> Attack:
    """A stream of ten thousand topics."""
    return partial(stream, token=token, query="?topics=" + ",".join(f"board:{number}" for number in range(count)))


# -- The user meanwhile --------------------------------------------------------------------------------------------


class Latency(NamedTuple):
    """Units: seconds from the beginning of a publish to its event's arrival. `lost` never arrived."""

    p50_s: float
    p99_s: float
    most_s: float
    events: int
    lost: int


async def under(
    attacks: Sequence[Awaitable[Counts]], watched: "Watched", for_s: float
) -> tuple[list[Counts], Latency]:
    """Run these waves, and what a signed-in user sees for at least so long, from before they begin."""
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        await loop.run_in_executor(pool, time.time)  # the process is up
        watching = loop.run_in_executor(pool, watch, watched, for_s)
        counts = await asyncio.gather(*attacks)
        return list(counts), await watching


class Watched(NamedTuple):
    """The user who is not to notice: `user` names the topic, `key` publishes."""

    url: str
    user: str
    token: str
    key: str


def watch(watched: Watched, for_s: float) -> Latency:
    """Publish to the user every 200 ms, and measure until each event is read."""
    return asyncio.run(_watch(watched, for_s))


async def _watch(watched: Watched, for_s: float) -> Latency:
    sent: dict[int, float] = {}
    took: dict[int, float] = {}
    opened = asyncio.Event()

    async def read(subscriber: Subscriber) -> None:
        async for message in subscriber:
            opened.set()
            if message.type == "attacks.probe" and message.data in sent:
                took.setdefault(message.data, time.monotonic() - sent[message.data])

    async with (
        Subscriber(watched.url, watched.token) as subscriber,
        AsyncPublisher(watched.url, watched.key, timeout_s=50) as publisher,  # an attack may be slow
    ):
        reading = asyncio.create_task(read(subscriber))
        await asyncio.wait_for(opened.wait(), 20)
        publishing = []
        for number in range(round(for_s / PUBLISH_EVERY_S)):
            sent[number] = time.monotonic()
            probe = publisher.publish(f"user:{watched.user}", "attacks.probe", number)
            publishing.append(asyncio.create_task(probe))
            await asyncio.sleep(PUBLISH_EVERY_S)
        await asyncio.gather(*publishing)
        deadline = time.monotonic() + 10
        while len(took) < len(sent) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
    times = sorted(took.values()) or [float("inf")]
    return Latency(times[len(times) // 2], times[len(times) * 99 // 100], times[-1], len(sent), len(sent) - len(took))


def rss_mib(pid: int) -> float:
    """Memory of a process that is in use."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# -- By hand -------------------------------------------------------------------------------------------------------


async def report(
    watched: Watched, attackers: Sequence[str], sockets: int, hold_s: float, pids: Sequence[int]
) -> None:
    """Every attack in full size, one after the other. `attackers` are tokens of other users."""
    attacks: dict[str, tuple[Attack, int, int]] = {
        "silent sockets": (silent, sockets, ADDRESSES),
        "a header byte per second": (trickle, sockets, ADDRESSES),
        "streams of one user from one address": (streams_of(attackers[:1]), 1000, 1),
        "streams of many users from one address": (streams_of(attackers), 1000, 1),
        "64 MiB bodies": (body, 100, ADDRESSES),
        "64 MiB bodies in chunks": (partial(body, announced=False), 100, ADDRESSES),
        "1 MiB heads": (head, 500, ADDRESSES),
        "10,000 topics": (many_topics(attackers[0]), 500, ADDRESSES),
    }
    for name, (attack, count, addresses) in attacks.items():
        before = [rss_mib(pid) for pid in pids]
        most = list(before)
        watching = asyncio.create_task(_note_most(pids, most))
        waves = [wave(watched.url, attack, count, hold_s, addresses)]
        (counts,), latency = await under(waves, watched, hold_s)
        watching.cancel()
        _show(f"{name}: {json.dumps(counts._asdict())}")
        _show(f"    {latency}")
        grown = (f"{pid}: {was:.0f} to {top:.0f}" for pid, was, top in zip(pids, before, most, strict=True))
        _show(f"    MiB {', '.join(grown)}")


async def _note_most(pids: Sequence[int], most: list[float]) -> None:
    while True:
        most[:] = [max(top, rss_mib(pid)) for top, pid in zip(most, pids, strict=True)]
        await asyncio.sleep(0.2)


def _show(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - this is what it is run for


def main() -> None:
    parser = argparse.ArgumentParser(description="Attack a deployment of your own.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--user", default="42", help="whose token it is")
    parser.add_argument("--token", required=True)
    parser.add_argument("--attackers", type=Path, required=True, help="a file with tokens of other users, one a line")
    parser.add_argument("--key", required=True, help="a publish key")
    parser.add_argument("--sockets", type=int, default=10_000)
    parser.add_argument("--hold-s", type=float, default=30)
    parser.add_argument("--pids", default="", help="processes whose memory is measured, separated by commas")
    told = parser.parse_args()
    pids = [int(pid) for pid in told.pids.split(",") if pid]
    assert httpx.get(f"{told.url}/readyz").status_code == 200, "not ready"
    watched = Watched(told.url, told.user, told.token, told.key)
    asyncio.run(report(watched, told.attackers.read_text().split(), told.sockets, told.hold_s, pids))


if __name__ == "__main__":
    main()
