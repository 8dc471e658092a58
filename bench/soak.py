"""Nothing is left of streams that have gone: 100,000 come and go in every way while an hour's events pass.

    python -m bench.soak [--quick] [--cycles 100000] [--events-per-s 100]

One real replica over Redis, signed-in streams. A table compares what the replica and Redis hold before, half-way and
after, each time when all has come to rest; exit status 1 when something grew, or a stream ended otherwise than it
should.
"""

import asyncio
import json
import random
import re
import resource
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import click
import httpx
import redis as redis_py
from harness.replicas import PUBLISH_KEY, Replica, bearer, replica, token
from harness.servers import redis_server

AT_ONCE = 64  # cycles under way
USERS = 500  # who come and go, again and again
STEADY = 50  # streams that stay, and must get every event of theirs
WARM_SHARE = 0.05  # of the cycles, before the first look
BATCH = 500  # events per request
PATIENCE_S = 20.0
MOST_REFUSED = 0.05  # of the cycles
RESTING_S = 30.0  # within which all has come to rest
RESIDENT_GROWTH_KIB = 6 * 1024  # from half-way to the end: of 50,000 cycles and half an hour, 120 bytes each
SETTINGS: dict[str, Any] = {
    "stream_buffer_bytes": 16_384,  # a slow reader is one soon
    "max_event_bytes": 16_000,
    "history_events": 32,
    "history_ttl_s": 60,
    "user_calls_per_min": 10_000_000,
    "address_calls_per_min": 10_000_000,
    "publish_events_per_s": 10_000_000,
    "streams_per_user": 1_000,
    "pulse_s": 1,
    "log_level": "warning",
}
OPEN, END = b"event: stream.open\n", b"\n\n"
POSITION = re.compile(rb"^id: (\S+)$", re.MULTILINE)
LARGE, LARGE_EVENTS = "x" * 15_000, 24


class Unexpected(Exception):
    """A stream ended otherwise than it should."""


class Refused(Exception):
    """503: the machine has no time at the moment. An answer that is promised, as long as it is rare."""


class Held(NamedTuple):
    """The memory, files and keys of the replica and Redis at rest. `keys` are those that no time limit removes."""

    resident_kib: int
    files: int
    tasks: int
    streams: int
    topics: int
    channels: int
    subscriptions: int
    clients: int
    keys: int
    listed: int  # streams in the ledger

    def left_by(self, before: "Held") -> list[str]:
        """What is more than it was; memory is judged apart."""
        return [name for name in self._fields[1:] if getattr(self, name) > getattr(before, name)]


@dataclass
class Wire:
    """One connection, byte by byte."""

    sock: socket.socket
    heard: bytearray = field(default_factory=bytearray)

    @classmethod
    async def connect(cls, port: int, receive_bytes: int | None = None) -> Self:
        sock = socket.socket()
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def ask(self, who: str, method: str = "GET", path: str = "/events", **headers: str) -> None:
        lines = [f"{method} {path} HTTP/1.1", "host: soak", f"authorization: Bearer {who}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await asyncio.get_running_loop().sock_sendall(self.sock, ("\r\n".join(lines) + "\r\n\r\n").encode())

    async def until(self, what: bytes) -> None:
        """Read until this was heard. Raises: Unexpected when the connection ends before."""
        while what not in self.heard:
            if not await self._read():
                raise Unexpected(f"ended before {what!r}: {bytes(self.heard[-300:])!r}")

    async def until_open(self) -> bytes:
        """Read the first frame, and give its position."""
        await self.until(b"\r\n\r\n")
        _expect(self, 200)
        await self.until(OPEN)
        while END not in self.heard[self.heard.index(OPEN) :]:
            await self._read()
        found = POSITION.search(self.heard)
        assert found
        return found[1]

    async def until_end(self) -> None:
        """Raises: Refused: such an answer leaves the connection open."""
        while await self._read():
            if self.heard.startswith(b"HTTP/1.1 503 "):
                raise Refused

    async def _read(self) -> bool:
        try:
            chunk = await asyncio.get_running_loop().sock_recv(self.sock, 65_536)
        except ConnectionResetError:
            return False
        self.heard += chunk
        return bool(chunk)

    def close(self) -> None:
        # A read that was given up a moment ago is still registered, and its number goes to the next socket.
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.sock)
        loop.remove_writer(self.sock)
        self.sock.close()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()


