"""The rights a replica needs in Redis, and whether its user has them.

Redis does not undo a script that it refuses half-way. So the rights of every connection are checked before it is
used, and a script is not sent unless all its commands are allowed.

Source: `redis.acl_check_cmd` (Redis 7.0, Valkey), which needs no right of its own and runs nothing.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import resources
from typing import Final

import structlog
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoPermissionError

from allim.brokers.redis.keys import Keys
from allim.errors import Unavailable

log = structlog.get_logger(__name__)

ASK_AGAIN_S = 1.0  # while rights are missing
ASK_ANEW_S = 10.0  # while none is missing: a revoked right may be needed only later, when a reader returns
ASK_TIMEOUT_S = 5.0

# Commands as they are sent, by the file of the script that runs them; `@` stands for `<prefix>:{0}:`. A test compares
# this list with the scripts.
SCRIPTS: Final[Mapping[str, Sequence[str]]] = {
    "time": ("TIME",),
    "clock": ("HMGET @clock ms", "HSET @clock ms 1", "PUBLISH @origin 1-0"),
    "heads": ("XREVRANGE @history:t + -",),
    "read": ("XREVRANGE @history:t + -", "XRANGE @history:t - +"),
    "publish": (
        "LRANGE @key:k 0 -1",
        "EXPIRE @key:k 1",
        "XREVRANGE @history:t + -",
        "XADD @history:t * p 0-0",
        "PUBLISH @topic:t event",
        "RPUSH @key:k 1-0",
    ),
    "expiry": (
        "ZADD @expiry 1 t",
        "ZRANGEBYSCORE @expiry 0 1",
        "ZREM @expiry t",
        "XREVRANGE @history:t + -",
        "PERSIST @history:t",
        "UNLINK @history:t",
        "HSET @clock expired 1-0",
    ),
    "last_kick": ("GET @kicked:u",),
    "memory": ("INFO memory",),
    "hint": ("PUBLISH @hint name",),
    "pulse": ("PUBLISH @pulse:r 1-0",),
    "origin": (),
    "replicas": ("HGETALL @replicas", "HSET @replicas r card", "HDEL @replicas r", "PEXPIRE @replicas 1"),
    "session_state": ("EXISTS @signed_out:u/s", "GET @kicked:u"),
    "quotas": ("GET @used:r", "SET @used:r 1"),
    "admit": (
        "EXISTS @ticket:t",
        "SET @ticket:t 1",
        "ZADD @streams:u 1 s",
        "ZREMRANGEBYSCORE @streams:u 0 1",
        "PEXPIRE @streams:u 1",
        "ZCARD @streams:u",
        "ZPOPMIN @streams:u 1",
        "ZREVRANGE @streams:u 0 0",
    ),
    "kick": ("GET @kicked:u", "SET @kicked:u 1"),
    "remove_stream": ("ZREM @streams:u s",),
    "sign_out": ("SET @signed_out:u/s 1", "PEXPIRE @signed_out:u/s 1"),
    "session_states": (),
    "charge": (),
}
CONNECTIONS = (
    "INFO server",
    "EVAL script 0",
    "EVALSHA digest 0",
    "SUBSCRIBE @topic:t",
    "SUBSCRIBE @origin",
    "SUBSCRIBE @pulse:r",
    "SUBSCRIBE @hint",
    "UNSUBSCRIBE @topic:t",
)
CONFIRMATIONS: Final[Mapping[str, Sequence[str]]] = {"replica": ("WAIT 1 1",), "disk": ("WAITAOF 1 0 1",)}
"""Commands that a publish runs after its script, by durability."""
MAY_BE_UNKNOWN = frozenset({"WAITAOF 1 0 1"})  # before Redis 7.2; durability.py then checks `appendfsync`

_IN_SCRIPTS = ("The user executing the script can't", "ACL failure in script")  # Redis 7, Valkey: their code is ERR


class Rights:
    """The rights that a replica's Redis user lacks, as last checked over one of its connections."""

    def __init__(
        self,
        prefix: str = "allim",
        durability: str = "memory",
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Shape: `quiet` leaves it to the caller to report missing rights; otherwise they are logged."""
        self._shard = Keys(prefix).shard
        self._of_scripts = {**SCRIPTS, "publish": (*SCRIPTS["publish"], *CONFIRMATIONS.get(durability, ()))}
        self._commands = list(dict.fromkeys([*CONNECTIONS, *_joined(self._of_scripts.values())]))
        self._script = (resources.files("allim.brokers.redis") / "lua" / "rights.lua").read_text("utf-8")
        self._quiet = quiet
        self._clock = clock
        self._refused: dict[str, str] = {}  # command → the rule that would allow it
        self._doubtful = False
        self._asked_at = clock()

    async def ask(self, connection: AbstractConnection) -> None:
        """Ask Redis which rights this connection's user lacks.

        Raises: RedisError, OSError. NoPermissionError when the user may not run EVAL.
        """
        args = [word for command in self._commands for word in (1 + command.count("|"), self._sent(command))]
        self._asked_at = self._clock()
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                await connection.send_command("EVAL", self._script, 0, *args)
                reply = await connection.read_response(disable_decoding=True)
        except NoPermissionError:
            self._learned({"EVAL": "+eval"})
            raise
        self._doubtful = False
        refused: dict[str, str] = {}
        for number, why in zip(reply[::2], reply[1::2], strict=True):
            command = self._commands[number - 1]
            if not (why == b"unknown" and command in MAY_BE_UNKNOWN):
                refused[command] = self._rule(command, why == b"keys")
        self._learned(refused)

    async def renew(self, connection: AbstractConnection) -> None:
        """Ask again when Redis has refused a command, and at intervals, which are shorter while rights are missing.

        Raises: RedisError, OSError.
        """
        every_s = ASK_AGAIN_S if self._refused else ASK_ANEW_S
        if self._doubtful or self._clock() - self._asked_at >= every_s:
            await self.ask(connection)

    def doubt(self, refusal: Exception) -> None:
        """Ask again before the next script, if Redis has refused this one for want of a right."""
        if isinstance(refusal, NoPermissionError) or any(text in str(refusal) for text in _IN_SCRIPTS):
            self._doubtful = True

    def allow(self, script_files: Collection[str]) -> bool:
        """Return whether the user may run every command of a script made of these files."""
        return not self._refused or not any(
            command in self._refused for name in script_files for command in self._of_scripts[name]
        )

    def check(self) -> None:
        """Raises: Unavailable naming the rules that are missing."""
        if self._refused:
            raise Unavailable(self._missing())

    def _learned(self, refused: dict[str, str]) -> None:
        if refused == self._refused:
            return
        self._refused = refused
        if self._quiet:
            return
        if refused:
            log.error("redis rights missing", missing=self._missing(), commands=sorted(map(self._sent, refused)))
        else:
            log.info("redis rights complete")

    def _missing(self) -> str:
        return f"this Redis user lacks rights: ACL SETUSER … {' '.join(dict.fromkeys(self._refused.values()))}"

    def _sent(self, command: str) -> str:
        return command.replace("|", " ").replace("@", self._shard)

    def _rule(self, command: str, of_keys: bool) -> str:
        """Return the ACL rule that allows a command, or its keys or channels."""
        name = command.partition(" ")[0]
        if not of_keys:
            return f"+{name.lower()}"
        if name in ("PUBLISH", "SUBSCRIBE"):
            return f"&{self._shard}*"
        return f"~{self._shard}*"


def _joined(lists: Collection[Sequence[str]]) -> list[str]:
    return [command for commands in lists for command in commands]
