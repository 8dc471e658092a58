"""What can befall a world. Each fault breaks something and gives what heals it."""

import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from harness.checker import SignOut, Span

from tests.simulation.network import Connection
from tests.simulation.world import Replica, World

Undo = Callable[[], Coroutine[Any, Any, None] | None]
Fault = Callable[[World, random.Random], Undo]

LATE_S = 1.0  # between an announcement's position and what becomes of it on the way


def nothing() -> None:
    """The fault is a moment, there is nothing to undo."""


def _one(world: World, rng: random.Random) -> Replica:
    return rng.choice(world.replicas)


def _links(world: World, replica: Replica) -> list[Connection]:
    return world.redis.connections_of(replica.name)


# -- The way between a replica and Redis ------------------------------------------------------------------------


def link_is_cut(world: World, rng: random.Random) -> Undo:
    for connection in _links(world, _one(world, rng)):
        connection.cut()
    return nothing


def link_is_refused(world: World, rng: random.Random) -> Undo:
    replica = _one(world, rng)
    world.redis.refusing.add(replica.name)
    for connection in _links(world, replica):
        connection.cut()
    return lambda: world.redis.refusing.discard(replica.name)


def link_stalls(world: World, rng: random.Random) -> Undo:
    """Nothing comes through; then all of it at once."""
    replica = _one(world, rng)
    held = _links(world, replica)
    world.blocked.add(replica.name)
    for connection in held:
        connection.hold()

    def undo() -> None:
        world.blocked.discard(replica.name)
        for connection in held:
            connection.go_on()

    return undo


def announcements_stall(world: World, rng: random.Random) -> Undo:
    """As above, on the subscribed connection alone."""
    replica = _one(world, rng)
    held = [s.connection for s in world.redis.sessions if s.client == replica.name and s.channels]
    for connection in held:
        connection.back.still = True

    def undo() -> None:
        for connection in held:
            connection.back.go_on()

    return undo


def link_is_half_open(world: World, rng: random.Random) -> Undo:
    """What stands is dead and nobody is told; new connections can be made."""
    for connection in _links(world, _one(world, rng)):
        connection.swallow()
    return nothing


def link_is_silent(world: World, rng: random.Random) -> Undo:
    replica = _one(world, rng)
    world.blocked.add(replica.name)
    for connection in _links(world, replica):
        connection.swallow()
    return lambda: world.blocked.discard(replica.name)


def link_loses_answers(world: World, rng: random.Random) -> Undo:
    """What is asked for happens, and nobody hears of it."""
    connections = _links(world, _one(world, rng))
    for connection in connections:
        connection.back.lost = True

    def undo() -> None:
        for connection in connections:
            connection.back.lost = False
            connection.cut()

    return undo


def link_is_late(world: World, rng: random.Random) -> Undo:
    connections = _links(world, _one(world, rng))
    before = world.schedule.delay_s
    for connection in connections:
        connection.there.delay_s = connection.back.delay_s = (0.02, rng.uniform(0.05, 0.5))

    def undo() -> None:
        for connection in connections:
            connection.there.delay_s = connection.back.delay_s = before

    return undo


def _change_messages(
    world: World,
    rng: random.Random,
    change: Callable[[bytes], list[bytes]],
    *,
    may_lose: bool,
    kept: Sequence[bytes] = (),
) -> Undo:
    """Let the subscribed connection of one replica change what it carries. What is `kept` at the end comes then."""
    replica = _one(world, rng)
    changed = [s.connection.back for s in world.redis.sessions if s.client == replica.name and s.channels]
    since = _broker_s(world)
    for way in changed:
        way.change = change

    def undo() -> None:
        for way in changed:
            way.change = None
        for message in kept:
            for way in changed:
                way.send(message)
        if may_lose:
            world.dropping.append(Span(since - LATE_S, _broker_s(world) + LATE_S, replica.name))

    return undo


def _broker_s(world: World) -> float:
    return max(world.broker_position().ms / 1000, world.redis.machine.wall_s())


def _is_event(message: bytes) -> bool:
    return b":topic:" in message[:80]