@dataclass
class Soak:
    """Cycles and events against one replica."""

    server: Replica
    http: httpx.AsyncClient
    rng: random.Random
    last: dict[str, str] = field(default_factory=dict)  # the position a user read last
    tokens: dict[str, str] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    published: int = 0
    for_steady: int = 0
    read_by_steady: int = 0
    gaps_told: int = 0
    refused: int = 0

    # Endings ------------------------------------------------------------------------------------------------------

    async def client_closes(self, user: str) -> None:
        wire = await self._opened(user)
        wire.close()

    async def client_resets(self, user: str) -> None:
        wire = await self._opened(user)
        wire.reset()

    async def client_half_closes(self, user: str) -> None:
        wire = await self._opened(user)
        try:
            wire.sock.shutdown(socket.SHUT_WR)
            await wire.until_end()
        finally:
            wire.close()

    async def head(self, user: str) -> None:
        wire = await Wire.connect(self.server.port)
        try:
            await wire.ask(self._token(user), "HEAD")
            await wire.until(b"\r\n\r\n")
            _expect(wire, 200)
        finally:
            wire.close()

    async def pipelined_request(self, user: str) -> None:
        """A second request behind the stream cannot be answered: the connection ends."""
        wire = await Wire.connect(self.server.port)
        try:
            await wire.ask(self._token(user))
            await wire.ask(self._token(user))
            await wire.until_end()
        finally:
            wire.close()

    async def client_speaks(self, user: str) -> None:
        wire = await self._opened(user)
        try:
            await wire.ask(self._token(user))
            await wire.until_end()
        finally:
            wire.close()

    async def gone_before_the_answer(self, user: str) -> None:
        wire = await Wire.connect(self.server.port)
        await wire.ask(self._token(user))
        await asyncio.sleep(self.rng.uniform(0, 0.003))
        wire.reset()

    async def no_token(self, _: str) -> None:
        wire = await Wire.connect(self.server.port)
        try:
            await wire.ask("garbage")
            await wire.until(b"\r\n\r\n")
            _expect(wire, 401)
        finally:
            wire.close()

    async def resumes(self, user: str) -> None:
        """With what was read last, while an event was missed: it is replayed, or the verdict says why not."""
        last = self.last.get(user)
        headers = {} if last is None else {"last_event_id": last}
        if last is not None:
            await self._publish([f"user:{user}"], {"n": 0})
        wire = await self._opened(user, **headers)
        try:
            if last is not None and b'"resume":"complete"' in wire.heard:
                await wire.until(b"event: soak\n")
                self.outcomes["resumes_complete"] += 1
        finally:
            wire.close()

    async def signed_out(self, user: str) -> None:
        who = token(f"leaving-{user}")  # a session of its own
        wire = await Wire.connect(self.server.port)
        other = await Wire.connect(self.server.port)
        try:
            await wire.ask(who)
            await wire.until_open()
            await other.ask(who, "DELETE", "/api/session")
            await other.until(b"\r\n\r\n")
            _expect(other, 204)
            await wire.until(b'"reason":"signed_out"')
            await wire.until_end()
        finally:
            wire.close()
            other.close()

    async def reads_too_slowly(self, user: str) -> None:
        """Reads nothing any more, and is ended; what lies in its own kernel it may still read."""
        user = f"slow-{user}"  # nobody else gets what it is sent
        wire = await Wire.connect(self.server.port, receive_bytes=4096)
        try:
            await wire.ask(self._token(user))
            await wire.until_open()
            await self._publish([f"user:{user}"] * LARGE_EVENTS, LARGE)
            # One that is catching up after a lost link is waited for instead, and gets everything.
            while wire.heard.count(LARGE.encode()) < LARGE_EVENTS and await wire._read():
                pass
        finally:
            wire.close()

    # All ------------------------------------------------------------------------------------------------------------

    async def cycle(self, count: int, events: int) -> None:
        """So many streams come and go; meanwhile so many events pass, half of them to nobody."""
        endings = [
            *[self.client_closes, self.client_resets, self.client_half_closes, self.resumes] * 4,
            *[self.head, self.pipelined_request, self.client_speaks, self.gone_before_the_answer, self.no_token] * 2,
            self.signed_out,
        ]
        numbers = iter(range(count))

        async def come_and_go() -> None:
            for number in numbers:
                ending = self.reads_too_slowly if number % 200 == 199 else self.rng.choice(endings)
                await self._once(ending, f"user-{self.rng.randrange(USERS)}")

        await asyncio.gather(self._pass(events), *(come_and_go() for _ in range(AT_ONCE)))

    async def _once(self, ending: Callable[[str], Awaitable[None]], user: str) -> None:
        name = ending.__name__
        try:
            async with asyncio.timeout(PATIENCE_S):
                await ending(user)
            self.outcomes[name] += 1
        except Refused:
            self.refused += 1
        except (Unexpected, TimeoutError, OSError, httpx.HTTPError) as error:
            at_s = time.monotonic() - self.began
            self.failures.append(f"{name}, after {at_s:.1f} s: {error!r}"[:500])

    async def _pass(self, events: int) -> None:
        steady = [f"user:steady-{number}" for number in range(STEADY)]
        nobody = [f"order:{number}" for number in range(2000)]
        while events > 0:
            some = min(events, BATCH)
            topics = [*self.rng.choices(steady, k=some // 2), *self.rng.choices(nobody, k=some - some // 2)]
            self.for_steady += some // 2
            self.published += some
            await self._publish(topics, {"n": 1})
            events -= some

    async def _publish(self, topics: list[str], data: object) -> None:
        body = json.dumps([{"topic": topic, "type": "soak", "data": data} for topic in topics])
        headers = {"content-type": "application/json", "idempotency-key": f"{self.rng.getrandbits(64):x}"}
        answer = await self.http.post("/api/publish", content=body, headers=headers)
        while answer.status_code == 503:
            await asyncio.sleep(int(answer.headers["retry-after"]))
            answer = await self.http.post("/api/publish", content=body, headers=headers)
        if answer.status_code != 202:
            raise Unexpected(f"publish: {answer.status_code} {answer.text[:200]}")

    async def _opened(self, user: str, **headers: str) -> Wire:
        wire = await Wire.connect(self.server.port)
        try:
            await wire.ask(self._token(user), **headers)
            self.last[user] = (await wire.until_open()).decode()
        except BaseException:
            wire.reset()
            raise
        return wire

    def _token(self, user: str) -> str:
        if user not in self.tokens:
            self.tokens[user] = token(user, lifetime_s=86_400)
        return self.tokens[user]

    @asynccontextmanager
    async def steady(self) -> AsyncIterator[None]:
        """Streams that stay all the time and count their events."""
        wires = [await self._opened(f"steady-{number}") for number in range(STEADY)]
        tasks = [asyncio.create_task(self._count(wire)) for wire in wires]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for wire in wires:
                wire.close()

    async def _count(self, wire: Wire) -> None:
        while True:
            *whole, rest = bytes(wire.heard).split(END)
            self.read_by_steady += sum(b"event: soak\n" in frame for frame in whole)
            self.gaps_told += sum(b"event: stream.gap\n" in frame for frame in whole)
            wire.heard[:] = rest
            if not await wire._read():
                self.failures.append("a stream that should have stayed has ended")
                return


def _expect(wire: Wire, status: int) -> None:
    """Raises: Refused, Unexpected."""
    if wire.heard.startswith(b"HTTP/1.1 503 "):
        raise Refused
    if not wire.heard.startswith(f"HTTP/1.1 {status} ".encode()):
        raise Unexpected(f"not {status}: {bytes(wire.heard[:300])!r}")


def look(server: Replica, redis: redis_py.Redis) -> Held:
    prefix = b"allim:{0}:"
    channels = redis.pubsub_channels("*")
    listeners = redis.pubsub_numsub(*channels) if channels else []
    found = list(redis.scan_iter(prefix + b"*", count=5000))
    topics: Any = redis.zrange(prefix + b"expiry", 0, -1)
    due = {prefix + b"history:" + topic for topic in topics}
    lasting = [key for key in found if redis.pttl(key) == -1 and key not in due]
    return Held(
        server.rss_kib(),
        server.fds(),
        int(server.metric("allim_tasks")),
        int(server.metric("allim_streams_open")),
        int(server.metric("allim_topics")),
        len(channels),
        sum(count for _, count in listeners),
        len(redis.client_list()),
        len(lasting),
        sum(redis.zcard(key) for key in found if key.startswith(prefix + b"streams:")),
    )


async def at_rest(server: Replica, redis: redis_py.Redis, before: Held | None) -> Held:
    """Look when nothing is left of what came before, or give up waiting for it."""
    give_up_at = time.monotonic() + RESTING_S
    await asyncio.sleep(1)
    while True:
        held = await asyncio.to_thread(look, server, redis)
        gone = held.streams == held.listed == STEADY and not (before and held.left_by(before))
        if gone or time.monotonic() > give_up_at:
            return held
        await asyncio.sleep(0.5)


async def soak(server: Replica, redis: redis_py.Redis, cycles: int, events: int) -> tuple[Soak, list[Held]]:
    headers = {**bearer(PUBLISH_KEY), "connection": "close"}  # none is kept open when it is looked
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=PATIENCE_S) as http:
        run = Soak(server, http, random.Random(1))
        async with run.steady():
            await run.cycle(max(500, int(cycles * WARM_SHARE)), int(events * WARM_SHARE))
            looks = [await at_rest(server, redis, None)]
            for _ in range(2):
                await run.cycle(cycles // 2, events // 2)
                looks.append(await at_rest(server, redis, looks[0]))
    return run, looks


def judge(run: Soak, looks: list[Held]) -> list[str]:
    """What is wrong, in words."""
    start, half, end = looks
    wrong = [f"{name} grew" for name in end.left_by(start)]
    if end.topics != STEADY + 1 or end.channels != end.topics + 3:  # `system`; pulse, origin, hints
        wrong.append("topics or channels are not those of the streams that stayed")
    if end.resident_kib - half.resident_kib > RESIDENT_GROWTH_KIB:
        wrong.append(f"resident memory grew by more than {RESIDENT_GROWTH_KIB} KiB in the second half")
    if run.read_by_steady != run.for_steady:
        told = f"and were told {run.gaps_told} gaps" if run.gaps_told else "without a word"
        wrong.append(f"streams that stayed read {run.read_by_steady:,} events of {run.for_steady:,}, {told}")
    if run.refused > MOST_REFUSED * run.outcomes.total():
        wrong.append(f"{run.refused:,} calls were refused")
    return wrong + run.failures[:10]


@click.command()
@click.option("--cycles", default=100_000, show_default=True)
@click.option("--seconds", default=3600, show_default=True, help="Worth of events.")
@click.option("--events-per-s", default=100, show_default=True)
@click.option("--quick", is_flag=True, help="2,000 cycles, and 36 s worth of events.")
def main(cycles: int, seconds: int, events_per_s: int, quick: bool) -> None:
    if quick:
        cycles, seconds = 2_000, 36
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    began = time.monotonic()
    with redis_server() as store, replica(redis_url=store.url, **SETTINGS) as server, store.client() as redis:
        run, looks = asyncio.run(soak(server, redis, cycles, seconds * events_per_s))
        logged = server.log.read_text("utf-8", "replace")
    took_s = time.monotonic() - began
    print(f"{cycles:,} cycles and {run.published:,} events ({events_per_s}/s for {seconds:,} s) in {took_s:.0f} s")
    print(", ".join(f"{name} {count:,}" for name, count in run.outcomes.most_common()))
    print(f"answered 503: {run.refused:,}")
    print(f"\n{'at rest':<16}{'start':>10}{'half-way':>10}{'end':>10}")
    for name, *values in zip(Held._fields, *looks, strict=True):
        print(f"{name:<16}" + "".join(f"{value:>10,}" for value in values))
    print()
    wrong = judge(run, looks)
    lines = logged.splitlines()
    warnings = Counter(json.loads(line)["event"] if line.startswith("{") else line for line in lines)
    for event, count in warnings.most_common():
        print(f"logged {count:,} times: {event}")
    print("flat" if not wrong else "NOT FLAT:\n  " + "\n  ".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
