"""What processes have spent and hold, from /proc and from Redis itself."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from harness.servers import Redis

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pids: Sequence[int]) -> float:
    """CPU time these processes have spent, in user and kernel mode, all threads. Units: seconds."""
    return sum(_ticks(pid) for pid in pids) * TICK_S


def memory_kib(pids: Sequence[int]) -> int:
    """Resident memory: of one process as it is, of several by their shares of what they have in common.

    The kernel's memory for sockets is not in it. Source: proc(5), VmRSS in status and Pss in smaps_rollup.
    """
    if len(pids) == 1:
        return _kib(Path(f"/proc/{pids[0]}/status"), "VmRSS")
    return sum(_kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss") for pid in pids)


def redis_cpu_s(redis: Redis) -> float:
    """CPU time Redis has spent, as it says. Units: seconds."""
    with redis.client() as client:
        info = client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def redis_version(redis: Redis) -> str:
    with redis.client() as client:
        return str(client.info("server")["redis_version"])


def machine() -> str:
    """Cores, model, memory and kernel, in one line."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    gib = _kib(Path("/proc/meminfo"), "MemTotal") / 1024**2
    system = os.uname()
    name = model[1] if model else system.machine
    return f"{os.cpu_count()} cores {name}, {gib:.0f} GiB memory, {system.sysname} {system.release}"


def _ticks(pid: int) -> int:
    # The name, in brackets, may hold anything; utime and stime are the 12th and 13th field behind it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _kib(file: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", file.read_text(), re.MULTILINE)
    assert found, f"{file} does not tell {name}"
    return int(found[1])
