"""Settings of a Redis that lose events silently."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from allim.brokers.redis.keys import Keys
from allim.brokers.redis.server import info_fields, write


class Pitfall(NamedTuple):
    """A setting that loses events. `subject` is `memory`, `durability`, `role` or `replay`."""

    subject: str
    detail: str
    advice: str


class Setup(NamedTuple):
    """The settings that a Redis reports.

    Shape: `info` as INFO writes it. `settings` are those of `*append*`, and `replay` is why Redis could not replay
    its append-only file, or ''; each None when the user may not ask.
    """

    info: Mapping[str, str]
    settings: Mapping[str, str] | None
    replay: str | None


async def look(connection: AbstractConnection, keys: Keys) -> Setup:
    """Read the settings of Redis, in one round trip.

    Raises: RedisError, OSError.
    """
    replayed = (
        ("HSET", keys.clock, "ms", "1"),
        ("XADD", keys.history + "t", "*", "d", "1"),
        ("PEXPIREAT", keys.idempotency + "k", "1"),
    )
    commands = [
        ("INFO",),
        ("CONFIG", "GET", "*append*"),
        *(("ACL", "DRYRUN", "default", *words) for words in replayed),
    ]
    await write(connection, commands)
    info, settings, *dry_runs = [await _reply(connection) for _ in commands]
    if isinstance(info, ResponseError):
        raise info
    return Setup(
        info_fields(info),
        None if isinstance(settings, ResponseError) else _pairs(settings),
        _first_refusal(dry_runs),
    )


def pitfalls(setup: Setup, *, durable: bool) -> list[Pitfall]:
    """Return the settings that lose events. `durable`: ALLIM_REDIS_DURABLE states that a restart loses nothing."""
    info = setup.info
    found = []
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(
            Pitfall(
                "memory",
                f"maxmemory-policy is {policy}",
                "set maxmemory-policy noeviction: any other policy deletes history silently",
            )
        )
    if info.get("role", "master") != "master":
        found.append(Pitfall("role", "this Redis is a replica", "let ALLIM_REDIS_URL lead to the master"))
    if info.get("cluster_enabled") == "1":
        found.append(Pitfall("role", "this Redis is a node of a cluster", "use one server, with or without Sentinel"))
    if durable and (why := _loses_its_end(setup)):
        found.append(
            Pitfall(
                "durability",
                f"ALLIM_REDIS_DURABLE is true, and {why}",
                "unset ALLIM_REDIS_DURABLE, or set appendonly yes, appendfsync always",
            )
        )
    if setup.replay and keeps_a_file(info) and not _replays_without_rights(info):
        found.append(
            Pitfall(
                "replay",
                f"Redis replays its append-only file as the user `default`, which may not: {setup.replay}",
                "give it all rights and no password: user default off resetpass ~* &* +@all",
            )
        )
    return found


def keeps_a_file(info: Mapping[str, str]) -> bool:
    return info.get("aof_enabled") == "1"


def _replays_without_rights(info: Mapping[str, str]) -> bool:
    """Return whether this is Valkey 9 or later, which replays its file without checking rights, as the tests show.
    Versions between it and Redis 7 were not tried.
    """
    return int(info.get("valkey_version", "0").partition(".")[0]) >= 9


def _loses_its_end(setup: Setup) -> str:
    """Return why a restart may lose the last writes; '' if it does not, or if the user may not read the settings."""
    if not keeps_a_file(setup.info):
        return "this Redis has no append-only file"
    if setup.settings is None:
        return ""
    if (sync := setup.settings.get("appendfsync", "always")) != "always":
        return f"its append-only file is synced {'every second' if sync == 'everysec' else 'by the system'}"
    if setup.settings.get("no-appendfsync-on-rewrite") == "yes":
        return "its append-only file is not synced while it is rewritten (no-appendfsync-on-rewrite)"
    return ""


async def _reply(connection: AbstractConnection) -> Any:
    """Return the next reply; an error is returned, not raised."""
    try:
        return await connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


def _first_refusal(dry_runs: Sequence[Any]) -> str | None:
    if any(isinstance(said, ResponseError) for said in dry_runs):
        return None
    return next((str(said.decode()) for said in dry_runs if said != b"OK"), "")


def _pairs(reply: Sequence[bytes]) -> dict[str, str]:
    words = [word.decode(errors="replace") for word in reply]
    return dict(zip(words[::2], words[1::2], strict=True))