def link_drops_messages(world: World, rng: random.Random) -> Undo:
    share, own = rng.uniform(0.02, 0.3), random.Random(rng.random())
    return _change_messages(
        world, rng, lambda message: [] if _is_event(message) and own.random() < share else [message], may_lose=True
    )


def link_doubles_messages(world: World, rng: random.Random) -> Undo:
    share, own = rng.uniform(0.05, 0.5), random.Random(rng.random())
    return _change_messages(world, rng, lambda message: [message] * (1 + (own.random() < share)), may_lose=False)


def link_reorders_topics(world: World, rng: random.Random) -> Undo:
    """An announcement comes after the next one of another topic, as over several connections."""
    share, own = rng.uniform(0.1, 0.6), random.Random(rng.random())
    kept: list[bytes] = []

    def change(message: bytes) -> list[bytes]:
        if kept:
            before = kept.pop()
            same = _channel(before) == _channel(message) or not _is_event(message)
            return [before, message] if same else [message, before]
        if _is_event(message) and own.random() < share:
            kept.append(message)
            return []
        return [message]

    return _change_messages(world, rng, change, may_lose=True, kept=kept)


def _channel(message: bytes) -> bytes:
    return message.split(b"\r\n", 5)[4]


# -- Redis ------------------------------------------------------------------------------------------------------


def redis_kills_subscribers(world: World, rng: random.Random) -> Undo:
    world.redis.kill_clients(subscribers=True)
    return nothing


def redis_kills_clients(world: World, rng: random.Random) -> Undo:
    world.redis.kill_clients(subscribers=False)
    return nothing


def redis_hangs(world: World, rng: random.Random) -> Undo:
    world.redis.hang()
    return world.redis.go_on


def redis_forgets_scripts(world: World, rng: random.Random) -> Undo:
    """Now and again, as often as it is asked."""
    world.redis.data.scripts.clear()
    return world.redis.data.scripts.clear


def redis_crashes(world: World, rng: random.Random) -> Undo:
    """What was written in its last second may be lost, unless it is durable."""
    lost_s = 0.0 if world.schedule.durable or rng.random() < 0.3 else rng.uniform(0.05, 1.0)
    since, lost_after_s = world.now(), world.loop.now - lost_s if lost_s else float("inf")
    world.redis.crash()

    def undo() -> None:
        world.redis.start(lost_after_s=lost_after_s)
        if not world.schedule.durable:
            world.forgotten.append(Span(since - lost_s, world.now()))

    return undo


def redis_crashes_and_is_empty(world: World, rng: random.Random) -> Undo:
    since = world.now()
    world.redis.crash()

    def undo() -> None:
        world.redis.start(emptied=True)
        world.forgotten.append(Span(since, world.now()))

    return undo


def redis_is_flushed(world: World, rng: random.Random) -> Undo:
    since = world.now()
    world.redis.data.flush()
    world.forgotten.append(Span(since, world.now()))
    return nothing


def redis_memory_is_full(world: World, rng: random.Random) -> Undo:
    world.redis.data.full = True

    def undo() -> None:
        world.redis.data.full = False

    return undo


def redis_disk_is_full(world: World, rng: random.Random) -> Undo:
    world.redis.data.disk_full = True

    def undo() -> None:
        world.redis.data.disk_full = False

    return undo


RIGHTS = ("publish", "expire", "pexpire", "rpush", "hset", "set", "xadd", "xrevrange", "zadd", "&channels")


def redis_takes_rights(world: World, rng: random.Random) -> Undo:
    """The user that replicas are loses some of its rights."""
    data = world.redis.data
    taken = rng.sample(RIGHTS, rng.choice((1, 1, 2)))
    data.denied = frozenset(taken) - {"&channels"}
    data.quiet = "&channels" in taken

    def undo() -> None:
        data.denied = frozenset()
        data.quiet = False

    return undo


def _set_redis_clock(world: World, by_s: float) -> None:
    world.note_clock()
    world.redis.set_clock(by_s)
    world.note_clock()


STEPS_S = (-5.0, -60.0, -3600.0, 5.0, 60.0, 4000.0, 20_000.0)  # all together less than a day: keys last that long


def redis_clock_is_set(world: World, rng: random.Random) -> Undo:
    _set_redis_clock(world, rng.choice(STEPS_S) * rng.uniform(0.8, 1.2))
    return nothing


