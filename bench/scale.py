"""How replicas scale over one Redis: what an event costs those that publish, hear or ignore it, Redis, and nginx.

    python -m bench.scale [--quick]

1, 2 and 4 replicas, signed-in streams spread over them. CPU time is the kernel's, per process (schedstat), so that it
says the same on a machine with fewer cores than processes; only "events/s here" depends on the cores. Every event has
to arrive, once. The last table is what `src/allim/plan/figures.py` computes with.
"""

import asyncio
import itertools
import json
import os
import platform
import resource
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click
from harness.deployment import Deployment, deployment
from harness.replicas import token
from harness.waiting import until

from bench import allim
from bench.measure import memory_kib

SETTINGS: dict[str, Any] = {**allim.SETTINGS, "log_level": "warning"}
REPLICAS = (1, 2, 4)
AT_ONCE = 32  # requests to each replica: under load, calls of one turn of the loop share a pipeline
BATCHES_AT_ONCE = 4
MARK, GAP = b"\nevent: bench\n", b"t: stream.gap\n"  # of one length: what is kept of a read holds neither whole
DATA = {"p": "x" * 190}  # 200 bytes of JSON
BATCH = 1000


class Sizes(NamedTuple):
    """How much is measured. `foreign` are events that one replica has nothing to do with."""

    streams: int
    singles: int
    batches: int
    broadcasts: int
    foreign: int


FULL = Sizes(streams=1200, singles=20_000, batches=40, broadcasts=400, foreign=100_000)
QUICK = Sizes(streams=400, singles=2_000, batches=6, broadcasts=50, foreign=20_000)


class Cpu(NamedTuple):
    """Units: seconds of CPU time, and of the clock."""

    replicas: tuple[float, ...]
    redis: float
    nginx: float
    clock: float

    def since(self, before: "Cpu") -> "Cpu":
        each = (now - then for now, then in zip(self.replicas, before.replicas, strict=True))
        return Cpu(tuple(each), *(now - then for now, then in zip(self[1:], before[1:], strict=True)))


@dataclass
class Followers:
    """All open streams, how many events they got, and how many were told a gap or ended."""

    got: int = 0
    opened: int = 0
    gaps: int = 0
    ended: int = 0
    transports: list[asyncio.Transport] = field(default_factory=list, repr=False)

    async def open(self, ports: Sequence[int], who: Iterable[str], query: str = "") -> None:
        loop = asyncio.get_running_loop()
        gate = asyncio.Semaphore(50)

        async def open_one(port: int, user: str) -> None:
            async with gate:
                follower = Follower(self)
                transport, _ = await loop.create_connection(lambda: follower, "127.0.0.1", port)
                self.transports.append(transport)
                # To HTTP/1.0 nginx sends no chunks, whose sizes could stand within what is counted.
                head = f"GET /events{query} HTTP/1.0\r\nHost: bench\r\nAuthorization: Bearer {user}\r\n\r\n"
                transport.write(head.encode())
                await asyncio.wait_for(follower.open, 30)
                self.opened += 1

        await asyncio.gather(*(open_one(ports[n % len(ports)], user) for n, user in enumerate(who)))


class Follower(asyncio.Protocol):
    """One stream; it only counts."""

    def __init__(self, all_of_them: Followers) -> None:
        self.all = all_of_them
        self.open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.tail = b""

    def data_received(self, data: bytes) -> None:
        text = self.tail + data
        if not self.open.done() and b"event: stream.open\n" in text:
            self.open.set_result(None)
        self.all.got += text.count(MARK)
        self.all.gaps += text.count(GAP)
        self.tail = text[1 - len(MARK) :]

    def connection_lost(self, exc: Exception | None) -> None:
        self.all.ended += 1


