"""How much of everything a load needs, computed from measured figures. Knows no settings, no broker, no replica.

Source: docs/scaling.md, which is worked with this module; `bench/` measures the figures.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

MIB, GIB = 2**20, 2**30
NGINX_CORES, NGINX_GIB_PER_CORE = (1, 2, 4, 8), 2  # common machines, of which the last are those of `Each`
REDIS_GIB = (1, 2, 4, 8, 16, 32)
MOST_REPLICAS = 100_000  # beyond it, it is the load that has to change


class Impossible(Exception):
    """No number of replicas carries this load. The text names the option to change."""


def figure(value: float, unit: str, source: str) -> float:
    made: float = field(default=value, metadata={"unit": unit, "source": source})
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured, on one two-core machine. Shape: each field's metadata holds its unit and its source."""

    rest_events_per_cpu_s: float = figure(8_400, "events per replica CPU-s", "one event to one stream per request")
    batch_events_per_cpu_s: float = figure(44_000, "events per replica CPU-s", "the same, 1,000 events per request")
    heard_events_per_cpu_s: float = figure(60_000, "events per replica CPU-s", "each further replica that hears one")
    writes_per_cpu_s: float = figure(100_000, "writes per replica CPU-s", "a lone broadcast; joined, three times it")
    openings_per_cpu_s: float = figure(3_900, "openings per replica CPU-s", "signed in, over Redis, with catch-up")
    returns_per_cpu_s: float = figure(1_600, "openings per replica CPU-s", "the same in a storm, all else included")
    replica_base_mib: float = figure(115, "MiB", "resident, without streams")
    stream_kib: float = figure(2.7, "KiB", "resident, per idle stream")
    socket_kib: float = figure(4, "KiB", "kernel memory per idle socket, growth of /proc/slabinfo")
    redis_publish_us: float = figure(8.9, "µs of Redis CPU", "per stored event, one replica hearing it")
    redis_push_us: float = figure(0.5, "µs of Redis CPU", "per event and further replica that hears it")
    redis_request_us: float = figure(
        29, "µs of Redis CPU", "per publish request, beside its events: its rate is counted"
    )
    redis_opening_us: float = figure(95, "µs of Redis CPU", "per opened stream: subscribe, read, ledger, leave")
    redis_topic_bytes: float = figure(4_360, "bytes", "least memory of a topic that has history")
    redis_entry_bytes: float = figure(64, "bytes", "memory per kept event, beside its data")
    redis_stream_bytes: float = figure(850, "bytes", "memory per open stream: subscription and ledger")
    redis_key_bytes: float = figure(280, "bytes", "memory per request under an idempotency key")
    nginx_writes_per_cpu_s: float = figure(148_000, "writes per nginx CPU-s", "passed on to streams")
    nginx_requests_per_cpu_s: float = figure(10_000, "requests per nginx CPU-s", "publishes and openings; no TLS")
    nginx_stream_kib: float = figure(20, "KiB", "nginx' memory per stream, with its template; no TLS")
    frame_bytes: float = figure(55, "bytes", "of a frame, beside its data: id, event, field names")
    heartbeat_bytes: float = figure(60, "bytes", "of a heartbeat")
    push_bytes: float = figure(150, "bytes", "of Redis' message to a replica, beside the data")
    packet_bytes: float = figure(90, "bytes", "Ethernet, IPv4, TCP around a write, or an acknowledgement")


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is left free, on purpose. Shares are of one of each; `spare` replicas and nginx machines may be lost."""

    cpu_share: float = 0.5
    memory_share: float = 0.8
    network_share: float = 0.5
    spare: int = 1
    storm_s: float = 10  # within which a lost replica's streams are back, with the CPU that was left free
    pause_s: float = 1  # for which a replica may stand still and its link's buffer in Redis not run over


@dataclass(frozen=True, slots=True, kw_only=True)
class Each:
    """What one of each has. Another machine has other values; these are common ones."""

    replica_memory_mib: float = 2048
    replica_open_files: int = 65_536
    replica_kept_files: int = 256  # of them, for what is no stream
    local_ports: int = 28_232  # net.ipv4.ip_local_port_range: from one nginx address to one replica's
    redis_memory_gib: float = 32
    redis_link_mib: float = 32  # client-output-buffer-limit pubsub
    nginx_cores: int = 8
    nginx_memory_gib: float = 16
    nginx_streams_per_core: int = 16_384  # worker_connections 32,768, and a stream is two
    conntrack: int = 262_144  # nf_conntrack_max, where connections are tracked
    nic_gbit: float = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked for. Shape: `fan_out` streams get each event; `batch` events come in one request; `keyed` is
    whether requests carry idempotency keys; the rest are settings.

    Raises: ValueError saying what is wrong, beginning with the option's name.
    """

    streams: int
    events_per_s: float
    fan_out: float = 1
    event_bytes: int = 200
    batch: int = 1
    keyed: bool = False
    history_events: int = 256
    history_ttl_s: float = 3600
    heartbeat_s: float = 15
    stream_lifetime_s: float = 900

    def __post_init__(self) -> None:
        least = {"events_per_s": 0, "fan_out": 0, "keyed": 0}
        most = {"batch": 1000, "fan_out": self.streams, "event_bytes": 1_048_576, "history_events": 100_000}
        for name, value in asdict(self).items():
            option = f"--{name.replace('_', '-')}"
            if not value >= least.get(name, 1):  # which a NaN is not, either
                raise ValueError(f"{option}: must be at least {least.get(name, 1):,}")
            if value > most.get(name, 1e12):
                raise ValueError(f"{option}: must be at most {most.get(name, 10**12):,}")


