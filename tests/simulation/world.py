"""A world in one event loop: replicas over a Redis, publishers that try again, and readers that come back.

Hub, dispatcher, catch-up, broker, ledger, link, tokens, rates and streams are the product's own; Redis, the network
and all clocks are simulated. Everything that publishers and readers see is logged for `harness/checker.py`.
"""

import asyncio
import itertools
import random
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import httpx
from harness.checker import (
    CLOSE,
    CONNECT,
    END,
    MALFORMED,
    STATUS,
    Entry,
    FollowerLog,
    Page,
    Publish,
    Refusal,
    SignOut,
    Span,
)
from harness.storm import TEXT, TYPE, MalformedFrame, parse_frame
from harness.streams import hub_settings
from starlette.applications import Starlette

from allim.access.gate import Gate, Limits
from allim.access.rates import Policy, Rates
from allim.access.tickets import Tickets
from allim.access.tokens import Tokens
from allim.brokers.memory import MemoryLedger
from allim.brokers.redis import RedisBroker, RedisLedger
from allim.brokers.redis.peers import Peers
from allim.brokers.redis.rights import Rights
from allim.domains import accounts
from allim.errors import Conflict, TooMany, Unauthenticated, Unavailable
from allim.http import problems
from allim.hub import ZERO, Charge, CloseReason, Draft, Hub, Position, Quota, Reading
from allim.identity import Visitor
from allim.telemetry import Metrics
from allim.transports.sse.handover import HandoverStream
from allim.transports.sse.stream import StreamDefaults
from tests.simulation.clock import EPOCH_S, Machine, VirtualLoop, here
from tests.simulation.network import Connection, Transport
from tests.simulation.schedule import ReaderPlan, ReplicaPlan, Schedule
from tests.simulation.server import RedisProcess

SECRET = "a secret key of thirty-two bytes"
TOKEN_LIFETIME_S = 86400
RETRY_MS = 500
PATIENCE_S, IMPATIENCE_S = 15.0, (0.0005, 0.02)  # of a publisher with an answer
GIVE_UP_S = 20.0
REFUSED_S = 1.0  # until a refused reader comes again
CALLS = Policy("user", 120, 60)
POSTING = Policy("posting", 1000, 10)  # of a publisher, well above what it does
MEMORY = Policy("memory", 500_000_000, 3600)

_numbers = itertools.count(1)


