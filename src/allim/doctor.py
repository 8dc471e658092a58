"""`allim doctor`: looks at what allim stands on and says what to do about it.

Changes nothing, but makes what a first start would make: the data folder, its key and the database file.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import httpx
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoPermissionError, RedisError

from allim.brokers.redis.durability import refusal
from allim.brokers.redis.keys import Keys
from allim.brokers.redis.memory_watch import ERROR_SHARE, WARN_SHARE
from allim.brokers.redis.pitfalls import Setup, keeps_a_file, look, pitfalls
from allim.brokers.redis.rights import Rights
from allim.brokers.redis.server import RedisServer, ask
from allim.client import ClientError, Subscriber
from allim.errors import AllimError, Unavailable
from allim.http.tokens import Tokens
from allim.hub.clock import SKEW_S
from allim.settings import Settings, SettingsError, load_settings, unknown_settings
from allim.storage import open_engine, writable

TIMEOUT_S = 5.0
FIRST_FRAME_S = 2.0
OLDEST_REDIS = (7, 0)


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
        if findings[-1].ok:
            findings.append(await _compression(settings, url))
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
            took_ms = await _timed(lambda: writable(engine))
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
    rights = Rights(settings.redis_prefix, settings.durability, quiet=True)
    try:
        server = RedisServer(settings.redis_url, "allim-doctor", rights)
    except ValueError as error:
        return [Finding("redis", False, str(error), "correct ALLIM_REDIS_URL")]
    try:
        async with asyncio.timeout(TIMEOUT_S):
            connection = (await server.connect()).connection
            try:
                return await _redis_findings(connection, rights, settings)
            finally:
                await connection.disconnect(nowait=True)
    except NoPermissionError as error:
        return [_redis_rights(rights, str(error))]
    except (RedisError, OSError, TimeoutError) as error:
        advice = "check ALLIM_REDIS_URL and that redis-server runs"
        return [Finding("redis", False, str(error) or "no answer", advice)]
    finally:
        await server.close()


async def _redis_findings(connection: AbstractConnection, rights: Rights, settings: Settings) -> list[Finding]:
    took_ms = await _timed(lambda: ask(connection, "PING"))
    asked_at = time.time()
    setup = await look(connection, Keys(settings.redis_prefix))
    ahead_s = (asked_at + time.time()) / 2 - int(setup.info["server_time_usec"]) / 1e6
    confirms_disk = await refusal(connection) if settings.durability == "disk" else None
    found = {pitfall.subject: pitfall for pitfall in pitfalls(setup, durable=settings.redis_durable)}

    def finding(subject: str, detail: str, advice: str = "") -> Finding:
        """The pitfall of this subject, or that there is none."""
        if subject in found:
            return Finding(f"redis {subject}", False, found[subject].detail, found[subject].advice)
        return Finding(f"redis {subject}", True, detail, advice)

    return [
        _redis_version(setup.info, took_ms),
        _redis_clock(ahead_s),
        _redis_rights(rights),
        finding("role", "a master by itself, or with replicas"),
        finding("memory", "noeviction"),
        _redis_room(setup.info),
        _redis_confirms(setup.info, settings, confirms_disk),
        finding("durability", *_durability(setup)),
        finding("replay", *_replay(setup)),
    ]


def _redis_version(info: Mapping[str, str], took_ms: float) -> Finding:
    version = info["redis_version"]
    new_enough = tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_REDIS
    return Finding(
        "redis", new_enough, f"{version} answers in {took_ms:.1f} ms", "" if new_enough else "7.0 or later is needed"
    )


def _redis_rights(rights: Rights, refused: str = "") -> Finding:
    """Shape: `refused` is the answer of Redis when it refused even the question."""
    try:
        rights.check()
    except Unavailable as error:
        return Finding("redis rights", False, error.detail, "the rules in docker-compose.yml are all that is needed")
    return Finding("redis rights", not refused, refused or "complete")


def _redis_clock(ahead_s: float) -> Finding:
    ok = abs(ahead_s) <= SKEW_S
    advice = "" if ok else "set both machines' clocks, by NTP: tokens, publish keys and snapshots go by them"
    detail = f"this machine is {abs(ahead_s):.1f} s {'ahead' if ahead_s > 0 else 'behind'}"
    return Finding("redis clock", ok, detail, advice)


def _redis_room(info: Mapping[str, str]) -> Finding:
    """Return how full Redis is: at its limit it takes no publish."""
    used, most = int(info["used_memory"]), int(info.get("maxmemory", "0"))
    if not most:
        advice = (
            "without maxmemory Redis is killed when its container or machine is full, instead of refusing publishes"
        )
        return Finding("redis room", True, f"{used / 1e6:.0f} MB used, no limit", advice)
    share = used / most
    detail = f"{used / 1e6:.0f} of {most / 1e6:.0f} MB used"
    advice = "more maxmemory, fewer HISTORY_EVENTS or a shorter HISTORY_TTL_S" if share >= WARN_SHARE else ""
    return Finding("redis room", share < ERROR_SHARE, detail, advice)


def _redis_confirms(info: Mapping[str, str], settings: Settings, no_disk: str | None) -> Finding:
    """Return whether this Redis can confirm writes as ALLIM_DURABILITY demands."""
    detail = f"ALLIM_DURABILITY is {settings.durability}"
    if no_disk is not None:
        return Finding(
            "redis confirmation", False, f"{detail}, and {no_disk}", "publishes are answered 503 until then"
        )
    if settings.durability == "replica" and info.get("connected_slaves", "0") == "0":
        return Finding(
            "redis confirmation",
            False,
            f"{detail}, and no replica is connected",
            "publishes are answered 503 until then",
        )
    return Finding("redis confirmation", True, detail)


def _durability(setup: Setup) -> tuple[str, str]:
    if not keeps_a_file(setup.info):
        return "nothing is kept over a restart of Redis", "streams are told of a reset then"
    synced = (setup.settings or {}).get("appendfsync", "not known: this user may not ask for it")
    return f"append-only file is on, appendfsync {synced}", ""


def _replay(setup: Setup) -> tuple[str, str]:
    if not keeps_a_file(setup.info):
        return "no append-only file", ""
    if setup.replay is None:
        advice = "see by `ACL GETUSER default` that it has ~* &* +@all, also if it is off: Redis replays as this user"
        return "not known whether Redis can replay its file: this user may not ask (+acl|dryrun)", advice
    return "the append-only file can be replayed", ""


async def _stream(settings: Settings, url: str) -> Finding:
    """Return whether the first frame of a stream comes at once: a proxy that buffers keeps it back."""
    token = Tokens([settings.secret_key], 60).issue("allim-doctor")
    failures: list[str] = []
    began = time.monotonic()
    try:
        async with asyncio.timeout(FIRST_FRAME_S), Subscriber(url, token, on_retry=failures.append) as subscriber:
            async for message in subscriber:
                took_ms = (time.monotonic() - began) * 1000
                return Finding(
                    "stream", True, f"{message.type} after {took_ms:.0f} ms from {message.data['replica']}"
                )
    except TimeoutError:
        advice = "see that replicas run; switch buffering off on the way: proxy_buffering off, as in nginx/"
        detail = f"no frame within {FIRST_FRAME_S:.0f} s"
        return Finding("stream", False, ": ".join([detail, *failures[-1:]]), advice)
    except ClientError as error:
        advice = "for 401: this shell and the replicas need the same ALLIM_SECRET_KEY"
        return Finding("stream", False, str(error), advice)
    except ValueError as error:
        return Finding("stream", False, str(error), "correct --url")
    return Finding("stream", False, "the stream ended at once")


async def _compression(settings: Settings, url: str) -> Finding:
    """Return whether a browser, which offers to decompress, gets its first frame at once too."""
    token = Tokens([settings.secret_key], 60).issue("allim-doctor")
    headers = {"authorization": f"Bearer {token}", "accept-encoding": "gzip, deflate"}
    encoding = ""
    try:
        async with (
            asyncio.timeout(FIRST_FRAME_S),
            httpx.AsyncClient(headers=headers) as http,
            http.stream("GET", f"{url.rstrip('/')}/events") as response,
        ):
            encoding = response.headers.get("content-encoding", "")
            await anext(response.aiter_bytes())
    except (TimeoutError, httpx.RequestError, StopAsyncIteration):
        detail = f"a browser gets no frame within {FIRST_FRAME_S:.0f} s; Content-Encoding: {encoding or 'none'}"
        return Finding("compression", False, detail, _UNCOMPRESSED)
    detail = f"a proxy compresses streams: {encoding}" if encoding else "streams are not compressed"
    return Finding("compression", True, detail, _UNCOMPRESSED if encoding else "")


_UNCOMPRESSED = "switch compression off for text/event-stream on the way: it may keep events back"


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.monotonic()
    async with asyncio.timeout(TIMEOUT_S):
        await work()
    return (time.monotonic() - began) * 1000
