"""`allim doctor`: looks at what allim stands on and says what to do about it.

Changes nothing, but makes what a first start would make: the data folder, its key and the database file.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import httpx
from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import RedisError

from allim.brokers.memory_watch import ERROR_SHARE, WARN_SHARE
from allim.brokers.server import pool_of
from allim.client import ClientError, Subscriber
from allim.errors import AllimError
from allim.http.tokens import Tokens
from allim.settings import Settings, SettingsError, load_settings, unknown_settings
from allim.storage import open_engine, reachable

TIMEOUT_S = 5.0
FIRST_FRAME_S = 2.0
OLDEST_REDIS = (7, 0)
_REDIS_OPTIONS: dict[str, Any] = {"protocol": 2, "socket_timeout": TIMEOUT_S}


class Finding(NamedTuple):
    """One thing looked at. `advice` is what to do, empty when nothing."""

    what: str
    ok: bool
    detail: str
    advice: str = ""


async def examine(environ: Mapping[str, str], url: str | None) -> list[Finding]:
    """All findings, in the order in which to mend them."""
    try:
        settings = load_settings(environ)
    except SettingsError as error:
        return [Finding("settings", False, str(error), "correct the variable; docs/operations.md lists them all")]
    findings = [_settings(settings, environ), await _database(settings)]
    findings += await _redis(settings)
    if url is not None:
        findings.append(await _stream(settings, url))
    return findings


def _settings(settings: Settings, environ: Mapping[str, str]) -> Finding:
    form = "several replicas over Redis" if settings.clustered else "one process, memory broker"
    unknown = unknown_settings(environ)
    advice = f"no setting is called {', '.join(unknown)}; check the spelling" if unknown else ""
    return Finding("settings", not unknown, form, advice)


async def _database(settings: Settings) -> Finding:
    advice = "check ALLIM_DATABASE_URL and that the server runs and lets this user in"
    try:
        engine = open_engine(settings.database_url)
        try:
            took_ms = await _timed(lambda: reachable(engine))
        finally:
            await engine.dispose()
    except (ValueError, AllimError, TimeoutError) as error:
        return Finding("database", False, str(error) or "no answer", advice)
    kind = engine.dialect.name
    if kind == "sqlite" and settings.clustered:
        return Finding("database", True, f"sqlite answers in {took_ms:.1f} ms", _SHARED_SQLITE)
    return Finding("database", True, f"{kind} answers in {took_ms:.1f} ms")


_SHARED_SQLITE = "replicas on several machines need PostgreSQL: a SQLite file is shared on one machine only"


async def _redis(settings: Settings) -> list[Finding]:
    if settings.redis_url is None:
        return [Finding("redis", True, "not used")]
    try:
        redis = Redis.from_pool(ConnectionPool.from_url(**pool_of(settings.redis_url), **_REDIS_OPTIONS))
    except ValueError as error:
        return [Finding("redis", False, str(error), "correct ALLIM_REDIS_URL")]
    try:
        took_ms = await _timed(redis.ping)
        info: dict[str, Any] = await redis.info()
    except (RedisError, OSError, TimeoutError) as error:
        advice = "check ALLIM_REDIS_URL and that redis-server runs"
        return [Finding("redis", False, str(error) or "no answer", advice)]
    finally:
        await redis.aclose()
    return [_redis_version(info, took_ms), _redis_memory(info), _redis_room(info), _redis_durability(info, settings)]


def _redis_version(info: Mapping[str, Any], took_ms: float) -> Finding:
    version = str(info["redis_version"])
    new_enough = tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_REDIS
    return Finding(
        "redis", new_enough, f"{version} answers in {took_ms:.1f} ms", "" if new_enough else "7.0 or later is needed"
    )


def _redis_memory(info: Mapping[str, Any]) -> Finding:
    policy = str(info.get("maxmemory_policy", "noeviction"))
    ok = policy == "noeviction"
    advice = "" if ok else "set maxmemory-policy noeviction: anything else deletes history without a word"
    return Finding("redis memory", ok, policy, advice)


def _redis_room(info: Mapping[str, Any]) -> Finding:
    """How full Redis is: at its limit it takes no publish."""
    used, most = int(info["used_memory"]), int(info.get("maxmemory", 0))
    if not most:
        return Finding(
            "redis room", True, f"{used / 1e6:.0f} MB used", "no limit is set: maxmemory bounds what it takes"
        )
    share = used / most
    detail = f"{used / 1e6:.0f} of {most / 1e6:.0f} MB used"
    advice = "more maxmemory, fewer HISTORY_EVENTS or a shorter HISTORY_TTL_S" if share >= WARN_SHARE else ""
    return Finding("redis room", share < ERROR_SHARE, detail, advice)


def _redis_durability(info: Mapping[str, Any], settings: Settings) -> Finding:
    append_only = bool(info.get("aof_enabled"))
    detail = "append-only file is on" if append_only else "nothing is kept over a restart of Redis"
    if settings.redis_durable and not append_only:
        return Finding(
            "redis durability", False, detail, "unset ALLIM_REDIS_DURABLE, or set appendonly yes, appendfsync always"
        )
    return Finding("redis durability", True, detail, "" if append_only else "streams are told of a reset then")


async def _stream(settings: Settings, url: str) -> Finding:
    """Whether the first frame of a stream comes at once: a proxy that buffers keeps it back."""
    token = Tokens([settings.secret_key], 60).issue("allim-doctor")
    subscriber = Subscriber(url, token)
    began = time.monotonic()
    try:
        async with asyncio.timeout(FIRST_FRAME_S), subscriber:
            async for message in subscriber:
                took_ms = (time.monotonic() - began) * 1000
                return Finding(
                    "stream", True, f"{message.type} after {took_ms:.0f} ms from {message.data['replica']}"
                )
    except TimeoutError:
        advice = "see that replicas run; switch buffering off on the way: proxy_buffering off, as in nginx/"
        return Finding("stream", False, f"no frame within {FIRST_FRAME_S:.0f} s", advice)
    except (ClientError, httpx.HTTPError, httpx.InvalidURL) as error:
        advice = "for 401: this shell and the replicas need the same ALLIM_SECRET_KEY"
        return Finding("stream", False, str(error) or type(error).__name__, advice)
    return Finding("stream", False, "the stream ended at once")


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.monotonic()
    async with asyncio.timeout(TIMEOUT_S):
        await work()
    return (time.monotonic() - began) * 1000
