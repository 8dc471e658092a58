"""A storm of publishers and followers under a random schedule of faults, judged by `harness/checker.py`.

    make chaos SECONDS=300 SEED=7

The seed decides which fault comes when, where and for how long, so a schedule that found something can be run again.
"""

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import click
from harness.checker import Evidence, Mark, Report, Span, check
from harness.deployment import Deployment, deployment
from harness.proxy import FaultProxy
from harness.replicas import Replica
from harness.storm import Storm
from harness.waiting import until

STREAM_LIFETIME_S, HISTORY_EVENTS, RETRY_MS = 60, 2000, 500
HEARTBEAT_PULSES, DRAIN_PULSES = 3, 3
LONGEST_HOLD_PULSES, QUIET_PULSES = 8, 9  # a fault lasts up to this long, and then all is well for this long
DOUBLE_SHARE = 0.3  # of rounds with two faults
REDIS_OPTIONS = ("--appendonly", "yes", "--appendfsync", "everysec")

END_S = 40.0  # for the last events to reach everybody

# What may stay behind when every follower has left.
MORE_RSS_KIB = 48 * 1024  # memory that Python keeps for the next streams
MORE_FDS = 12
MORE_REDIS_CLIENTS_PER_REPLICA = 4
LEFT_WITHIN_S = 20.0


# -- Faults ---------------------------------------------------------------------------------------------------


@dataclass
class World:
    """What faults act on and what they leave for the checker to know."""

    deployed: Deployment
    pulse_s: float
    forgotten: list[Span] = field(default_factory=list)
    dropping: list[Span] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def replica(self, rng: random.Random) -> Replica:
        return rng.choice(self.deployed.replicas)

    def proxy(self, rng: random.Random) -> FaultProxy:
        return rng.choice(self.deployed.proxies)


Undo = Callable[[], None]
Fault = Callable[[World, random.Random], Undo]


def nothing() -> None:
    """The fault is a moment, there is nothing to undo."""


def replica_crashes(world: World, rng: random.Random) -> Undo:
    replica = world.replica(rng)
    replica.kill()

    def undo() -> None:
        replica.start()
        replica.until_ready()

    return undo


def replica_hangs(world: World, rng: random.Random) -> Undo:
    replica = world.replica(rng)
    replica.pause()
    return replica.resume


def replica_is_deployed(world: World, rng: random.Random) -> Undo:
    replica = world.replica(rng)
    replica.process.terminate()

    def undo() -> None:
        status = replica.process.wait(DRAIN_PULSES * world.pulse_s + 5)
        if status:
            world.problems.append(f"replica-{replica.port} ended with status {status} when it was drained")
        replica.start()
        replica.until_ready()

    return undo


def link_is_cut(world: World, rng: random.Random) -> Undo:
    world.proxy(rng).cut()
    return nothing


def link_is_reset(world: World, rng: random.Random) -> Undo:
    world.proxy(rng).reset()
    return nothing


def link_is_silent(world: World, rng: random.Random) -> Undo:
    proxy = world.proxy(rng)
    proxy.black_hole()
    return proxy.heal


def link_is_refused(world: World, rng: random.Random) -> Undo:
    proxy = world.proxy(rng)
    proxy.refuse()
    return proxy.heal


def link_is_late(world: World, rng: random.Random) -> Undo:
    proxy = world.proxy(rng)
    proxy.delay(rng.uniform(0.05, 0.5))
    return proxy.heal


def link_loses_answers(world: World, rng: random.Random) -> Undo:
    """Late at first, then reset: what was asked for has happened, and nobody knows."""
    proxy = world.proxy(rng)
    proxy.delay(rng.uniform(0.2, 0.5))

    def undo() -> None:
        proxy.reset()
        proxy.heal()

    return undo


def link_trickles(world: World, rng: random.Random) -> Undo:
    proxy = world.proxy(rng)
    proxy.trickle(rng.randint(5_000, 50_000))
    return proxy.heal


def link_drops_messages(world: World, rng: random.Random) -> Undo:
    index = rng.randrange(len(world.deployed.proxies))
    proxy, replica = world.deployed.proxies[index], world.deployed.replicas[index]
    since = time.time()
    proxy.drop_messages(rng.uniform(0.01, 0.2), rng.getrandbits(32))

    def undo() -> None:
        proxy.heal()
        world.dropping.append(Span(since, time.time(), f"replica-{replica.port}"))

    return undo


