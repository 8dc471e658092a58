"""The settings of a hub. Their meanings and defaults stand in docs/operations.md."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """Units: as the names say."""

    heartbeat_s: float
    pulse_s: float
    max_event_bytes: int
    stream_buffer_bytes: int
    stream_lifetime_s: float
    drain_s: float
    streams_per_user: int
    streams_per_address: int
    streams_per_replica: int
    memory_max_bytes: int
    revocation_s: float
