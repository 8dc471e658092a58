"""A plan: the machines that a load needs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from allim.plan.figures import Each, Headroom, Load, Measured
from allim.plan.planner import Need, Part, Planner, Rate, Traffic

NGINX_CORES, NGINX_GIB_PER_CORE = (1, 2, 4, 8), 2  # common machines, of which the last are those of `Each`


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
        """The resource that saturates first when replicas and nginx machines are added: there is one Redis."""
        return self.redis.first

    @property
    def enough(self) -> bool:
        """Whether one Redis carries it."""
        return self.bottleneck.ratio <= 1


def plan(
    load: Load, measured: Measured | None = None, headroom: Headroom | None = None, each: Each | None = None
) -> Plan:
    """Return the machines that a load needs. Without `each`, they are no larger than it needs.

    Raises: Impossible.
    """
    measured, headroom = measured or Measured(), headroom or Headroom()
    planner = Planner(load, measured, headroom, each or fitting(load, measured, headroom))
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


def fitting(load: Load, measured: Measured, headroom: Headroom) -> Each:
    """The smallest nginx machine of which it takes no more than of the largest."""
    largest = Each()
    sizes = [replace(largest, nginx_cores=n, nginx_memory_gib=n * NGINX_GIB_PER_CORE) for n in NGINX_CORES]
    counts = [_count(Planner(load, measured, headroom, size).nginx_needs()) for size in sizes]
    return sizes[counts.index(counts[-1])]


def _count(needs: Sequence[Need]) -> int:
    return max(math.ceil(need.ratio) for need in needs)
