"""Decides whether this replica can take one more stream without harm to its present ones."""

import os
from collections.abc import Callable
from pathlib import Path

MAX_LAG_S = 1.0
_STATM = Path("/proc/self/statm")
_CGROUP_MAX = Path("/sys/fs/cgroup/memory.max")


class Load:
    """The lag of the event loop and the memory of the process.

    Units: `max_bytes` of resident memory, 0 for no limit; seconds.
    """

    def __init__(self, max_bytes: int = 0, resident: Callable[[], int] | None = None) -> None:
        self._max_bytes = max_bytes
        self._resident = resident or resident_bytes
        self._late_s = (0.0, 0.0)
        self._bytes = 0

    def note(self, late_s: float) -> None:
        """Note by how much a timer was late; called a few times a second. Only two late calls in a row count as
        load.
        """
        self._late_s = (self._late_s[1], late_s)
        if self._max_bytes:
            self._bytes = self._resident()

    def excess(self) -> str | None:
        """Return the limit that is exceeded: `lag` or `memory`, or None."""
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