@dataclass
class Bench:
    """A deployment under measurement, with its followers."""

    deployed: Deployment
    followers: Followers = field(default_factory=Followers)

    @property
    def ports(self) -> list[int]:
        if self.deployed.nginx:
            return [self.deployed.nginx.port]
        return [replica.port for replica in self.deployed.replicas]

    def cpu(self) -> Cpu:
        nginx = self.deployed.nginx
        return Cpu(
            tuple(cpu_s(replica.process.pid) for replica in self.deployed.replicas),
            cpu_s(self.deployed.redis.process.pid),
            sum(map(cpu_s, nginx.workers())) if nginx else 0.0,
            time.monotonic(),
        )

    async def open(self, streams: int, ports: Sequence[int] | None = None) -> Cpu:
        """Streams of `user:u0`, `user:u1`, …, spread over all replicas."""
        tokens = [token(f"u{number}") for number in range(streams)]  # before it is measured
        before = self.cpu()
        await self.followers.open(ports or self.ports, tokens)
        await asyncio.sleep(0.2)
        return self.cpu().since(before)

    async def publish(self, bodies: Sequence[bytes], deliveries: int, connections: Sequence[int] = ()) -> Cpu:
        """Publish each body in a request of its own, and wait until all was delivered.

        Shape: `connections` are the ports to which one is made each, with one request under way; without them as many
        as make calls share pipelines.
        Raises: AssertionError when an event is lost or comes twice.
        """
        wanted = self.followers.got + deliveries
        waiting = iter(bodies)
        if not connections:
            connections = self.ports * (BATCHES_AT_ONCE if bodies[0].startswith(b"[") else AT_ONCE)
        before = self.cpu()
        await asyncio.gather(*(_publish(port, waiting) for port in connections))
        await until(lambda: self.followers.got >= wanted or self.followers.ended, 60, f"{deliveries} deliveries")
        spent = self.cpu().since(before)
        await asyncio.sleep(0.05)
        assert not self.followers.gaps + self.followers.ended, f"streams had gaps or ended: {self.followers}"
        assert self.followers.got == wanted, f"{self.followers.got - wanted} events more than were published"
        return spent


