"""Whether this replica has room for one more stream, before those already here feel it."""

import os
from collections.abc import Callable
from pathlib import Path

MAX_LAG_S = 1.0
_STATM = Path("/proc/self/statm")
_CGROUP_MAX = Path("/sys/fs/cgroup/memory.max")


class Load:
    """How late the event loop is, and how much memory the process holds.

    Units: `max_bytes` of resident memory, 0 for no limit; seconds.
    """

    def __init__(self, max_bytes: int = 0, resident: Callable[[], int] | None = None) -> None:
        self._max_bytes = max_bytes
        self._resident = resident or resident_bytes
        self._late_s = (0.0, 0.0)
        self._bytes = 0

    def note(self, late_s: float) -> None:
        """Called a few times a second with how late that was. Twice in a row is load; once, something has passed."""
        self._late_s = (self._late_s[1], late_s)
        if self._max_bytes:
            self._bytes = self._resident()

    def excess(self) -> str | None:
        """What there is too much of: `lag` or `memory`."""
        if min(self._late_s) > MAX_LAG_S:
            return "lag"
        if self._bytes > self._max_bytes:
            return "memory"
        return None


def resident_bytes() -> int:
    """This process's resident memory; 0 where the system does not say."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def limit_bytes() -> int:
    """What this process may hold at most: its container's limit, or the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        container = _CGROUP_MAX.read_text().strip()
    except OSError:
        return machine
    return min(machine, int(container)) if container.isdecimal() else machine