def redis_kills_subscribers(world: World, rng: random.Random) -> Undo:
    return _redis_kills(world, "pubsub")


def redis_kills_clients(world: World, rng: random.Random) -> Undo:
    return _redis_kills(world, "normal")


def _redis_kills(world: World, kind: str) -> Undo:
    with world.deployed.redis.client() as client:
        client.client_kill_filter(_type=kind, skipme=True)
    return nothing


def redis_pauses(world: World, rng: random.Random) -> Undo:
    with world.deployed.redis.client() as client:
        client.client_pause(
            round(rng.uniform(0.5, LONGEST_HOLD_PULSES) * world.pulse_s * 1000)
        )  # all commands wait, also the one that would end it
    return world.deployed.redis.until_answers


def redis_hangs(world: World, rng: random.Random) -> Undo:
    world.deployed.redis.pause()
    return world.deployed.redis.resume


def redis_crashes(world: World, rng: random.Random) -> Undo:
    return _redis_crashes(world, emptied=False)


def redis_crashes_and_is_empty(world: World, rng: random.Random) -> Undo:
    return _redis_crashes(world, emptied=True)


def _redis_crashes(world: World, *, emptied: bool) -> Undo:
    since = time.time()
    world.deployed.redis.kill()

    def undo() -> None:
        world.deployed.redis.start(emptied=emptied)
        world.forgotten.append(Span(since, time.time()))

    return undo


def redis_is_flushed(world: World, rng: random.Random) -> Undo:
    since = time.time()
    with world.deployed.redis.client() as client:
        client.flushall()
    world.forgotten.append(Span(since, time.time()))
    return nothing


def redis_forgets_scripts(world: World, rng: random.Random) -> Undo:
    with world.deployed.redis.client() as client:
        client.script_flush()
    return nothing


def nginx_is_reloaded(world: World, rng: random.Random) -> Undo:
    assert world.deployed.nginx is not None
    world.deployed.nginx.reload()
    return nothing


def nginx_crashes(world: World, rng: random.Random) -> Undo:
    assert world.deployed.nginx is not None
    world.deployed.nginx.kill()
    return world.deployed.nginx.start


# By what they break, in the order in which they are undone: a replica is ready again only over a Redis that answers.
FAULTS: dict[str, Sequence[Fault]] = {
    "redis": (
        redis_kills_subscribers,
        redis_kills_clients,
        redis_pauses,
        redis_hangs,
        redis_crashes,
        redis_crashes_and_is_empty,
        redis_is_flushed,
        redis_forgets_scripts,
    ),
    "link": (
        link_is_cut,
        link_is_reset,
        link_is_silent,
        link_is_refused,
        link_is_late,
        link_loses_answers,
        link_trickles,
        link_drops_messages,
    ),
    "nginx": (nginx_is_reloaded, nginx_crashes),
    "replica": (replica_crashes, replica_hangs, replica_is_deployed),
}
ALL_FAULTS = {fault.__name__: fault for faults in FAULTS.values() for fault in faults}


@dataclass(frozen=True, slots=True)
class Round:
    """Faults that come together, how long they last, and when the round ends.

    Units: seconds from the beginning of the storm; `hold_s` from the round's own.
    """

    at_s: float
    hold_s: float
    ends_s: float
    faults: tuple[str, ...]
    seed: int

    def __str__(self) -> str:
        return f"{', '.join(self.faults)}, for {self.hold_s:.1f} s"


def make_schedule(seconds: float, seed: int, *, pulse_s: float = 1.0, only: Sequence[str] = ()) -> list[Round]:
    """Rounds of one fault or of two of different kinds; every fault comes before any comes again."""
    rng = random.Random(seed)
    group_of = {fault.__name__: group for group, faults in FAULTS.items() for fault in faults}
    waiting: list[str] = []
    rounds: list[Round] = []
    at_s = 0.0
    while True:
        hold_s = rng.uniform(0.5, LONGEST_HOLD_PULSES) * pulse_s
        ends_s = at_s + hold_s + QUIET_PULSES * pulse_s
        if ends_s > seconds:
            return rounds
        faults: list[str] = []
        for _ in range(2 if rng.random() < DOUBLE_SHARE else 1):
            if not waiting:
                waiting = rng.sample(list(only or ALL_FAULTS), len(only or ALL_FAULTS))
            taken = {group_of[name] for name in faults}
            if fitting := next((name for name in waiting if group_of[name] not in taken), None):
                waiting.remove(fitting)
                faults.append(fitting)
        faults.sort(key=lambda name: [*FAULTS].index(group_of[name]))
        rounds.append(Round(at_s, hold_s, ends_s, tuple(faults), rng.getrandbits(32)))
        at_s = ends_s