class SimulatedStream(HandoverStream):
    """A stream whose place in a set does not depend on where it lies in memory."""

    __slots__ = ("number",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.number = next(_numbers)

    def __hash__(self) -> int:
        return self.number


class WatchedBroker(RedisBroker):
    """Notes every page of history that is read."""

    pages: list[Page]

    def read(
        self, topics: Sequence[str], after: Position | None, max_events: int, max_bytes: int
    ) -> "asyncio.Future[Reading]":
        reading = super().read(topics, after, max_events, max_bytes)
        if after is not None:
            reading.add_done_callback(partial(self._note, len(topics), max_events, max_bytes))
        return reading

    def _note(self, topics: int, max_events: int, max_bytes: int, done: "asyncio.Future[Reading]") -> None:
        if not done.cancelled() and done.exception() is None:
            reading = done.result()
            size = sum(len(event.lines) for event in reading.events)
            self.pages.append(Page(topics, len(reading.events), size, max_events, max_bytes, reading.complete))


class Replica:
    """One replica: what `allim.app` wires, without HTTP. It crashes, and comes back, also with other settings."""

    def __init__(self, world: "World", number: int, plan: ReplicaPlan) -> None:
        self.world = world
        self.name = f"replica-{number}"
        self.plan = plan
        self.skew_s = plan.skew_s
        self.generation = 0
        self.up = False
        self.start()

    def start(self) -> None:
        world, plan = self.world, self.plan
        self.generation += 1
        self.machine = Machine(world.loop, self.name, self.skew_s)
        self.machine.context.run(self._wire, world, plan)
        self.stopping = asyncio.Event()
        self.up = True
        self.life = self.machine.run(self._live())

    def _wire(self, world: "World", plan: ReplicaPlan) -> None:
        metrics = Metrics(self.name)
        self.metrics = metrics
        self.broker = WatchedBroker(
            "redis://redis",
            self.name,
            metrics,
            history_events=plan.history_events,
            history_ttl_s=plan.history_ttl_s,
            durable=world.schedule.durable,
            rights=(rights := Rights(clock=world.loop.look)),
            peers=Peers(self.name, (SECRET,), plan.told(), plan.pulse_s, clock=world.loop.look),
        )
        self.broker.pages = world.pages
        self.ledger = RedisLedger("redis://redis", self.name, rights=rights)
        heartbeat_s = plan.pulse_s * plan.heartbeat_pulses
        self.hub = Hub(
            self.broker,
            self.ledger,
            metrics,
            hub_settings(
                heartbeat_s=heartbeat_s,
                pulse_s=plan.pulse_s,
                stream_buffer_bytes=plan.buffer_bytes,
                drain_s=2.0,
            ),
            clock=world.loop.look,
            wall=self.machine.wall_s,
            rng=random.Random(f"{world.schedule.seed} {self.name} {self.generation}"),
        )
        rng = random.Random(f"{world.schedule.seed} {self.name} speech {self.generation}")
        self.defaults = StreamDefaults(self.name, heartbeat_s, RETRY_MS, rng)
        self.tokens = Tokens([SECRET], TOKEN_LIFETIME_S, now=self.machine.wall_s)
        self.rates = Rates(self.ledger, MemoryLedger(now=self.machine.wall_s), metrics.refused)

    async def _live(self) -> None:
        async with self.hub.running():
            await self.stopping.wait()

    def set_clock(self, by_s: float) -> None:
        self.skew_s += by_s
        self.machine.skew_s += by_s

    def crash(self) -> None:
        """Be gone at once. Nothing of it does anything any more, and its connections are reset."""
        self.up = False
        for connection in self.world.redis.connections_of(self.name):
            connection.client.die()
        for connection in self.world.reader_connections(self.name):
            connection.server.die()
        self.machine.kill()

    async def stop(self) -> None:
        """As a deployment does: take nothing new, end the streams, then everything."""
        self.up = False
        self.hub.drain()
        await asyncio.wait([self.machine.run(self.hub.drained())], timeout=self.hub.settings.drain_s)
        self.stopping.set()
        await asyncio.wait([self.life], timeout=5)
        self.crash()

    # What it is asked -----------------------------------------------------------------------------------------

    async def serve(self, reader: "Reader", attempt: "Attempt", last_event_id: str | None) -> None:
        """A request for a stream, from its head to its being live."""
        transport = attempt.connection.server
        try:
            identity = await self.tokens.verify(reader.token)
            visitor = Visitor(identity, address=reader.log.name)
            stream = SimulatedStream(self.hub, self.defaults, visitor, reader.log.topics)
            attempt.stream = stream
            charge = Charge([CALLS.demand(identity.subject)], partial(self._report, reader, CALLS))
            start = await self.hub.join(stream, last_event_id, None, charge)
        except (Unavailable, Unauthenticated, TooMany) as error:
            attempt.stream = None
            attempt.refuse(type(error).__name__)
            return
        if stream.ended or transport.lost:
            assert stream.close_reason is not None or transport.lost
            self.hub.leave(stream, stream.close_reason or CloseReason.CLIENT_LEFT)
            attempt.refuse("ended")
            return
        transport.write(b"200\n\n")
        transport.set_protocol(stream)
        stream.attach(transport, set(), b"")
        await self.hub.follow(stream, start)

    async def _report(self, reader: "Reader", policy: Policy, quotas: Sequence[Quota]) -> None:
        self.judge([policy] * len(quotas), reader.log.name, quotas)
        self.rates.check([policy] * len(quotas), quotas)

    def judge(self, policies: Sequence[Policy], who: str, quotas: Sequence[Quota]) -> None:
        """Note what was refused."""
        for policy, quota in zip(policies, quotas, strict=True):
            if not quota.granted:
                self.world.refusals.append(Refusal(self.world.now(), who, quota.retry_after_s, policy.period_s))

    async def publish(self, who: str, drafts: Sequence[Draft], key: str | None) -> Sequence[Position]:
        """Raises: Unavailable, TooMany, Conflict."""
        entries = [self.hub.encode(draft) for draft in drafts]
        scoped = f"{who} {key}" if key else None
        outcome = await self.hub.start_publish(entries, scoped, POSTING.demand(who, len(entries)), MEMORY.demand(who))
        policies = (POSTING, MEMORY)[: len(outcome.quotas)]
        self.judge(policies, who, outcome.quotas)
        self.rates.check(policies, outcome.quotas)
        return self.hub.finish_publish(outcome).positions

    async def sign_out(self, token: str) -> int:
        """`DELETE /api/session`; its status."""
        policies = Limits(*(Policy(name, 1000, 60) for name in Limits._fields))
        gate = Gate(self.tokens, Tickets([SECRET], 30, now=self.machine.wall_s), self.rates, policies)
        nothing = cast(Any, None)
        service = accounts.Service(nothing, self.tokens, nothing, nothing, self.hub.sessions)
        routes = accounts.routes(service, gate, self.tokens, MEMORY)
        app = Starlette(routes=routes, exception_handlers=problems.handlers)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            response = await client.delete("/api/session", headers={"authorization": f"Bearer {token}"})
        return response.status_code


class Attempt(asyncio.Protocol):
    """One connection of a reader, at the reader's end."""

    def __init__(self, reader: "Reader", connection: Connection) -> None:
        self.reader = reader
        self.connection = connection
        self.ended: asyncio.Future[None] = reader.world.loop.create_future()
        self.stream: SimulatedStream | None = None
        self.unread = self.rest = b""
        self.said = ""
        self.heard_at = reader.world.loop.now
        self.opened = False

    def refuse(self, status: str) -> None:
        """At the server's end: another answer than a stream."""
        self.connection.server.write(status.encode() + b"\n\n")
        self.connection.server.close()

    def data_received(self, data: bytes) -> None:
        if self.ended.done():
            return
        self.heard_at = self.reader.world.loop.now
        self.unread += data
        if not self.opened:
            answer, end, self.unread = self.unread.partition(b"\n\n")
            if not end:
                self.unread = answer
                return
            self._take(answer)
        *blocks, self.rest = (self.rest + self._whole_chunks()).split(b"\n\n")
        for block in blocks:
            self._take(block)

    def _whole_chunks(self) -> bytes:
        """Return the content of the chunks that have arrived whole. Source: RFC 9112, 7.1."""
        content = b""
        while True:
            size, end, rest = self.unread.partition(b"\r\n")
            length = int(size, 16) if end else 0
            if not end or len(rest) < length + 2:
                return content
            content, self.unread = content + rest[:length], rest[length + 2 :]

    def eof_received(self) -> None:
        """The transport closes."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(repr(exc or ""))

    def end(self, why: str) -> None:
        if self.ended.done():
            return
        reason = self.stream.close_reason if self.stream is not None else None
        self.reader.note(Entry(self.reader.world.now(), END, said=self.said or str(reason or why)))
        self.ended.set_result(None)

    def give_up(self, why: str) -> None:
        """Close the connection from here."""
        self.end(why)
        self.connection.client.abort()

    def vanish(self) -> None:
        """Be gone without a word to the server."""
        self.end("vanished")
        self.connection.client.vanish()

    def _take(self, block: bytes) -> None:
        if not self.opened:
            self.opened = True
            if block == b"200":
                self.reader.note(Entry(self.reader.world.now(), STATUS, said="200"))
            else:
                self.said = block.decode()
                if self.said in ("SignedOut", "Kicked"):
                    self.reader.leave_for_good()
                self.reader.retry_s = max(self.reader.retry_s, REFUSED_S)
            return
        try:
            retry_ms, entry = parse_frame(block)
        except MalformedFrame as error:
            self.reader.note(Entry(self.reader.world.now(), MALFORMED, said=str(error)[:300]))
            return
        if retry_ms is not None:
            self.reader.retry_s = retry_ms / 1000
        if entry is not None:
            self.reader.take(entry)


class Reader:
    """One client as a browser is one: it comes back with its last event ID, to whatever replica."""

    def __init__(self, world: "World", number: int, plan: ReaderPlan) -> None:
        self.world = world
        self.plan = plan
        self.rng = random.Random(f"{world.schedule.seed} reader {number}")
        name = f"u{number}"
        topics = tuple(dict.fromkeys((f"user:{name}", "system", *plan.topics)))
        self.log = FollowerLog(name, topics)
        issuer = self.rng.choice(world.replicas)
        self.session = f"s-{name}"
        self.token = issuer.machine.context.copy().run(
            partial(issuer.tokens.issue, name, session=self.session, topics=plan.topics)
        )
        self.cursor: Position | None = None
        self.retry_s = 0.2
        self.attempt: Attempt | None = None
        self.over = False
        self.stays = False  # to the end of the schedule
        self.absent_since: float | None = None
        self.away_s = 0.0

    def note(self, entry: Entry) -> None:
        self.log.entries.append(entry)

    def take(self, entry: Entry) -> None:
        self.note(entry._replace(at=self.world.now()))
        self.cursor = entry.position or self.cursor
        if entry.kind == CLOSE and entry.resume == "false":
            self.leave_for_good()

    def leave_for_good(self) -> None:
        """It was told that it need not come back."""
        self.over = True
        self.log.left_at = min(self.log.left_at, self.world.now())

    async def follow(self) -> None:
        loop = self.world.loop
        while not self.over:
            replica = self.rng.choice(self.world.replicas)
            if not replica.up:
                await asyncio.sleep(0.1)
                continue
            connection = Connection(
                loop, self.rng, replica.machine.context, self.world.schedule.delay_s, self.plan.window
            )
            self.attempt = attempt = Attempt(self, connection)
            self.note(Entry(self.world.now(), CONNECT, self.cursor))
            connection.begin(attempt, _Waiting(replica, attempt))
            self.world.client_connections[connection] = replica.name
            await asyncio.sleep(self.world.way_s())
            serving = replica.machine.run(
                replica.serve(self, attempt, str(self.cursor) if self.cursor is not None else None)
            )
            cast(_Waiting, connection.server.protocol).serving = serving
            serving.add_done_callback(partial(self.world.look_at, "stream"))
            await self._watch(attempt)
            self.world.client_connections.pop(connection, None)
            await self._pause()

    async def _pause(self) -> None:
        until = self.world.loop.now + (self.away_s or self.retry_s * self.rng.uniform(0.5, 1))
        self.away_s = 0.0
        while (left_s := until - self.world.loop.now) > 0:
            await asyncio.sleep(min(left_s, 1.0))
            if self.stays:
                return

    async def _watch(self, attempt: Attempt) -> None:
        """No frame for too long: the line is dead."""
        silence_s = 10 + 2 * max(replica.defaults.heartbeat_s for replica in self.world.replicas)
        while not attempt.ended.done():
            await asyncio.wait([attempt.ended], timeout=2.0)
            if self.world.loop.now - attempt.heard_at > silence_s and attempt.connection.client.reading:
                attempt.give_up("silence")

    async def be_moody(self) -> None:
        """Pause, vanish, leave and come back, now and then."""
        while not self.stays:
            await asyncio.sleep(self.plan.every_s * self.rng.uniform(0.5, 1.5))
            attempt = self.attempt
            if attempt is None or attempt.ended.done() or self.stays:
                continue
            mood = self.rng.choice(("pauses", "pauses", "leaves", "vanishes", "is away"))
            self.absent_since = self.world.now()
            if mood == "pauses":
                attempt.connection.client.pause_reading()
                await asyncio.sleep(self.rng.uniform(0.2, 8))
                attempt.connection.client.resume_reading()
            elif mood == "vanishes":
                attempt.vanish()
            else:
                self.away_s = self.rng.uniform(5, 25) if mood == "is away" else 0.0
                attempt.give_up("left")
                await asyncio.sleep(self.away_s)
            self.note_absence()

    def note_absence(self) -> None:
        if self.absent_since is not None:
            self.log.paused.append(Span(self.absent_since, self.world.now()))
            self.absent_since = None

    def stay(self) -> None:
        """Read on, until the end."""
        self.stays = True
        self.note_absence()
        if self.attempt is not None and not self.attempt.ended.done():
            self.attempt.connection.client.resume_reading()


class _Waiting(asyncio.Protocol):
    """The server's end before the stream takes it."""

    def __init__(self, replica: Replica, attempt: Attempt) -> None:
        self.replica = replica
        self.attempt = attempt
        self.serving: asyncio.Task[None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The request is given up when its client leaves, as a server does."""
        if self.serving is not None:
            self.serving.cancel()

    def pause_writing(self) -> None:
        """The refusal is short."""

    def resume_writing(self) -> None:
        """As above."""


class Publisher:
    """Publishes; with a key again until it is answered."""

    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self.name = f"p{number}"
        self.rng = random.Random(f"{world.schedule.seed} publisher {number}")
        self.turn = itertools.count()

    async def publish_all(self, per_s: float) -> None:
        """At this pace, until the schedule ends."""
        loop = self.world.loop
        while True:
            await asyncio.sleep(self.rng.expovariate(per_s) if not self.world.schedule.round_robin else 1 / per_s)
            if loop.now >= self.world.schedule.ends_s:
                return
            task = loop.create_task(self.publish_some())
            self.world.publishing[task] = None
            task.add_done_callback(self.world.publishing.pop)
            task.add_done_callback(partial(self.world.look_at, "publisher"))

    async def publish_some(self) -> None:
        schedule = self.world.schedule
        count = self.rng.randint(2, 5) if self.rng.random() < schedule.batch_share else 1
        key = f"{self.rng.getrandbits(48):012x}" if self.rng.random() < schedule.keyed_share else None
        if schedule.round_robin:
            topics = [schedule.topics[next(self.turn) % len(schedule.topics)] for _ in range(count)]
        else:
            topics = self.rng.choices(self.world.all_topics, k=count)
        await self.publish(topics, key)

    async def publish(self, topics: Sequence[str], key: str | None, impatient: bool | None = None) -> Publish:
        world = self.world
        numbers = [next(world.numbers) for _ in topics]
        events = tuple(zip(topics, numbers, strict=True))
        pad = "x" * world.schedule.event_bytes
        drafts = [Draft(topic, TYPE, {"n": n, "text": TEXT, "pad": pad}) for topic, n in events]
        began = world.now()
        result, positions, said = await self._until_answered(drafts, key)
        record = Publish(key, events, result, tuple(positions), began, world.now(), said)
        world.publishes.append(record)
        return record

    async def _until_answered(self, drafts: Sequence[Draft], key: str | None) -> Any:
        give_up_at = self.world.loop.now + GIVE_UP_S
        patience_s = self.rng.uniform(*IMPATIENCE_S) if self.rng.random() < 0.1 else PATIENCE_S
        pause_s, said, sent = 0.1, [], False
        while True:
            replica = self.rng.choice(self.world.replicas)
            wait_s = pause_s * self.rng.uniform(0.5, 1)
            try:
                positions = await self._ask(replica, drafts, key, patience_s)
            except ConnectionError as error:
                said.append(type(error).__name__)
                sent = sent or not isinstance(error, ConnectionRefusedError)
            except (TimeoutError, Unavailable) as error:
                said.append(f"{type(error).__name__} {error}")
                sent = True
            except TooMany as error:
                said.append("429")
                wait_s = error.retry_after_s
            except Conflict as error:
                return "refused", (), " ".join([*said, str(error)])
            else:
                return "ok", positions, " ".join(said)
            if (key is None and sent) or self.world.loop.now + wait_s > give_up_at:
                return ("unknown" if sent else "refused"), (), " ".join(said)
            patience_s = PATIENCE_S
            await asyncio.sleep(wait_s)
            pause_s = min(pause_s * 1.5, 2.0)

    async def _ask(
        self, replica: Replica, drafts: Sequence[Draft], key: str | None, patience_s: float
    ) -> Sequence[Position]:
        """Raises: ConnectionRefusedError when it certainly did not come; ConnectionError, TimeoutError."""
        async with asyncio.timeout(patience_s):
            await asyncio.sleep(self.world.way_s())
            if not replica.up:
                raise ConnectionRefusedError
            answer = replica.machine.run(replica.publish(self.name, drafts, key))
            try:
                await asyncio.wait([answer])
            finally:
                answer.add_done_callback(partial(self.world.look_at, "publish"))
            if answer.cancelled():
                raise ConnectionResetError
            positions: Sequence[Position] = answer.result()
            await asyncio.sleep(self.world.way_s())
            return positions


class World:
    """Everything there is, and all that was seen."""

    def __init__(self, loop: VirtualLoop, schedule: Schedule) -> None:
        self.loop = loop
        self.schedule = schedule
        self.rng = random.Random(f"{schedule.seed} network")
        self.publishes: list[Publish] = []
        self.refusals: list[Refusal] = []
        self.sign_outs: list[SignOut] = []
        self.pages: list[Page] = []
        self.forgotten: list[Span] = []
        self.dropping: list[Span] = []
        self.problems: list[str] = []
        self.kept_s = [float(plan.history_ttl_s) for plan in schedule.replicas]  # every setting there was
        self.people: list[asyncio.Task[None]] = []
        self.numbers = itertools.count(1)
        self.publishing: dict[asyncio.Task[Any], None] = {}
        self.client_connections: dict[Connection, str] = {}
        self.blocked: set[str] = set()  # replicas whose new connections to Redis come to nothing
        self.clock_readings: list[tuple[float, float]] = []
        loop.connect = self._connect
        self.redis = RedisProcess(
            loop,
            Machine(loop, "redis", schedule.redis_skew_s),
            random.Random(f"{schedule.seed} redis"),
            schedule.delay_s,
            durable=schedule.durable,
        )
        self.note_clock()
        self.replicas = [Replica(self, number, plan) for number, plan in enumerate(schedule.replicas)]
        self.readers = [Reader(self, number, plan) for number, plan in enumerate(schedule.readers)]
        self.publishers = [Publisher(self, number) for number in range(schedule.publishers)]
        own = [f"user:{reader.log.name}" for reader in self.readers]
        self.all_topics = [*schedule.topics, *own, "system"]

    def now(self) -> float:
        return EPOCH_S + self.loop.now

    def way_s(self) -> float:
        """How long a request is on its way."""
        return self.rng.uniform(*self.schedule.delay_s)

    def reader_connections(self, name: str) -> list[Connection]:
        """Those between a replica and its readers."""
        return [connection for connection, replica in self.client_connections.items() if replica == name]

    def look_at(self, what: str, task: "asyncio.Task[Any]") -> None:
        """Whether a request failed in a way that none should."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Unavailable | TooMany | Conflict | Unauthenticated):
            self.problems.append(f"{what}: {error!r}")

    # Redis' clock, as far as positions can show it

    def note_clock(self) -> None:
        """Called before and after Redis' clock is set."""
        self.clock_readings.append((self.now(), self.redis.machine.wall_s()))

    def broker_s(self, at: float) -> float:
        """The newest time that Redis' clock, or a position, had shown by then."""
        given_out = (ms for moment, ms in self.redis.data.positions if EPOCH_S + moment <= at)
        newest = max(given_out, default=0) / 1000
        for (since, reading), (until, _) in itertools.pairwise([*self.clock_readings, (float("inf"), 0.0)]):
            if since <= at:
                newest = max(newest, reading + min(at, until) - since)
        return newest

    def broker_position(self) -> Position:
        """The newest position that Redis has given out."""
        clock = self.redis.data.get(b"allim:{0}:clock")
        if not isinstance(clock, dict) or b"ms" not in clock:
            return ZERO
        return Position(int(clock[b"ms"]), int(clock[b"seq"]))

    async def _connect(self, factory: Any, host: Any, port: Any) -> tuple[Transport, Any]:
        machine = here()
        assert machine is not None
        while machine.dead or machine.name in self.blocked:
            await asyncio.sleep(0.05)
        return await self.redis.connect(factory, machine.name)
