"""Measured figures, the load that is asked for, the machines, and the share of them that stays free."""

from dataclasses import asdict, dataclass, field, fields


def figure(value: float, unit: str, source: str) -> float:
    made: float = field(default=value, metadata={"unit": unit, "source": source})
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Figures, measured on a machine with two cores. Shape: each field's metadata holds its unit and its source."""

    rest_events_per_cpu_s: float = figure(8_400, "events per replica CPU-s", "one event to one stream per request")
    batch_events_per_cpu_s: float = figure(44_000, "events per replica CPU-s", "the same, 1,000 events per request")
    heard_events_per_cpu_s: float = figure(60_000, "events per replica CPU-s", "each further replica that hears one")
    writes_per_cpu_s: float = figure(100_000, "writes per replica CPU-s", "a lone broadcast; joined, three times it")
    openings_per_cpu_s: float = figure(3_900, "openings per replica CPU-s", "signed in, over Redis, with catch-up")
    returns_per_cpu_s: float = figure(1_600, "openings per replica CPU-s", "the same in a storm, all else included")
    replica_base_mib: float = figure(98, "MiB", "resident, without streams")
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
class Headroom:
    """The share of each machine that stays free. `spare` replicas and nginx machines may be lost."""

    cpu_share: float = 0.5
    memory_share: float = 0.8
    network_share: float = 0.5
    spare: int = 1
    storm_s: float = 10  # within which a lost replica's streams are back, with the CPU that was left free
    pause_s: float = 1  # for which a replica may stand still and its link's buffer in Redis not run over


@dataclass(frozen=True, slots=True, kw_only=True)
class Each:
    """The resources of one machine of each kind. These are common values; other machines have others."""

    replica_memory_mib: float = 2048
    replica_open_files: int = 65_536
    replica_kept_files: int = 256  # of them, for files that are no stream
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
    """The load to carry. Shape: `fan_out` streams get each event; `batch` events come in one request; `keyed` is
    whether requests carry idempotency keys; the rest are settings.

    Raises: ValueError with the fault, beginning with the option's name.
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


def figures() -> list[tuple[str, float, str, str]]:
    """Name, value, unit and source of every measured figure."""
    values = asdict(Measured())
    return [
        (each.name, values[each.name], each.metadata["unit"], each.metadata["source"]) for each in fields(Measured)
    ]