async def _publish(port: int, waiting: Iterable[bytes]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for body in waiting:
        writer.write(allim.post(body))
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert answer.startswith(b"http/1.1 202"), answer
        await reader.readexactly(int(answer.split(b"content-length: ")[1].split(b"\r")[0]))
    writer.close()


def event(topic: str) -> dict[str, object]:
    return {"topic": topic, "type": "bench", "data": DATA}


def singles(count: int, users: int) -> list[bytes]:
    return [json.dumps(event(f"user:u{number % users}")).encode() for number in range(count)]


def batches(count: int, topics: Sequence[str]) -> list[bytes]:
    events = [event(topics[number % len(topics)]) for number in range(BATCH)]
    return [json.dumps(events).encode()] * count


def cpu_s(pid: int) -> float:
    """CPU time of all threads, from the scheduler's own clock: `stat` counts in hundredths."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


# What is measured --------------------------------------------------------------------------------------------


@dataclass
class Costs:
    """Of one number of replicas. Units: µs of CPU time per event, opening or hearing; all replicas together."""

    replicas: int
    per_s: float
    opening: float
    single: float
    batched: float
    shared: float  # an event that every replica hears and writes to one stream
    written: float  # one more write of it
    redis_opening: float
    redis_single: float
    redis_batched: float
    redis_shared: float


async def scaled(replicas: int, sizes: Sizes) -> Costs:
    async with started(replicas) as bench:
        opened = await bench.open(sizes.streams)
        shared = [token(f"shared-{n}", topics=["shared"]) for n in range(replicas)]
        await bench.followers.open(bench.ports, shared, "?topics=shared")
        await bench.publish(singles(500, sizes.streams), 500)
        single = await bench.publish(singles(sizes.singles, sizes.streams), sizes.singles)
        count = sizes.batches * BATCH
        users = [f"user:u{number}" for number in range(sizes.streams)]
        batched = await bench.publish(batches(sizes.batches, users), count)
        # One at a time: all of it is for one stream, whose buffer holds one.
        heard = await bench.publish(batches(sizes.batches, ["shared"]), count * replicas, bench.ports[:1])
        system = [json.dumps(event("system")).encode()] * sizes.broadcasts
        written = await bench.publish(system, sizes.broadcasts * bench.followers.opened)
        return Costs(
            replicas,
            sizes.singles / single.clock,
            _us(opened.replicas, sizes.streams),
            _us(single.replicas, sizes.singles),
            _us(batched.replicas, count),
            _us(heard.replicas, count),
            _us(written.replicas, sizes.broadcasts * bench.followers.opened),
            _us([opened.redis], sizes.streams),
            _us([single.redis], sizes.singles),
            _us([batched.redis], count),
            _us([heard.redis], count),
        )


class Uninvolved(NamedTuple):
    """Units: seconds of CPU time of the replica that has nothing to do with the events, and of the one that has."""

    clock_s: float
    idle: float
    foreign: float
    involved: float


async def uninvolved(sizes: Sizes) -> Uninvolved:
    """Two replicas with streams; all events are published on the first, for streams of the first."""
    async with started(2) as bench:
        first, second = bench.ports
        await bench.open(200, [first])
        await bench.followers.open([second], [token(f"other-{number}") for number in range(200)])
        bodies = batches(sizes.foreign // BATCH, [f"user:u{number}" for number in range(200)])
        spent = await bench.publish(bodies, len(bodies) * BATCH, [first] * BATCHES_AT_ONCE)
        before = bench.cpu()
        await asyncio.sleep(spent.clock)
        idle = bench.cpu().since(before)
        return Uninvolved(spent.clock, idle.replicas[1], spent.replicas[1], spent.replicas[0])


class Front(NamedTuple):
    """nginx. Units: µs of CPU time; KiB."""

    opening: float
    request: float
    write: float
    stream_kib: float


async def through_nginx(sizes: Sizes) -> Front:
    async with started(1, nginx=True) as bench:
        nginx = bench.deployed.nginx
        assert nginx
        await bench.publish(singles(500, 1), 0)
        before_kib = sum(memory_kib([pid]) for pid in nginx.workers())
        opened = await bench.open(sizes.streams)
        after_kib = sum(memory_kib([pid]) for pid in nginx.workers())
        single = await bench.publish(singles(sizes.singles // 2, sizes.streams), sizes.singles // 2)
        writes = sizes.broadcasts * sizes.streams
        system = [json.dumps(event("system")).encode()] * sizes.broadcasts
        written = await bench.publish(system, writes)
        return Front(
            _us([opened.nginx], sizes.streams),
            _us([single.nginx], sizes.singles // 2),
            _us([written.nginx], writes),
            (after_kib - before_kib) / sizes.streams,
        )


class Kept(NamedTuple):
    """Redis' memory. Units: bytes. `entry` is beside an event's data."""

    topic: float
    entry: float
    stream: float
    key: float


async def kept(sizes: Sizes) -> Kept:
    async with started(1) as bench:
        with bench.deployed.redis.client() as redis:

            def used() -> int:
                return int(redis.info("memory")["used_memory"])

            await bench.publish(batches(1, ["warm"]), 0)
            marks = [used()]
            await bench.publish(batches(1, [f"few:{number}" for number in range(BATCH)]), 0)
            marks.append(used())
            await bench.publish(batches(32, [f"many:{number}" for number in range(125)]), 0)
            marks.append(used())
            await bench.open(sizes.streams)
            marks.append(used())
            for number in range(500):
                bench.deployed.replicas[0].publish(("warm", "bench", DATA), idempotency_key=f"k{number}")
            marks.append(used())
        topic, entries, streams, keys = (now - then for then, now in itertools.pairwise(marks))
        data = len(json.dumps(DATA, separators=(",", ":")))
        return Kept(topic / BATCH, entries / 32 / BATCH - data, streams / sizes.streams, keys / 500)


@asynccontextmanager
async def started(replicas: int, *, nginx: bool = False) -> AsyncIterator[Bench]:
    with deployment(replicas, proxied=False, nginx=nginx, **SETTINGS) as deployed:
        bench = Bench(deployed)
        try:
            yield bench
        finally:
            for transport in bench.followers.transports:
                transport.abort()
            await asyncio.sleep(0.1)


def _us(cpu_s: Sequence[float], count: int) -> float:
    return sum(cpu_s) / count * 1e6


# What is printed ---------------------------------------------------------------------------------------------


async def measure(sizes: Sizes) -> str:
    """All of it, as text."""
    costs = [await scaled(replicas, sizes) for replicas in REPLICAS]
    alone = await uninvolved(sizes)
    front = await through_nginx(sizes)
    memory = await kept(sizes)
    return "\n".join([*_table(costs), "", *_alone(alone, sizes), "", *_figures(costs, front, memory)])


def _table(costs: Sequence[Costs]) -> list[str]:
    names = {
        "per_s": "events/s here, one per request",
        "single": "one event per request, to one stream: replicas",
        "redis_single": "  Redis",
        "batched": "1,000 events per request, to one stream each: replicas",
        "redis_batched": "  Redis",
        "shared": "an event that every replica hears: replicas",
        "redis_shared": "  Redis",
        "written": "a write of a broadcast",
        "opening": "opening a stream: replica",
        "redis_opening": "  Redis",
    }
    head = f"{'µs of CPU time per event':<56}" + "".join(f"{cost.replicas:>4} repl." for cost in costs)
    rows = (
        f"{text:<56}" + "".join(f"{getattr(cost, name):>10,.1f}" for cost in costs) for name, text in names.items()
    )
    return [head, *rows]


def _alone(alone: Uninvolved, sizes: Sizes) -> list[str]:
    return [
        f"a replica with 200 streams, for {alone.clock_s:.1f} s: {1000 * alone.idle:.1f} ms of CPU idle,"
        f" {1000 * alone.foreign:.1f} ms during {sizes.foreign:,} events that are not its own",
        f"(the replica they are for: {1000 * alone.involved:.0f} ms)",
    ]


def _figures(costs: Sequence[Costs], front: Front, memory: Kept) -> list[str]:
    one, most = costs[0], costs[-1]
    further = most.replicas - 1
    figures = {
        "rest_events_per_cpu_s": 1e6 / most.single,
        "batch_events_per_cpu_s": 1e6 / most.batched,
        "heard_events_per_cpu_s": 1e6 * further / (most.shared - one.shared),
        "writes_per_cpu_s": 1e6 / one.written,
        "openings_per_cpu_s": 1e6 / one.opening,
        "redis_publish_us": one.redis_batched,
        "redis_push_us": (most.redis_shared - one.redis_shared) / further,
        "redis_request_us": one.redis_single - one.redis_batched,
        "redis_opening_us": one.redis_opening,
        "redis_topic_bytes": memory.topic,
        "redis_entry_bytes": memory.entry,
        "redis_stream_bytes": memory.stream,
        "redis_key_bytes": memory.key,
        "nginx_writes_per_cpu_s": 1e6 / front.write,
        "nginx_requests_per_cpu_s": 1e6 / front.request,
        "nginx openings per CPU-s": 1e6 / front.opening,
        "nginx_stream_kib": front.stream_kib,
    }
    return ["src/allim/plan/figures.py", *(f"  {name:<28}{value:>12,.1f}" for name, value in figures.items())]


@click.command()
@click.option("--quick", is_flag=True, help="Less of everything: about half a minute.")
def main(quick: bool) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(f"{platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    print(asyncio.run(measure(QUICK if quick else FULL)))


if __name__ == "__main__":
    main()
