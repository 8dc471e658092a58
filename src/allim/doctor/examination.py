"""Checks settings, database and Redis; and a stream and a token, if they are given.

Changes nothing, but makes the files that a first start would make: the data folder, its key and the database file.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoPermissionError, RedisError

from allim.access.tokens import Tokens
from allim.brokers.redis.durability import refusal
from allim.brokers.redis.keys import Keys
from allim.brokers.redis.memory_watch import ERROR_SHARE, WARN_SHARE
from allim.brokers.redis.pitfalls import Setup, keeps_a_file, look, pitfalls
from allim.brokers.redis.reach import explain
from allim.brokers.redis.rights import Rights
from allim.brokers.redis.server import RedisServer, ask
from allim.catalogue import load
from allim.credentials import issuers_of, publish_keys_of, tokens_of, webhook_of
from allim.doctor.finding import Finding
from allim.doctor.stream import examine_compression, examine_stream
from allim.doctor.token import examine_token
from allim.errors import AllimError, AuthorizeUnavailable, Unavailable, Unusable
from allim.hub.clock import SKEW_S
from allim.identity import Identity
from allim.selection import Selection, select
from allim.settings import Settings, SettingsError, load_settings, naming, unknown_settings, warnings

TIMEOUT_S = 5.0
USER = "allim-doctor"
PROBE = "allim-doctor:probe"  # a topic that no application knows
TOKEN_S, DAY_S = 120, 86_400
OLDEST_REDIS = (7, 0)


async def examine(environ: Mapping[str, str], url: str | None, token: str | None = None) -> list[Finding]:
    """All findings, in the order in which to mend them.

    Shape: with `url` a stream is followed there, with `token` if there is one; `token` itself is explained.
    """
    try:
        settings = load_settings(environ)
        publish_keys_of(settings)
        await tokens_of(settings, issuers_of(settings)).close()
        selection = select(settings)
        with naming("CATALOGUE", Unusable):
            load(selection.events(), settings.catalogue)
    except SettingsError as error:
        advice = error.advice or "correct the variable; docs/operations.md lists them all"
        return [Finding("settings", False, str(error), advice)]
    findings = [_settings(settings, environ), await _database(settings, selection)]
    findings += await _redis(settings)
    findings += await _authorize(settings)
    if token is not None:
        findings += await examine_token(token, settings)
    if url is not None:
        findings.append(await _stream(settings, url, token))
        if findings[-1].ok:
            findings.append(await examine_compression(url, token or _token(settings)))
    return findings


async def _authorize(settings: Settings) -> list[Finding]:
    """Ask the application for a topic of the doctor's own: any answer of the right form is good."""
    webhook = webhook_of(settings)
    if webhook is None:
        return []
    started = time.monotonic()
    try:
        granted = await webhook(Identity.of(USER), [PROBE])
    except AuthorizeUnavailable as error:
        return [Finding("authorize", False, f"{error.detail} {webhook.failure}", _AUTHORIZE_ADVICE)]
    finally:
        await webhook.close()
    took_ms = (time.monotonic() - started) * 1000
    advice = "it grants a topic that it cannot know to a user that it cannot know" if granted else ""
    return [Finding("authorize", not granted, f"answers in {took_ms:.1f} ms", advice)]


_AUTHORIZE_ADVICE = (
    "see that ALLIM_AUTHORIZE_URL is right, and that the application verifies with the same ALLIM_AUTHORIZE_SECRET"
)


def _settings(settings: Settings, environ: Mapping[str, str]) -> Finding:
    form = "several replicas over Redis" if settings.clustered else "one process, memory broker"
    return Finding("settings", not unknown_settings(environ), form, "; ".join(warnings(environ)))


async def _database(settings: Settings, selection: Selection) -> Finding:
    if not selection.stored:
        return Finding("database", True, "not used: no domain stores anything")
    from allim.storage import open_engine, usable, writable

    try:
        engine = open_engine(settings.database_url)
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):  # connecting has a time limit of its own
                newest = await usable(engine, selection.migrations())
            took_ms = await _timed(lambda: writable(engine))
        finally:
            await engine.dispose()
    except Unusable as error:
        return Finding("database", False, str(error), error.advice)
    except (ValueError, AllimError, TimeoutError) as error:
        return Finding("database", False, str(error) or "no answer", "correct ALLIM_DATABASE_URL")
    detail = f"{engine.dialect.name} answers in {took_ms:.1f} ms"
    if not newest:
        detail += "; its schema is older, and the next start migrates it"
    shared = engine.dialect.name == "sqlite" and settings.clustered
    return Finding("database", True, detail, _SHARED_SQLITE if shared else "")


_SHARED_SQLITE = "replicas on several machines need PostgreSQL: a SQLite file is shared on one machine only"


async def _redis(settings: Settings) -> list[Finding]:
    if settings.redis_url is None:
        return [Finding("redis", True, "not used")]
    rights = Rights(settings.redis_prefix, settings.durability, quiet=True)
    try:
        server = RedisServer(settings.redis_url, "allim-doctor", rights)
    except ValueError as error:
        return [Finding("redis", False, f"ALLIM_REDIS_URL {error}", "correct ALLIM_REDIS_URL")]
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
        fault = explain(settings.redis_url, error)
        return [Finding("redis", False, fault.detail, fault.advice)]
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
    advice = (
        "more maxmemory, fewer ALLIM_HISTORY_EVENTS or a shorter ALLIM_HISTORY_TTL_S" if share >= WARN_SHARE else ""
    )
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


def _token(settings: Settings) -> str:
    return Tokens([settings.secret_key], TOKEN_S).issue(USER)


async def _stream(settings: Settings, url: str, token: str | None) -> Finding:
    """Follow a stream with the given token, or with one signed by this shell's own key."""
    own = ""
    if token is None:
        token = _token(settings)
        own = Tokens([settings.secret_key], 2 * DAY_S, now=lambda: time.time() - DAY_S).issue(USER)
    return await examine_stream(url, token, own, settings.heartbeat_s)


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.monotonic()
    async with asyncio.timeout(TIMEOUT_S):
        await work()
    return (time.monotonic() - began) * 1000