def recovery_s(pulse_s: float) -> float:
    """A link's patience, its longest pause before it connects again, a pulse, a heartbeat to say so, and a margin."""
    return 2.4 * pulse_s + 2.0 + pulse_s + HEARTBEAT_PULSES * pulse_s + 1.6


def conduct(world: World, schedule: Sequence[Round], limit_s: float, say: Callable[[str], None]) -> list[Mark]:
    """Break and heal by the schedule; blocks, so it runs on a thread. A mark for each time all was healed."""
    began = time.monotonic()
    marks: list[Mark] = []
    for round_ in schedule:
        time.sleep(max(0.0, began + round_.at_s - time.monotonic()))
        rng = random.Random(round_.seed)
        say(f"{time.monotonic() - began:6.1f} s: {round_}")
        if marks:
            marks[-1] = marks[-1]._replace(undisturbed_until=time.time())
        undos = [ALL_FAULTS[name](world, rng) for name in round_.faults]
        time.sleep(round_.hold_s)
        for undo in undos:
            undo()
        marks.append(Mark(time.time(), " and ".join(round_.faults), limit_s))
        time.sleep(max(0.0, began + round_.ends_s - time.monotonic()))
    world.deployed.heal()
    return marks


# -- What must be as it was when everybody has left -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a deployment holds."""

    rss_kib: tuple[int, ...]
    fds: tuple[int, ...]
    redis_clients: int
    channels: tuple[str, ...]

    def __str__(self) -> str:
        per_replica = ", ".join(f"{rss} KiB {fds} fds" for rss, fds in zip(self.rss_kib, self.fds, strict=True))
        return f"{per_replica}; {self.redis_clients} clients and {len(self.channels)} channels of Redis"

    @classmethod
    def of(cls, deployed: Deployment) -> "Footprint":
        with deployed.redis.client() as client:
            channels = sorted(channel.decode() for channel in client.pubsub_channels())
            clients = len(client.client_list())
        replicas = deployed.replicas
        return cls(
            tuple(replica.rss_kib() for replica in replicas),
            tuple(replica.fds() for replica in replicas),
            clients,
            tuple(channels),
        )

    def grown_over(self, start: "Footprint") -> list[str]:
        """What is above the start, beyond its tolerance."""
        grown = [
            f"replica {at}: {name} {now}, was {was} at the start, tolerated are {more} more"
            for name, nows, wases, more in (
                ("RSS in KiB", self.rss_kib, start.rss_kib, MORE_RSS_KIB),
                ("file descriptors", self.fds, start.fds, MORE_FDS),
            )
            for at, (now, was) in enumerate(zip(nows, wases, strict=True))
            if now > was + more
        ]
        if self.redis_clients > start.redis_clients + MORE_REDIS_CLIENTS_PER_REPLICA * len(self.fds):
            grown.append(f"Redis has {self.redis_clients} clients, had {start.redis_clients}")
        if left := set(self.channels) - set(start.channels):
            grown.append(f"Redis has {len(left)} channels more: {sorted(left)[:5]}")
        return grown


# -- The whole ------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """Shape: `problems` is what was wrong beside the checker's report."""

    report: Report
    problems: list[str]
    schedule: Sequence[Round]
    start: Footprint
    left: Footprint

    @property
    def clean(self) -> bool:
        return self.report.clean and not self.problems

    def __str__(self) -> str:
        lines = [str(self.report), f"at the start {self.start}", f"at the end   {self.left}"]
        return "\n".join([*lines, *(f"PROBLEM {problem}" for problem in self.problems)])


