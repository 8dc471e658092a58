"""Durability levels: whether Redis can provide the configured one, and whether a write has reached it.

Source: the documentation of WAIT, WAITAOF (Redis 7.2, Valkey) and `appendfsync`. None of them works inside a script
or a transaction, and each covers only the writes of its own connection.
"""

from typing import Literal

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from allim.brokers.redis.rights import Rights
from allim.brokers.redis.server import RedisServer, ask

Durability = Literal["memory", "replica", "disk"]

CONFIRM_TIMEOUT_S = 1.0  # how long a replica or the disk may take


async def check(url: str, durability: Durability, rights: Rights) -> None:
    """Check at the start that Redis can provide the configured durability. A Redis that does not answer yet passes.

    Raises: ValueError with the reason when this Redis cannot.
    """
    if durability != "disk":
        return
    server = RedisServer(url, "allim-check", rights)
    try:
        connection, _ = await server.connect()
        try:
            reason = await refusal(connection)
        finally:
            await connection.disconnect(nowait=True)
    except (RedisError, OSError):
        return
    finally:
        await server.close()
    if reason is not None:
        raise ValueError(f"disk: {reason}")


async def confirm(connection: AbstractConnection, durability: Durability) -> str | None:
    """Wait until the writes of this connection have the configured durability. Returns None, or why they have not.

    Raises: RedisError, OSError.
    """
    timeout_ms = round(CONFIRM_TIMEOUT_S * 1000)
    if durability == "replica":
        if not await ask(connection, "WAIT", 1, timeout_ms):
            return f"stored, but not confirmed by a replica within {CONFIRM_TIMEOUT_S:g} s"
    elif durability == "disk":
        try:
            written, _ = await ask(connection, "WAITAOF", 1, 0, timeout_ms)
        except NoPermissionError:
            raise  # the connection is given up, and the next one is asked for its rights
        except ResponseError:
            reason = await refusal(connection)  # no such command: then the answers come after the disk, or never do
            return reason and f"stored, but not on disk: {reason}"
        if not written:
            return f"stored, but not confirmed on disk within {CONFIRM_TIMEOUT_S:g} s"
    return None


async def refusal(connection: AbstractConnection) -> str | None:
    """Return why this Redis cannot confirm writes to disk, or None if it can.

    Raises: RedisError, OSError.
    """
    try:
        settings = await ask(connection, "CONFIG", "GET", "*append*")
    except ResponseError as error:
        return f"this Redis does not tell its settings ({error})"
    found = dict(zip(settings[::2], settings[1::2], strict=True))
    if found.get(b"appendonly") != b"yes":
        return "this Redis has no append-only file (`appendonly yes`)"
    if await _has_waitaof(connection):
        return None
    if found.get(b"appendfsync") != b"always":
        return "this Redis needs `appendfsync always`, or to be version 7.2 or newer"
    if found.get(b"no-appendfsync-on-rewrite") == b"yes":
        return "this Redis does not wait for the disk while it rewrites its file: `no-appendfsync-on-rewrite no`"
    return None


async def _has_waitaof(connection: AbstractConnection) -> bool:
    [known] = await ask(connection, "COMMAND", "INFO", "WAITAOF")
    return known is not None
