"""The formulae: the need of each resource, and the number of machines that have it."""

import math
from bisect import bisect_left
from typing import NamedTuple

from allim.plan.figures import Each, Headroom, Load, Measured

MIB, GIB = 2**20, 2**30
MOST_REPLICAS = 100_000  # beyond it, it is the load that has to change


class Impossible(Exception):
    """No number of replicas carries this load. The text names the option to change."""


class Need(NamedTuple):
    """The need of one resource: the whole load's, and the amount that one machine has beside its headroom.

    Shape: `ratio` is how many of them it takes; `how` is the formula; `then` is the remedy if it is short.
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
        """The resource that is short first."""
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


class Planner:
    """The formulae. The names in them are those of `Load`, `Measured`, `Headroom`, `Each` and of the rates."""

    def __init__(self, load: Load, measured: Measured, headroom: Headroom, each: Each) -> None:
        self.load, self.measured, self.room, self.each = load, measured, headroom, each
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

        Their need grows slower than their number, so the first number that is enough is the least.
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
        load, measured, headroom, each = self.load, self.measured, self.room, self.each
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
        storm = load.streams / (carrying + headroom.spare) / measured.returns_per_cpu_s
        memory_mib = each.replica_memory_mib * headroom.memory_share - measured.replica_base_mib
        stream_kib = measured.stream_kib + measured.socket_kib
        return (
            Need(
                "CPU",
                cpu,
                headroom.cpu_share,
                "cores",
                "requests × per_request_s + events / batch_events_per_cpu_s + further_heard / heard_events_per_cpu_s"
                " + further_writes / writes_per_cpu_s + openings / openings_per_cpu_s",
                "add replicas; publish in batches",
            ),
            Need(
                "CPU in a storm",
                storm,
                headroom.storm_s * (1 - headroom.cpu_share),
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
        load, measured, headroom, each = self.load, self.measured, self.room, self.each
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
                headroom.cpu_share,
                "cores",
                "events × redis_publish_us + requests × redis_request_us + further_heard × redis_push_us"
                " + openings × redis_opening_us",
                "publish in batches; publish once to a shared topic instead of once per reader; a faster core",
            ),
            Need(
                "CPU in a storm",
                load.streams / replicas * measured.redis_opening_us / 1e6,
                headroom.storm_s * (1 - headroom.cpu_share),
                "CPU-s",
                "streams / replicas × redis_opening_us, within storm_s",
                "more and smaller replicas: one that is lost sends fewer streams back",
            ),
            Need(
                "memory",
                (history + keys + load.streams * measured.redis_stream_bytes) / GIB,
                each.redis_memory_gib * headroom.memory_share,
                "GiB",
                "topics × max(redis_topic_bytes, kept × (event_bytes + redis_entry_bytes))"
                " + streams × redis_stream_bytes + keys of 24 h",
                "a smaller ALLIM_HISTORY_EVENTS or ALLIM_HISTORY_TTL_S; a larger machine",
            ),
            Need(
                "Pub/Sub buffer",
                heard / replicas * push * headroom.pause_s / MIB,
                each.redis_link_mib * headroom.memory_share,
                "MiB",
                "heard / replicas × (event_bytes + push_bytes) × pause_s",
                "add replicas unless all hear the same; a larger client-output-buffer-limit pubsub",
            ),
            Need(
                "network",
                max(redis.into, redis.out) / 1e9,
                each.nic_gbit * headroom.network_share,
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
        load, measured, headroom, each = self.load, self.measured, self.room, self.each
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
                each.nginx_cores * headroom.cpu_share,
                "cores",
                "writes / nginx_writes_per_cpu_s + (requests + openings) / nginx_requests_per_cpu_s",
                "add nginx machines; let services publish to the replicas themselves",
            ),
            Need(
                "memory",
                load.streams * stream_kib / 1024**2,
                each.nginx_memory_gib * headroom.memory_share,
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
                each.conntrack * headroom.memory_share,
                "entries",
                "2 × streams",
                "do not track these connections (notrack), or raise nf_conntrack_max",
            ),
            Need(
                "network",
                max(nginx.into, nginx.out) / 1e9,
                each.nic_gbit * headroom.network_share,
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
