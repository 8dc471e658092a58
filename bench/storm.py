"""A replica dies by kill -9 and its streams come back at once, while events are published all the time.

    python -m bench.storm [--streams 6000] [--replicas 3] [--restart] [--quick]

Replicas behind nginx, signed-in streams. With `--restart` the replica is started again at once, as `allim up` and
Docker do. All clients have the same address here, so the limits by address and user are high (`bench.allim`); nothing
is switched off. The clients behave as a browser's EventSource (`bench.event_sources`). One more user is watched by a
generator in a process of its own, straight at a replica that lives on.

The exit status is 1 when an event was lost, doubled or came out of order, or a stream did not come back.
"""

import math
import resource
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.deployment import Deployment, deployment
from harness.replicas import Replica
from harness.servers import Redis

from bench.allim import SETTINGS, publish_request, stream_request
from bench.contender import Running
from bench.event_sources import EventSources, Judgement, Pace
from bench.generator import Load, Outcome
from bench.measure import cpu_s, machine, redis_cpu_s
from bench.remote import Remote, generator

WATCHED = 100_000  # the user who is watched
WATCHED_NUMBERS = 10**9  # of its events: no other has them
WATCHED_PER_S = 100
CALM_S = 4.0  # before the kill: what everything costs without a storm
STORM_S = 5.0  # how long after the kill the watched user's events count as the storm's
BACK_WITHIN_S = 60.0  # then it is said who is missing
AFTER_S = 2.0
SENT = frozenset({"evalsha", "eval", "subscribe", "unsubscribe"})  # the others run within scripts
PER_EVENT = "xadd"


class Storm(NamedTuple):
    """One storm as the clients saw it, and what it cost beyond what the same time costs in calm.

    Shape: `cut` streams lost their replica, `returned` ones came back; `return_s` is from the kill to the last frame
    of what each had missed: p50, p99, longest. `placed` is how many came back to which replica. `commands` are Redis
    commands per returned stream by name, those within scripts too. `calm` and `storm` are the watched user's events,
    `others_ms` (p50, p99, longest) those to all users whose replica lived on. `busy` is how much of a CPU each used
    until the last was back; "queued" is what the replicas would have used as well if others had not.
    """

    streams: int
    died: str
    cut: int
    returned: int
    return_s: tuple[float, float, float]
    attempts: Mapping[int, int]
    told_to_wait: int
    placed: Mapping[str, int]
    commands: Mapping[str, float]
    replica_ms: float
    redis_ms: float
    calm: Outcome
    storm: Outcome
    others_ms: tuple[float, float, float]
    longest_turn_ms: float
    busy: Mapping[str, float]
    publishes: int
    answers: Mapping[str, int]
    judged: Judgement

    @property
    def good(self) -> bool:
        whole = not any(self.judged) and self.calm.good and self.storm.good
        return whole and self.returned == self.cut > 0

    @property
    def commands_sent(self) -> float:
        """Redis commands per returned stream that came over a connection, not from within a script."""
        return sum(count for name, count in self.commands.items() if name in SENT)

    def __str__(self) -> str:
        commands = ", ".join(f"{name} {count:.2f}" for name, count in self.commands.items())
        busy = ", ".join(f"{name} {share:.0%}" for name, share in self.busy.items())
        p50, p99, longest = self.return_s
        return "\n".join(
            [
                f"{self.returned:,} of {self.cut:,} streams back ({self.streams:,} in all), every one complete:"
                f" {'yes' if self.good else 'NO'}; {self.judged}",
                f"back and complete after p50 {p50:.2f} s, p99 {p99:.2f} s, the last {longest:.2f} s",
                f"attempts per stream {dict(sorted(self.attempts.items()))}, told to wait {self.told_to_wait};"
                f" came back to {dict(self.placed)}, {self.died} had died",
                f"Redis commands per returned stream: {self.commands_sent:.2f} sent; {commands}",
                f"CPU per returned stream: replicas {self.replica_ms:.2f} ms, Redis {self.redis_ms:.3f} ms",
                f"watched user, calm: {_times(self.calm)}",
                f"watched user, storm: {_times(self.storm)}",
                "others' single events, as their busy clients saw them: "
                + "p50 {:.1f}, p99 {:.1f}, longest {:.1f} ms".format(*self.others_ms)
                + f" (a client's turn took up to {self.longest_turn_ms:.1f} ms)",
                f"CPU until the last was back: {busy}",
                f"{self.publishes:,} publishes, of them tried again after {dict(self.answers) or 'nothing'}",
            ]
        )


class Costs(NamedTuple):
    """What everything has spent until a moment.

    Units: seconds. `queued` is how long the replicas could have run and had no CPU.
    """

    at: float
    replicas: float
    queued: float
    redis: float
    nginx: float
    clients: float
    commands: Mapping[str, int]