class Need(NamedTuple):
    """What the whole load needs of one thing, and how much of it one has after the room is left.

    Shape: `ratio` is how many of them it takes; `how` is the formula; `then` what to do when it is what is short.
    """

    name: str
    needs: float
    one_has: float
    unit: str
    how: str
    then: str

    @property
    def ratio(self) -> float:
        return self.needs / self.one_has


class Part(NamedTuple):
    """Replicas, nginx or Redis: how many of them, `spare` among them, and why."""

    name: str
    machines: int
    spare: int
    needs: tuple[Need, ...]

    @property
    def first(self) -> Need:
        """What is short first."""
        return max(self.needs, key=lambda need: need.ratio)


class Rate(NamedTuple):
    name: str
    per_s: float
    how: str


class Traffic(NamedTuple):
    """Units: bits per second, all of a part together."""

    part: str
    into: float
    out: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Units: `storm_s` is until the streams of a lost replica are back."""

    load: Load
    each: Each
    rates: tuple[Rate, ...]
    replicas: Part
    redis: Part
    nginx: Part
    traffic: tuple[Traffic, ...]
    storm_streams: int
    storm_s: float

    @property
    def bottleneck(self) -> Need:
        """What saturates first when replicas and nginx machines are added as needed: there is one Redis."""
        return self.redis.first

    @property
    def enough(self) -> bool:
        """Whether one Redis carries it."""
        return self.bottleneck.ratio <= 1


def plan(load: Load, measured: Measured | None = None, room: Room | None = None, each: Each | None = None) -> Plan:
    """What this load needs. Without `each`, of machines no larger than it needs.

    Raises: Impossible.
    """
    measured, room = measured or Measured(), room or Room()
    planner = Planner(load, measured, room, each or fitting(load, measured, room))
    carrying = planner.replicas_carrying()
    spare = planner.room.spare
    storm_streams = math.ceil(load.streams / (carrying + spare))
    free_cpu = carrying * (1 - planner.room.cpu_share)
    replica_needs = planner.replica_needs(carrying)
    nginx_needs = planner.nginx_needs()
    return Plan(
        load,
        planner.each,
        planner.rates(),
        Part("replicas", carrying + spare, spare, replica_needs),
        Part("Redis", 1, 0, planner.redis_needs(carrying + spare)),
        Part("nginx", _count(nginx_needs) + spare, spare, nginx_needs),
        planner.traffic(carrying + spare),
        storm_streams,
        storm_streams / planner.measured.returns_per_cpu_s / free_cpu,
    )


def fitting(load: Load, measured: Measured, room: Room) -> Each:
    """The smallest nginx machine of which it takes no more than of the largest."""
    largest = Each()
    sizes = [replace(largest, nginx_cores=n, nginx_memory_gib=n * NGINX_GIB_PER_CORE) for n in NGINX_CORES]
    counts = [_count(Planner(load, measured, room, size).nginx_needs()) for size in sizes]
    return sizes[counts.index(counts[-1])]


def _count(needs: Sequence[Need]) -> int:
    return max(math.ceil(need.ratio) for need in needs)


class Planner:
    """The formulae. The names in them are those of `Load`, `Measured`, `Room`, `Each` and of the rates."""

    def __init__(self, load: Load, measured: Measured, room: Room, each: Each) -> None:
        self.load, self.measured, self.room, self.each = load, measured, room, each
        self.requests = load.events_per_s / load.batch
        self.deliveries = load.events_per_s * load.fan_out
        self.heartbeats = load.streams / load.heartbeat_s
        self.writes = self.deliveries + self.heartbeats
        self.openings = load.streams / (0.9 * load.stream_lifetime_s)

    def rates(self) -> tuple[Rate, ...]:
        return (
            Rate("events", self.load.events_per_s, "events_per_s"),
            Rate("requests", self.requests, "events_per_s / batch"),
            Rate("deliveries", self.deliveries, "events_per_s × fan_out"),
            Rate("heartbeats", self.heartbeats, "streams / heartbeat_s"),
            Rate("writes", self.writes, "deliveries + heartbeats"),
            Rate("openings", self.openings, "streams / (0.9 × stream_lifetime_s): rotation"),
        )

    # Replicas -------------------------------------------------------------------------------------------------

    def replicas_carrying(self) -> int:
        """The fewest that carry it all, when the spare ones are lost.

        What they need grows slower than their number does, so once enough is enough.
        Raises: Impossible.
        """

        def enough(carrying: int) -> bool:
            return all(need.ratio <= carrying for need in self.replica_needs(carrying))

        found = 1 + bisect_left(range(1, MOST_REPLICAS + 1), True, key=enough)
        if found > MOST_REPLICAS:
            heard_most = self.room.cpu_share * self.measured.heard_events_per_cpu_s
            raise Impossible(
                f"--fan-out: each replica hears {self.heard(found) / found:,.0f} events/s and has time for "
                f"{heard_most:,.0f} at most; publish fewer events, or to fewer streams each"
            )
        return found

    def heard(self, replicas: int) -> float:
        """Events per second that replicas hear, all together: each once per event that one of its streams waits for,
        with the streams of an event spread by chance."""
        missed = (1 - 1 / replicas) ** self.load.fan_out
        return float(self.load.events_per_s * replicas * (1 - missed))

    def replica_needs(self, carrying: int) -> tuple[Need, ...]:
        load, measured, room, each = self.load, self.measured, self.room, self.each
        per_event_s = 1 / measured.batch_events_per_cpu_s
        per_request_s = 1 / measured.rest_events_per_cpu_s - per_event_s
        further_heard = max(0.0, self.heard(carrying) - load.events_per_s)
        further_writes = max(0.0, self.deliveries - self.heard(carrying)) + self.heartbeats
        cpu = (
            self.requests * per_request_s
            + load.events_per_s * per_event_s
            + further_heard / measured.heard_events_per_cpu_s
            + further_writes / measured.writes_per_cpu_s
            + self.openings / measured.openings_per_cpu_s
        )
        storm = load.streams / (carrying + room.spare) / measured.returns_per_cpu_s
        memory_mib = each.replica_memory_mib * room.memory_share - measured.replica_base_mib
        stream_kib = measured.stream_kib + measured.socket_kib
        return (
            Need(
                "CPU",
                cpu,
                room.cpu_share,
                "cores",
                "requests × per_request_s + events / batch_events_per_cpu_s + further_heard / heard_events_per_cpu_s"
                " + further_writes / writes_per_cpu_s + openings / openings_per_cpu_s",
                "add replicas; publish in batches",
            ),
            Need(
                "CPU in a storm",
                storm,
                room.storm_s * (1 - room.cpu_share),
                "CPU-s",
                "streams / replicas / returns_per_cpu_s, within storm_s",
                "add replicas: each holds fewer streams, and more take them in",
            ),
            Need(
                "memory",
                load.streams * stream_kib / 1024,
                memory_mib,
                "MiB",
                "streams × (stream_kib + socket_kib); replica_base_mib of each is taken off before",
                "add replicas, or give each more memory",
            ),
            Need(
                "open files",
                load.streams,
                each.replica_open_files - each.replica_kept_files,
                "files",
                "streams",
                "raise the hard limit of open files, or add replicas",
            ),
            Need(
                "ports",
                min(load.streams, self.streams_per_nginx()),
                each.local_ports,
                "ports",
                "streams of one nginx machine, which has one address",
                "widen net.ipv4.ip_local_port_range, give nginx a second address (proxy_bind), or add replicas",
            ),
        )

    # Redis ----------------------------------------------------------------------------------------------------

    def kept_events(self) -> tuple[float, float]:
        """Topics with history, and events kept in each.

        A history goes when its topic had no event for `history_ttl_s`, and is cut at `history_events`; events come by
        chance, and to as many topics as it takes that each event reaches `fan_out` streams.
        """
        load = self.load
        topics = max(1.0, load.streams / max(1.0, load.fan_out))
        stays = -math.expm1(-load.events_per_s / topics * load.history_ttl_s)
        if stays == 0:
            return 0, 0
        kept = sum_of_powers(stays, load.history_events)
        return topics * stays, kept / stays

    def redis_needs(self, replicas: int) -> tuple[Need, ...]:
        load, measured, room, each = self.load, self.measured, self.room, self.each
        heard = self.heard(replicas)
        further_heard = max(0.0, heard - load.events_per_s)
        cpu_us = (
            load.events_per_s * measured.redis_publish_us
            + self.requests * measured.redis_request_us
            + further_heard * measured.redis_push_us
            + self.openings * measured.redis_opening_us
        )
        topics, kept = self.kept_events()
        history = topics * max(measured.redis_topic_bytes, kept * (load.event_bytes + measured.redis_entry_bytes))
        keys = self.requests * 86_400 * measured.redis_key_bytes if load.keyed else 0
        push = load.event_bytes + measured.push_bytes
        _, redis, _ = self.traffic(replicas)
        return (
            Need(
                "CPU",
                cpu_us / 1e6,
                room.cpu_share,
                "cores",
                "events × redis_publish_us + requests × redis_request_us + further_heard × redis_push_us"
                " + openings × redis_opening_us",
                "publish in batches; publish once to a shared topic instead of once per reader; a faster core",
            ),
            Need(
                "CPU in a storm",
                load.streams / replicas * measured.redis_opening_us / 1e6,
                room.storm_s * (1 - room.cpu_share),
                "CPU-s",
                "streams / replicas × redis_opening_us, within storm_s",
                "more and smaller replicas: one that is lost sends fewer streams back",
            ),
            Need(
                "memory",
                (history + keys + load.streams * measured.redis_stream_bytes) / GIB,
                each.redis_memory_gib * room.memory_share,
                "GiB",
                "topics × max(redis_topic_bytes, kept × (event_bytes + redis_entry_bytes))"
                " + streams × redis_stream_bytes + keys of 24 h",
                "a smaller ALLIM_HISTORY_EVENTS or ALLIM_HISTORY_TTL_S; a larger machine",
            ),
            Need(
                "Pub/Sub buffer",
                heard / replicas * push * room.pause_s / MIB,
                each.redis_link_mib * room.memory_share,
                "MiB",
                "heard / replicas × (event_bytes + push_bytes) × pause_s",
                "add replicas unless all hear the same; a larger client-output-buffer-limit pubsub",
            ),
            Need(
                "network",
                max(redis.into, redis.out) / 1e9,
                each.nic_gbit * room.network_share,
                "Gbit/s",
                "heard × (event_bytes + push_bytes) × 8, or the incoming traffic if that is more",
                "a faster network card; smaller events, with large data fetched over REST",
            ),
        )

    # nginx ----------------------------------------------------------------------------------------------------

    def streams_per_nginx(self) -> float:
        """The most that one machine takes, however few events there are."""
        held = (need for need in self.nginx_needs() if need.name in ("memory", "connections", "conntrack"))
        return min(self.load.streams / need.ratio for need in held)

    def nginx_needs(self) -> tuple[Need, ...]:
        load, measured, room, each = self.load, self.measured, self.room, self.each
        cpu = (
            self.writes / measured.nginx_writes_per_cpu_s
            + (self.requests + self.openings) / measured.nginx_requests_per_cpu_s
        )
        stream_kib = measured.nginx_stream_kib + 2 * measured.socket_kib
        nginx = self.traffic(1)[2]
        return (
            Need(
                "CPU",
                cpu,
                each.nginx_cores * room.cpu_share,
                "cores",
                "writes / nginx_writes_per_cpu_s + (requests + openings) / nginx_requests_per_cpu_s",
                "add nginx machines; let services publish to the replicas themselves",
            ),
            Need(
                "memory",
                load.streams * stream_kib / 1024**2,
                each.nginx_memory_gib * room.memory_share,
                "GiB",
                "streams × (nginx_stream_kib + 2 × socket_kib)",
                "add nginx machines, or memory",
            ),
            Need(
                "connections",
                load.streams,
                each.nginx_cores * each.nginx_streams_per_core,
                "streams",
                "streams; one has nginx_cores × nginx_streams_per_core",
                "raise worker_connections and ALLIM_NGINX_FILES, or add nginx machines",
            ),
            Need(
                "conntrack",
                2 * load.streams,
                each.conntrack * room.memory_share,
                "entries",
                "2 × streams",
                "do not track these connections (notrack), or raise nf_conntrack_max",
            ),
            Need(
                "network",
                max(nginx.into, nginx.out) / 1e9,
                each.nic_gbit * room.network_share,
                "Gbit/s",
                "deliveries × (event_bytes + frame_bytes + packet_bytes) × 8 + heartbeats, and acknowledgements",
                "add nginx machines, or a faster network card",
            ),
        )

    # Network --------------------------------------------------------------------------------------------------

    def traffic(self, replicas: int) -> tuple[Traffic, Traffic, Traffic]:
        """Of the replicas, Redis and nginx. Every write is a packet, and every packet is acknowledged by another."""
        load, measured = self.load, self.measured
        packet = measured.packet_bytes
        heartbeats = self.heartbeats * (measured.heartbeat_bytes + packet)
        streams = self.deliveries * (load.event_bytes + measured.frame_bytes + packet) + heartbeats
        acknowledged = self.writes * packet
        published = load.events_per_s * (load.event_bytes + measured.push_bytes) + self.requests * packet
        answered = self.requests * packet
        announced = self.heard(replicas) * (load.event_bytes + measured.push_bytes)
        # Between replicas and Redis many events go in one packet, so packets are not counted there.
        return (
            Traffic("replicas", 8 * (published + announced + acknowledged), 8 * (published + streams + answered)),
            Traffic("Redis", 8 * published, 8 * (announced + answered)),
            Traffic("nginx", 8 * (published + streams + acknowledged), 8 * (published + streams + acknowledged)),
        )


def sum_of_powers(base: float, most: int) -> float:
    """base + base² + … + base^most, for a base of at most 1."""
    return float(most) if base > 1 - 1e-12 else base * (1 - base**most) / (1 - base)


# What is printed ---------------------------------------------------------------------------------------------


def as_json(made: Plan) -> dict[str, Any]:
    """All that `as_text` says. Units: as names say; traffic in bits per second."""
    return {
        "load": asdict(made.load),
        "per_s": {rate.name: rate.per_s for rate in made.rates},
        **{
            part.name.lower(): {
                "count": part.machines,
                "spare": part.spare,
                "first": part.first.name,
                "needs": {need.name: {**_values(need), "ratio": need.ratio} for need in part.needs},
            }
            for part in (made.replicas, made.redis, made.nginx)
        },
        "traffic_bits_per_s": {part: {"in": into, "out": out} for part, into, out in made.traffic},
        "storm": {"streams": made.storm_streams, "seconds": made.storm_s},
        "bottleneck": f"Redis {made.bottleneck.name}",
        "one_redis_is_enough": made.enough,
    }


def as_text(made: Plan) -> str:
    """For people: tables with the formula beside each number."""
    load, has = made.load, made.each
    cores = "core" if has.nginx_cores == 1 else "cores"
    to = "all streams" if load.fan_out == load.streams else f"{number(load.fan_out)} stream(s)"
    lines = [
        f"{load.streams:,} streams; {number(load.events_per_s)} events/s of {load.event_bytes:,} bytes to {to} each,"
        f" {load.batch:,} per request{', keyed' if load.keyed else ''}",
        "",
        f"{'per second':<16}{'':>12}  how it is computed",
        *(f"  {rate.name:<14}{number(rate.per_s):>12}  {rate.how}" for rate in made.rates),
    ]
    for part, of in (
        (made.replicas, f"1 core and {has.replica_memory_mib:,.0f} MiB each"),
        (
            made.nginx,
            f"machines of {has.nginx_cores} {cores} and {has.nginx_memory_gib:,.0f} GiB",
        ),
        (made.redis, f"1 core and {_redis_gib(made)} GiB; several shards are not built"),
    ):
        spare = f" ({part.spare} may be lost)" if part.spare else ""
        lines += ["", f"{part.name}: {part.machines:,}{spare}, {of}", _HEAD, *map(_row, part.needs)]
        lines += [f"  short first: {part.first.name}. Then: {part.first.then}"]
    lines += ["", f"{'network':<16}{'in':>14}{'out':>14}"]
    lines += [f"  {part:<14}{_bits(into):>14}{_bits(out):>14}" for part, into, out in made.traffic]
    lines += [
        "",
        f"A lost replica: {made.storm_streams:,} streams come back, {made.storm_s:.1f} s of the others' free CPU.",
        *_verdict(made),
        "Not in it: TLS, sign-ins, snapshots, the database, an append-only file, ALLIM_DURABILITY=replica or disk.",
    ]
    return "\n".join(lines)


def _redis_gib(made: Plan) -> str:
    """The memory that the one Redis needs, in a common size, and the most that is counted with."""
    (memory,) = [need for need in made.redis.needs if need.name == "memory"]
    most = made.each.redis_memory_gib
    fits = [gib for gib in REDIS_GIB if gib < most and memory.ratio * most <= gib]
    return f"{fits[0]} of at most {most:,.0f}" if fits else f"{most:,.0f}"


_HEAD = f"  {'':<16}{'needs':>12}{'one has':>12} {'':<9}{'ratio':>8}  how it is computed"


def _row(need: Need) -> str:
    amounts = f"{number(need.needs):>12}{number(need.one_has):>12} {need.unit:<9}{need.ratio:>8.2f}"
    return f"  {need.name:<16}{amounts}  {need.how}"


def _verdict(made: Plan) -> list[str]:
    first = made.bottleneck
    if made.enough:
        times = f"at {1 / first.ratio:,.1f} times this load" if first.ratio > 0 else "never"
        return [f"Saturates first: Redis {first.name}, {times}. Then: {first.then}."]
    short = [need for need in made.redis.needs if need.ratio > 1]
    return [
        f"Saturates first: Redis {first.name}, at {1 / first.ratio:.2f} of this load.",
        "ONE REDIS IS NOT ENOUGH, and several shards are not built:",
        *(f"  {need.name}: {need.ratio:.1f} times the capacity. Then: {need.then}." for need in short),
    ]


def number(value: float) -> str:
    """Three digits at least, no more decimals than say something."""
    if value >= 100 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.1f}" if value >= 10 else f"{value:,.3g}"


def _bits(per_s: float) -> str:
    return f"{number(per_s / 1e9)} Gbit/s" if per_s >= 1e9 else f"{number(per_s / 1e6)} Mbit/s"


def _values(need: Need) -> Mapping[str, object]:
    return {"needs": need.needs, "one_has": need.one_has, "unit": need.unit, "how": need.how, "then": need.then}


def figures() -> list[tuple[str, float, str, str]]:
    """Name, value, unit and source of every measured figure."""
    values = asdict(Measured())
    return [
        (each.name, values[each.name], each.metadata["unit"], each.metadata["source"]) for each in fields(Measured)
    ]