async def chaos(
    seconds: float,
    seed: int,
    *,
    followers: int = 500,
    publishes_per_s: float = 150,
    pulse_s: float = 1.0,
    stream_lifetime_s: float = STREAM_LIFETIME_S,
    only: Sequence[str] = (),
    folder: Path,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Run a storm over a schedule of faults and judge it. `folder` keeps every log."""
    schedule = make_schedule(seconds, seed, pulse_s=pulse_s, only=only)
    heartbeat_s, drain_s = HEARTBEAT_PULSES * pulse_s, DRAIN_PULSES * pulse_s
    with deployment(
        3,
        redis_options=REDIS_OPTIONS,
        folder=folder,
        pulse_s=pulse_s,
        heartbeat_s=heartbeat_s,
        drain_s=drain_s,
        stream_lifetime_s=stream_lifetime_s,
        history_events=HISTORY_EVENTS,
        retry_ms=RETRY_MS,
    ) as deployed:
        world = World(deployed, pulse_s)
        start = Footprint.of(deployed)
        storm = Storm(deployed.urls, deployed.url, seed, heartbeat_s)
        stop = asyncio.Event()
        async with storm.following(followers):
            publishing = asyncio.create_task(storm.publish(publishes_per_s, stop))
            try:
                marks = await asyncio.to_thread(conduct, world, schedule, recovery_s(pulse_s), say)
            finally:
                stop.set()
                await publishing
            if behind := await storm.end(END_S):
                world.problems.append(f"{len(behind)} followers never caught up: {behind[:10]}")
        assert deployed.nginx is not None
        deployed.nginx.end()  # and the connections it keeps for later
        left = await _left(deployed, start)
        world.problems += left.grown_over(start)
    evidence = Evidence(
        storm.publishes, [follower.log for follower in storm.followers], marks, world.forgotten, world.dropping
    )
    problems = world.problems + _errors_logged(deployed)
    outcome = Outcome(check(evidence), problems, schedule, start, left)
    if not outcome.clean:
        _keep(folder, evidence, outcome)
    return outcome


async def _left(deployed: Deployment, start: Footprint) -> Footprint:
    """What is held when all have left, or when the time to let go is over."""
    with suppress(AssertionError):
        await until(lambda: not Footprint.of(deployed).grown_over(start), LEFT_WITHIN_S)
    return Footprint.of(deployed)


def _errors_logged(deployed: Deployment) -> list[str]:
    """A fault is a warning; an error or a traceback in a replica's log is a mistake of ours."""
    found = []
    for replica in deployed.replicas:
        lines = replica.log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if '"level":"error"' in line or line.startswith("Traceback")]
        if errors:
            found.append(f"{replica.log.name} has {len(errors)} errors, the first: {errors[0][:1500]}")
    return found


def _keep(folder: Path, evidence: Evidence, outcome: Outcome) -> None:
    logs = folder / "followers"
    logs.mkdir()
    for follower in evidence.followers:
        (logs / follower.name).write_text("\n".join(map(str, follower.entries)))
    (folder / "publishes").write_text("\n".join(map(str, evidence.publishes)))
    (folder / "report").write_text("\n".join([*map(str, outcome.schedule), *map(str, evidence.marks), str(outcome)]))


@click.command()
@click.option("--seconds", default=600.0, show_default=True)
@click.option("--seed", default=None, type=int, help="Decides the schedule; random if absent.")
@click.option("--followers", default=500, show_default=True)
@click.option("--publishes-per-s", default=150.0, show_default=True)
@click.option("--only", default="", help="Names of faults, separated by commas.")
def main(seconds: float, seed: int | None, followers: int, publishes_per_s: float, only: str) -> None:
    """Exit status 0 when every promise held, else 1, with the logs kept."""
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    click.echo(f"seed {seed}, {seconds:.0f} s, {followers} followers")
    folder = Path(tempfile.mkdtemp(prefix="allim-chaos-"))
    names = [name for name in only.split(",") if name]
    outcome = asyncio.run(
        chaos(
            seconds, seed, followers=followers, publishes_per_s=publishes_per_s,
            only=names, folder=folder, say=click.echo,
        )
    )  # fmt: skip
    click.echo(str(outcome))
    if outcome.clean:
        shutil.rmtree(folder)
        return
    click.echo(f"seed {seed}; the logs are kept in {folder}")
    raise SystemExit(1)


if __name__ == "__main__":
    main()
