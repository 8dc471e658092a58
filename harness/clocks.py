"""Processes whose wall clock can be set while they run: redis-servers and replicas.

A process gets a preloaded library, compiled here, that adds an offset to its wall clock and leaves the monotonic one
alone. libfaketime does the same, but with it a Redis that uses jemalloc does not start.
"""

import mmap
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness.servers import Redis, redis_server

_SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *offset_ms;

__attribute__((constructor)) static void open_offset(void) {
    int file = open(getenv("CLOCK_OFFSET"), O_RDONLY);
    void *page = mmap(0, sizeof *offset_ms, PROT_READ, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) offset_ms = page;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && offset_ms && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        long long ms = *offset_ms;
        now->tv_sec += ms / 1000;
        now->tv_nsec += ms % 1000 * 1000000;
        if (now->tv_nsec < 0) { now->tv_sec--; now->tv_nsec += 1000000000; }
        if (now->tv_nsec >= 1000000000) { now->tv_sec++; now->tv_nsec -= 1000000000; }
    }
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *where) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (where) *where = precise.tv_sec;
    return precise.tv_sec;
}
"""


@dataclass
class WallClock:
    """The wall clock of the processes that are started with `environ`."""

    environ: Mapping[str, str]
    _page: mmap.mmap = field(repr=False)

    def shift(self, offset_s: float) -> None:
        """Set it, so far from the true one."""
        self._page[:8] = struct.pack("=q", round(offset_s * 1000))


@contextmanager
def wall_clock(offset_s: float = 0.0) -> Iterator[WallClock]:
    """A wall clock so far from the true one, until it is shifted."""
    folder = Path(tempfile.mkdtemp(prefix="allim-clock-"))
    source, library, offset = folder / "clock.c", folder / "clock.so", folder / "offset"
    source.write_text(_SHIM)
    offset.write_bytes(bytes(8))
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    try:
        with offset.open("r+b") as file, mmap.mmap(file.fileno(), 8) as page:
            clock = WallClock({"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}, page)
            clock.shift(offset_s)
            yield clock
    finally:
        shutil.rmtree(folder)


@dataclass
class ShiftedRedis:
    """A redis-server and its wall clock."""

    server: Redis
    clock: WallClock

    @property
    def url(self) -> str:
        return self.server.url

    def shift(self, offset_s: float) -> None:
        """Set its clock, so far from the true one; returns when it goes by that."""
        self.clock.shift(offset_s)
        with self.server.client() as client:
            seconds, _ = client.time()
        assert abs(seconds - time.time() - offset_s) < 5


@contextmanager
def shifted_redis(*options: str) -> Iterator[ShiftedRedis]:
    """A redis-server whose clock is right until it is shifted."""
    with wall_clock() as clock, redis_server(*options, environ=clock.environ) as server:
        yield ShiftedRedis(server, clock)
