"""A plan as text and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from allim.plan.machines import Plan
from allim.plan.planner import Need

REDIS_GIB = (1, 2, 4, 8, 16, 32)


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
