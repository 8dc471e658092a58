"""The capacity of a replica: whether it can take one more stream without harm to its present ones."""

import os
from collections.abc import Callable
from pathlib import Path

from allim.errors import TooMany, Unavailable
from allim.hub.settings import HubSettings
from allim.networks import Places
from allim.telemetry import Metrics

MAX_LAG_S = 1.0
ADDRESS_RETRY_S = 30  # after a refusal because of too many streams from one address
_STATM = Path("/proc/self/statm")
_CGROUP_MAX = Path("/sys/fs/cgroup/memory.max")


class Capacity:
    """The limits of this replica: streams, streams of one address, memory, and the lag of the event loop.

    Shape: `resident` returns the bytes of memory that the process holds.
    """

    def __init__(self, settings: HubSettings, metrics: Metrics, resident: Callable[[], int] | None = None) -> None:
        self._max_streams = settings.streams_per_replica
        self._max_bytes = settings.memory_max_bytes
        self._places = Places(settings.streams_per_address)
        self._metrics = metrics
        self._resident = resident or resident_bytes
        self._late_s = (0.0, 0.0)
        self._bytes = 0

    def note_lag(self, late_s: float) -> None:
        """Note by how much a timer was late; called a few times a second. Only two late calls in a row count as
        load.
        """
        self._late_s = (self._late_s[1], late_s)
        if self._max_bytes:
            self._bytes = self._resident()

    def check(self, streams: int, address: str) -> None:
        """Check that one more stream from this address fits beside the present streams.

        Raises: Unavailable, TooMany.
        """
        excess = self.excess(streams)
        if excess is not None:
            self._metrics.refused(excess)
            raise Unavailable("this replica has no room for another stream")
        if not self._places.has_room(address):
            self._metrics.refused("streams_per_address")
            raise TooMany("There are too many streams from this address.", ADDRESS_RETRY_S)

    def enter(self, address: str) -> None:
        """Count a stream of this address."""
        self._places.enter(address)

    def leave(self, address: str) -> None:
        """Count a stream of this address no longer."""
        self._places.leave(address)

    def excess(self, streams: int) -> str | None:
        """Return the limit of this replica that is exceeded, or None."""
        if self._max_streams and streams >= self._max_streams:
            return "streams_per_replica"
        if min(self._late_s) > MAX_LAG_S:
            return "lag"
        if self._bytes > self._max_bytes:
            return "memory"
        return None


def resident_bytes() -> int:
    """Return this process's resident memory; 0 where the system does not tell it."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def limit_bytes() -> int:
    """Return the memory limit of this process: its container's limit, or the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        container = _CGROUP_MAX.read_text().strip()
    except OSError:
        return machine
    return min(machine, int(container)) if container.isdecimal() else machine