def redis_clock_is_wrong_for_a_while(world: World, rng: random.Random) -> Undo:
    by_s = rng.choice(STEPS_S) * rng.uniform(0.8, 1.2)
    _set_redis_clock(world, by_s)
    return lambda: _set_redis_clock(world, -by_s)


# -- Replicas ---------------------------------------------------------------------------------------------------


def replica_crashes(world: World, rng: random.Random) -> Undo:
    replica = _one(world, rng)
    if not replica.up:
        return nothing
    replica.crash()
    return replica.start


def replica_is_deployed(world: World, rng: random.Random) -> Undo:
    replica = _one(world, rng)
    if not replica.up:
        return nothing
    stopping = world.loop.create_task(replica.stop())

    async def undo() -> None:
        await stopping
        replica.start()

    return undo


def replica_settings_change(world: World, rng: random.Random) -> Undo:
    """A rolling change, replica by replica; this is the first of it, or of its way back."""
    replica = _one(world, rng)
    if not replica.up:
        return nothing
    stopping = world.loop.create_task(replica.stop())
    history = rng.choice(
        ({"history_ttl_s": 10}, {"history_ttl_s": 7200}, {"history_events": 10}, {"history_events": 5000})
    )

    async def undo() -> None:
        await stopping
        replica.plan = replace(replica.plan, **history)
        world.kept_s.append(replica.plan.history_ttl_s)
        replica.start()

    return undo


def replica_clock_is_set(world: World, rng: random.Random) -> Undo:
    _one(world, rng).set_clock(rng.choice((-90.0, -5.0, 5.0, 90.0, 3700.0)) * rng.uniform(0.8, 1.2))
    return nothing


# -- People -----------------------------------------------------------------------------------------------------


def somebody_signs_out(world: World, rng: random.Random) -> Undo:
    """Over any replica, which need not be the one that issued the token or holds the stream."""
    reader, replica = rng.choice(world.readers), _one(world, rng)

    async def ask() -> None:
        if not replica.up:
            return
        answer = replica.machine.run(replica.sign_out(reader.token))
        answer.add_done_callback(lambda task: world.look_at("sign-out", task))
        try:
            status = await answer
        except Exception:  # noqa: BLE001 - noted by look_at
            return
        world.sign_outs.append(SignOut(reader.log.name, status, world.now()))

    world.people.append(world.loop.create_task(ask()))
    return nothing


FAULTS: dict[str, tuple[Fault, float, float, float]] = {
    fault.__name__: (fault, weight, shortest_s, longest_s)
    for fault, weight, shortest_s, longest_s in (
        (link_is_cut, 2, 0, 0),
        (link_is_refused, 1, 0.5, 8),
        (link_stalls, 3, 0.5, 7),
        (announcements_stall, 2, 0.3, 7),
        (link_is_half_open, 1, 0, 0),
        (link_is_silent, 1, 0.5, 8),
        (link_loses_answers, 2, 0.2, 2),
        (link_is_late, 1, 0.5, 5),
        (link_drops_messages, 2, 1, 5),
        (link_doubles_messages, 1, 1, 5),
        (link_reorders_topics, 3, 1, 5),
        (redis_kills_subscribers, 1, 0, 0),
        (redis_kills_clients, 1, 0, 0),
        (redis_hangs, 1, 0.5, 8),
        (redis_forgets_scripts, 1, 0.1, 2),
        (redis_crashes, 2, 0.2, 6),
        (redis_crashes_and_is_empty, 1, 0.2, 6),
        (redis_is_flushed, 3, 0, 0),
        (redis_memory_is_full, 2, 0.5, 6),
        (redis_disk_is_full, 1, 0.5, 6),
        (redis_takes_rights, 3, 0.5, 6),
        (redis_clock_is_set, 4, 0, 0),
        (redis_clock_is_wrong_for_a_while, 2, 0.2, 6),
        (replica_crashes, 2, 0.2, 5),
        (replica_is_deployed, 1, 0.1, 2),
        (replica_settings_change, 1, 0.1, 2),
        (replica_clock_is_set, 1, 0, 0),
        (somebody_signs_out, 4, 0, 0),
    )
}