def storm(
    deployed: Deployment,
    streams: int,
    pace: Pace,
    *,
    restart: bool,
    calm_s: float = CALM_S,
    storm_s: float = STORM_S,
) -> Storm:
    """Kill the first replica of a deployment and see its streams come back.

    Units: `calm_s` before the kill, `storm_s` after it, are how long the watched user's events count.
    Raises: Failure when the streams do not open.
    """
    assert deployed.nginx is not None
    victim, survivors = deployed.replicas[0], deployed.replicas[1:]
    front = Running(deployed.nginx.port, list, stream_request, publish_request, 202)
    sources = EventSources(front, streams, pace)
    beside = Running(survivors[0].port, list, stream_request, publish_request, 202)
    with generator(beside, first_number=WATCHED_NUMBERS, ignored_below=WATCHED_NUMBERS) as watcher:
        try:
            watcher.prepare(WATCHED, 1)
            sources.open()
            watcher.open(WATCHED, 1)
            sources.run(2.0)  # the first events, which open connections and fill caches
            calm, before, killed_from = _calm(deployed, survivors, sources, watcher, calm_s)
            sources.watch()
            watcher.begin("drive", Load(singles=int(storm_s * WATCHED_PER_S), per_s=WATCHED_PER_S), WATCHED, 1)
            killed_at, starting = time.monotonic(), None
            victim.kill()
            if restart:
                starting = threading.Thread(target=victim.start)
                starting.start()
            sources.run(1.0)  # by then every cut has been seen
            sources.run(BACK_WITHIN_S, sources.all_back)
            after = _costs(deployed, survivors)
            others, longest_turn_s = sorted(sources.late_ns), sources.longest_turn_s
            sources.run(max(AFTER_S, killed_at + storm_s + 0.5 - time.monotonic()))
            storm_seen = watcher.outcome()
            sources.settle(10)
            judged = sources.judge()
        finally:
            sources.close()
    if starting:
        starting.join()
    cut = sources.cut
    back = sorted(source.back_at - killed_at for source in cut if source.back_at)
    spent_s = after.at - killed_from.at
    # Of what the calm cost, so much would have been spent anyway: it goes by the events that were published.
    share = _delta(killed_from, after, PER_EVENT) / max(1, _delta(before, killed_from, PER_EVENT))
    names = sorted(set(after.commands) | set(before.commands))
    commands = {
        name: (_delta(killed_from, after, name) - _delta(before, killed_from, name) * share) / max(1, len(back))
        for name in names
    }

    def beyond_ms(field: str) -> float:
        first, second, third = (float(getattr(costs, field)) for costs in (before, killed_from, after))
        return 1000 * (third - second - (second - first) * share) / max(1, len(back))

    return Storm(
        streams=streams,
        died=f"replica-{victim.port}",
        cut=len(cut),
        returned=len(back),
        return_s=_percentiles(back),
        attempts=Counter(source.attempts for source in cut),
        told_to_wait=sum(source.waits for source in cut),
        placed=Counter(source.replica for source in cut),
        commands={name: count for name, count in commands.items() if count >= 0.005},
        replica_ms=beyond_ms("replicas"),
        redis_ms=beyond_ms("redis"),
        calm=calm,
        storm=storm_seen,
        others_ms=_percentiles([ns / 1e6 for ns in others]),
        longest_turn_ms=longest_turn_s * 1000,
        busy={
            name: (getattr(after, name) - getattr(killed_from, name)) / spent_s
            for name in ("replicas", "queued", "redis", "nginx", "clients")
        },
        publishes=len(sources.owners),
        answers=dict(sources.answers),
        judged=judged,
    )


def _calm(
    deployed: Deployment, survivors: Sequence[Replica], sources: EventSources, watcher: Remote, calm_s: float
) -> tuple[Outcome, Costs, Costs]:
    """What the watched user sees, and what everything costs, before anything happens."""
    before = _costs(deployed, survivors)
    watcher.begin("drive", Load(singles=int((calm_s - 0.5) * WATCHED_PER_S), per_s=WATCHED_PER_S), WATCHED, 1)
    sources.run(calm_s)
    calm = watcher.outcome()
    return calm, before, _costs(deployed, survivors)


def _costs(deployed: Deployment, survivors: Sequence[Replica]) -> Costs:
    assert deployed.nginx is not None
    pids = [replica.process.pid for replica in survivors]
    return Costs(
        time.monotonic(),
        cpu_s(pids),
        sum(map(_queued_s, pids)),
        redis_cpu_s(deployed.redis),
        cpu_s([*deployed.nginx.workers()]),
        time.process_time(),
        _commands(deployed.redis),
    )


def _queued_s(pid: int) -> float:
    """How long the process's main thread has waited for a CPU. Source: the kernel's sched-stats."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def _commands(redis: Redis) -> Mapping[str, int]:
    with redis.client() as client:
        stats = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(stat["calls"]) for name, stat in stats.items()}


def _delta(first: Costs, second: Costs, name: str) -> int:
    return second.commands.get(name, 0) - first.commands.get(name, 0)


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """p50, p99 and the longest, of values in order."""
    if not values:
        return (math.nan,) * 3
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], ordered[-1]


def _times(outcome: Outcome) -> str:
    p50, _, p99, _, longest = outcome.ms
    return f"p50 {p50:.1f}, p99 {p99:.1f}, longest {longest:.1f} ms of {outcome.received} events" + (
        "" if outcome.good else f" WRONG: {outcome}"
    )


@click.command()
@click.option("--streams", default=6000, show_default=True)
@click.option("--replicas", default=3, show_default=True)
@click.option("--restart/--no-restart", default=False, help="Start the killed replica again at once.")
@click.option("--quick", is_flag=True, help="A look: 1,500 streams.")
def main(streams: int, replicas: int, restart: bool, quick: bool) -> None:
    """Kill a replica under load and see every stream come back."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(machine())
    with deployment(replicas, proxied=False, **SETTINGS) as deployed:
        seen = storm(deployed, 1500 if quick else streams, Pace(200, 1), restart=restart)
    print(seen)
    sys.exit(0 if seen.good else 1)


if __name__ == "__main__":
    main()
