"""A Redis in this process: the commands that the project's scripts use, and Lua 5.1, the one that Redis runs.

What it is told it does as Redis 7.0 does: `tests/simulation/test_redis.py` runs the same calls on both. It can do
besides what a real one cannot be made to do at a given moment: have its clock set, lose its end or everything, take
rights or memory away, hang, and be another process.
"""

import hashlib
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lupa import lua51

Milliseconds = int
Id = tuple[int, int]
_NEWEST: Id = (1 << 62, 1 << 62)
DEFAULT_MAX_CALLS = 2_000_000

WRITES = frozenset(
    b"SET SETNX SETEX PSETEX DEL UNLINK INCR INCRBY DECR EXPIRE PEXPIRE EXPIREAT PEXPIREAT PERSIST HSET HSETNX HDEL"
    b" HINCRBY RPUSH LPUSH LTRIM LPOP RPOP SADD SREM ZADD ZREM ZREMRANGEBYSCORE ZREMRANGEBYRANK ZPOPMIN ZINCRBY XADD"
    b" XTRIM XDEL FLUSHALL".split()
)
GROWING = frozenset(
    b"SET SETNX SETEX PSETEX INCR INCRBY DECR HSET HSETNX HINCRBY RPUSH LPUSH SADD ZADD ZINCRBY XADD".split()
)  # refused when the memory is full (`denyoom`)


class RedisError(Exception):
    """What Redis answers with instead of a reply. Shape: begins with its code."""


class Status(bytes):
    """A simple string: `+OK`."""

    __slots__ = ()


class StreamEntry(list[Any]):
    """An entry of a stream, as a reply: its ID, then names and values in turn. Shape: `lua` is it as a table."""

    __slots__ = ("lua",)

    def __init__(self, text: bytes, fields: list[bytes]) -> None:
        super().__init__((text, fields))
        self.lua: Any = None

    @property
    def fields(self) -> dict[bytes, bytes]:
        return dict(zip(self[1][::2], self[1][1::2], strict=True))


@dataclass(slots=True)
class Stream:
    """The value of a stream. Shape: `ids` rise."""

    ids: list[Id] = field(default_factory=list)
    entries: list[StreamEntry] = field(default_factory=list)
    last: Id = (0, 0)

    def between(self, first: bytes, last: bytes) -> tuple[int, int]:
        """From where to where in `ids`."""
        low = 0 if first == b"-" else _cut(self.ids, first, upper=False)
        high = len(self.ids) if last == b"+" else _cut(self.ids, last, upper=True)
        return low, high

    def keep(self, newest: int) -> int:
        surplus = len(self.ids) - newest
        if surplus <= 0:
            return 0
        del self.ids[:surplus], self.entries[:surplus]
        return surplus


class Written(NamedTuple):
    """One command or script in the append-only file: what its writing commands were, and when.

    Units: `at_s` true seconds, `now_ms` by the clock of Redis.
    """

    at_s: float
    now_ms: Milliseconds
    commands: tuple[tuple[bytes, ...], ...]


class Engine:
    """The scripts of all the Redis of this process: each is compiled once."""

    def __init__(self) -> None:
        self.runtime = lua51.LuaRuntime(encoding=None, unpack_returned_tuples=False, register_builtins=False)
        self.compiled: dict[bytes, Any] = {}
        self.call: Callable[..., Any] = lambda *_: None
        self.pcall: Callable[..., Any] = lambda *_: None
        self.allowed: Callable[..., bool] = lambda *_: True
        self.table = self.runtime.table_from
        self.kind: Callable[[Any], bytes] = self.runtime.eval(b"type")
        self._set = self.runtime.execute(_PRELUDE)
        self._load = self.runtime.eval(b"loadstring")
        self.runtime.globals()[b"redis"] = self.table(
            {
                b"call": lambda *args: self.call(*args),
                b"pcall": lambda *args: self.pcall(*args),
                b"acl_check_cmd": lambda *args: self.allowed(*args),
                b"error_reply": lambda text: self.table({b"err": text}),
                b"status_reply": lambda text: self.table({b"ok": text}),
                b"sha1hex": lambda text: hashlib.sha1(text, usedforsecurity=False).hexdigest().encode(),
                b"log": lambda *_: None,
                b"setresp": lambda *_: None,
                b"LOG_WARNING": 3,
                b"LOG_NOTICE": 2,
            }
        )
        self.runtime.execute(_LOCK)
        self._run = self.runtime.eval(b"function(script) return pcall(script) end")

    def compile(self, source: bytes) -> Any:
        """Raises: RedisError when it is no Lua."""
        script = self.compiled.get(source)
        if script is None:
            body = source.partition(b"\n")[2] if source.startswith(b"#!") else source
            loaded = self._load(b"\n" + body if body is not source else body, b"@user_script")
            if isinstance(loaded, tuple):
                raise RedisError(f"ERR Error compiling script (new function): {loaded[1].decode()}")
            script = self.compiled[source] = loaded
        return script

    def run(self, script: Any, keys: Sequence[bytes], args: Sequence[bytes]) -> Any:
        self._set(self.table(keys), self.table(args))
        done, value = self._run(script)
        if done:
            return value
        if isinstance(value, Exception):
            raise value
        if not isinstance(value, bytes):  # error({err = ...})
            return value
        raise RedisError(f"ERR {value.decode(errors='replace')}")


_PRELUDE = rb"""
os, io, require, package, loadfile, dofile, newproxy, module = nil
return function(keys, args)
  rawset(_G, 'KEYS', keys)
  rawset(_G, 'ARGV', args)
end
"""
_LOCK = rb"""
setmetatable(_G, {
  __index = function(_, name)
    error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
  end,
  __newindex = function() error("Attempt to modify a readonly table", 2) end,
})
"""
ENGINE = Engine()

Value = bytes | dict[bytes, Any] | list[bytes] | set[bytes] | Stream


class Redis:
    """The data of one Redis, and whoever may touch it.

    Shape: `denied` are commands, in lower case, that its users have no right to; `quiet` when they have none to any
    channel; `heard` is told of what is published and gives how many heard it; `evicts` names a maxmemory policy.
    Units: `wall_ms` its clock.
    """

    def __init__(
        self,
        wall_ms: Callable[[], Milliseconds],
        heard: Callable[[bytes, bytes], int] = lambda channel, message: 0,
        run_id: str = "0" * 40,
        true_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.wall_ms = wall_ms
        self.true_s = true_s
        self.heard = heard
        self.run_id = run_id
        self.values: dict[bytes, Value] = {}
        self.ends_ms: dict[bytes, Milliseconds] = {}
        self.scripts: dict[bytes, bytes] = {}
        self.file: list[Written] = []
        self.denied: frozenset[str] = frozenset()
        self.quiet = False
        self.full = False  # its memory
        self.disk_full = False
        self.read_only = False
        self.calls: dict[str, int] = {}  # commands, by name
        self.positions: list[tuple[float, int]] = []  # when positions of which millisecond were given out
        self.max_calls = DEFAULT_MAX_CALLS
        self.called = 0
        self.now_ms = 0
        self.now_us = 0
        self._in_script = False
        self._dirty = False
        self._refuses_growth = False
        self._commands: list[tuple[bytes, ...]] = []
        self._table = {
            name[len("_do_") :].upper().encode(): getattr(self, name) for name in dir(self) if name.startswith("_do_")
        }

    # From outside ---------------------------------------------------------------------------------------------

    def execute(self, command: Sequence[bytes]) -> Any:
        """The reply. Raises: RedisError."""
        self._read_clock()
        self._commands = []
        name = command[0].upper()
        self._refuses_growth = self.full
        self._dirty = False
        try:
            if name == b"EVALSHA":
                source = self.scripts.get(command[1].lower())
                if source is None:
                    raise RedisError("NOSCRIPT No matching script. Please use EVAL.")
                return self._eval(source, command)
            if name == b"EVAL":
                self.scripts[hashlib.sha1(command[1], usedforsecurity=False).hexdigest().encode()] = command[1]
                return self._eval(command[1], command)
            return self._command(command)
        finally:
            if self._commands:
                self.file.append(Written(self.true_s(), self.now_ms, tuple(self._commands)))

    def expire(self) -> None:
        """Forget what is over, as Redis does ten times a second."""
        self._read_clock()
        for key in [key for key, end in self.ends_ms.items() if end <= self.now_ms]:
            self._forget(key)

    def restart(self, run_id: str, lost_after_s: float = float("inf")) -> None:
        """Be another process, with what was on disk; what was written later than that, in true seconds, is lost."""
        self.run_id = run_id
        self.scripts.clear()
        kept = [written for written in self.file if written.at_s <= lost_after_s]
        self.values.clear()
        self.ends_ms.clear()
        self.file = []
        denied, self.denied = self.denied, frozenset()
        full, self.full = self.full, False
        positions = list(self.positions)
        for written in kept:
            self.now_ms, self.now_us = written.now_ms, written.now_ms * 1000
            for command in written.commands:
                self._table[command[0]](command[1:])
        self.file = kept
        self.denied, self.full, self.positions = denied, full, positions
        self._commands = []

    def flush(self) -> None:
        self.values.clear()
        self.ends_ms.clear()
        self.file.clear()

    def evict(self, keys: Sequence[bytes]) -> None:
        """Delete keys to have memory, as a policy other than `noeviction` does."""
        for key in keys:
            self._forget(key)

    def get(self, key: bytes) -> Value | None:
        """The value of a key, for who looks from outside."""
        return self.values.get(key)

    # Scripts --------------------------------------------------------------------------------------------------

    def _eval(self, source: bytes, command: Sequence[bytes]) -> Any:
        if "eval" in self.denied or "evalsha" in self.denied:
            raise RedisError(
                f"NOPERM this user has no permissions to run the '{command[0].decode().lower()}' command"
            )
        script = ENGINE.compile(source)
        if source.startswith(b"#!"):
            if b"allow-oom" in source.partition(b"\n")[0]:
                self._refuses_growth = False
            elif self._refuses_growth:
                raise RedisError(
                    "OOM allow-oom flag is not set on the script, can not run it when used memory > 'maxmemory'"
                )
        count = int(command[2])
        keys, args = command[3 : 3 + count], command[3 + count :]
        ENGINE.call, ENGINE.pcall, ENGINE.allowed = self._call, self._pcall, self._allowed
        self._in_script = True
        try:
            return _from_lua(ENGINE.run(script, keys, args))
        finally:
            self._in_script = False

    def _allowed(self, *args: Any) -> bool:
        command = args[0].decode().lower()
        return command not in self.denied and not (self.quiet and command == "publish")

    def _call(self, *args: Any) -> Any:
        return _to_lua(self._command([_text(arg) for arg in args]))

    def _pcall(self, *args: Any) -> Any:
        try:
            return self._call(*args)
        except RedisError as error:
            return ENGINE.table({b"err": str(error).encode()})

    # Commands -------------------------------------------------------------------------------------------------

    def _command(self, command: Sequence[bytes]) -> Any:
        name = command[0].upper()
        self.called += 1
        if self.called > self.max_calls:
            raise TooMuch(f"Redis was asked for more than {self.max_calls} commands")
        lower = name.decode().lower()
        self.calls[lower] = self.calls.get(lower, 0) + 1
        if lower in self.denied:
            raise RedisError(_no_right(lower, self._in_script))
        if name == b"PUBLISH" and self.quiet:
            raise RedisError("NOPERM this user has no permissions to access one of the channels used as arguments")
        run = self._table.get(name)
        if run is None:
            raise NotImplementedError(f"tests/simulation/redis.py does not know {command[0]!r} yet")
        if name in WRITES:
            if not self._dirty:
                if self.read_only:
                    raise RedisError("READONLY You can't write against a read only replica.")
                if self.disk_full:
                    raise RedisError("MISCONF Errors writing to the AOF file: No space left on device")
                if self._refuses_growth and name in GROWING:
                    raise RedisError("OOM command not allowed when used memory > 'maxmemory'.")
            reply = run(command[1:])
            self._dirty = True
            self._commands.append((name, *command[1:]))
            return reply
        return run(command[1:])

    def _read_clock(self) -> None:
        self.now_ms = self.wall_ms()
        self.now_us = self.now_ms * 1000

    def _forget(self, key: bytes) -> bool:
        self.ends_ms.pop(key, None)
        return self.values.pop(key, None) is not None

    def _value(self, key: bytes) -> Any:
        end = self.ends_ms.get(key)
        if end is not None and end <= self.now_ms:
            self._forget(key)
        return self.values.get(key)

    def _of(self, key: bytes, kind: type) -> Any:
        value = self._value(key)
        if value is not None and not isinstance(value, kind):
            raise RedisError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def _own(self, key: bytes, kind: type) -> Any:
        value = self._of(key, kind)
        if value is None:
            value = self.values[key] = kind()
        return value

    def _drop_empty(self, key: bytes) -> None:
        if not self.values.get(key):
            self._forget(key)

    def _sorted_set(self, key: bytes) -> dict[bytes, float]:
        value: dict[bytes, float] = self._own(key, SortedSet)
        return value

    # strings

    def _do_get(self, args: Sequence[bytes]) -> Any:
        return self._of(args[0], bytes)

    def _do_set(self, args: Sequence[bytes]) -> Any:
        key, value, *options = args
        end: int | None = None
        existing = self._value(key)
        keeps = gives = False
        at = 0
        while at < len(options):
            option = options[at].upper()
            if option in (b"PX", b"EX", b"PXAT", b"EXAT"):
                number = _integer(options[at + 1])
                end = number * (1000 if option.startswith(b"EX") else 1)
                end += 0 if option.endswith(b"AT") else self.now_ms
                if number <= 0:
                    raise RedisError("ERR invalid expire time in 'set' command")
                at += 1
            elif option == b"NX":
                if existing is not None:
                    return None
            elif option == b"XX":
                if existing is None:
                    return None
            elif option == b"KEEPTTL":
                keeps = True
            elif option == b"GET":
                gives = True
            else:
                raise RedisError("ERR syntax error")
            at += 1
        self.values[key] = value
        if end is not None:
            self.ends_ms[key] = end
        elif not keeps:
            self.ends_ms.pop(key, None)
        return existing if gives else Status(b"OK")

    def _do_incrby(self, args: Sequence[bytes]) -> int:
        number = _integer(self._of(args[0], bytes) or b"0") + _integer(args[1])
        self.values[args[0]] = b"%d" % number
        return number

    def _do_incr(self, args: Sequence[bytes]) -> int:
        return self._do_incrby([args[0], b"1"])

    # keys

    def _do_exists(self, args: Sequence[bytes]) -> int:
        return sum(self._value(key) is not None for key in args)

    def _do_del(self, args: Sequence[bytes]) -> int:
        return sum(self._value(key) is not None and self._forget(key) for key in args)

    _do_unlink = _do_del

    def _do_type(self, args: Sequence[bytes]) -> Status:
        value = self._value(args[0])
        kinds = {bytes: b"string", dict: b"hash", list: b"list", set: b"set", SortedSet: b"zset", Stream: b"stream"}
        return Status(b"none" if value is None else kinds[type(value)])

    def _do_pexpire(self, args: Sequence[bytes]) -> int:
        return self._expire_at(args[0], self.now_ms + _integer(args[1]), args[2:])

    def _do_expire(self, args: Sequence[bytes]) -> int:
        return self._expire_at(args[0], self.now_ms + _integer(args[1]) * 1000, args[2:])

    def _do_pexpireat(self, args: Sequence[bytes]) -> int:
        return self._expire_at(args[0], _integer(args[1]), args[2:])

    def _do_expireat(self, args: Sequence[bytes]) -> int:
        return self._expire_at(args[0], _integer(args[1]) * 1000, args[2:])

    def _expire_at(self, key: bytes, at_ms: int, options: Sequence[bytes]) -> int:
        if self._value(key) is None:
            return 0
        now = self.ends_ms.get(key)
        for option in options:
            option = option.upper()
            if (
                (option == b"NX" and now is not None)
                or (option == b"XX" and now is None)
                or (option == b"GT" and (now is None or at_ms <= now))
                or (option == b"LT" and now is not None and at_ms >= now)
            ):
                return 0
        if at_ms <= self.now_ms:
            self._forget(key)
        else:
            self.ends_ms[key] = at_ms
        return 1

    def _do_persist(self, args: Sequence[bytes]) -> int:
        return int(self._value(args[0]) is not None and self.ends_ms.pop(args[0], None) is not None)

    def _do_pttl(self, args: Sequence[bytes]) -> int:
        if self._value(args[0]) is None:
            return -2
        end = self.ends_ms.get(args[0])
        return -1 if end is None else end - self.now_ms

    def _do_ttl(self, args: Sequence[bytes]) -> int:
        left = self._do_pttl(args)
        return left if left < 0 else (left + 500) // 1000

    # hashes

    def _do_hset(self, args: Sequence[bytes]) -> int:
        held = self._own(args[0], dict)
        if args[1] == b"ms" and args[0].endswith(b":clock"):
            self.positions.append((self.true_s(), int(args[2])))
        new = sum(name not in held for name in args[1::2])
        held.update(zip(args[1::2], args[2::2], strict=True))
        return new

    def _do_hsetnx(self, args: Sequence[bytes]) -> int:
        held = self._own(args[0], dict)
        if args[1] in held:
            return 0
        held[args[1]] = args[2]
        return 1

    def _do_hget(self, args: Sequence[bytes]) -> Any:
        return (self._of(args[0], dict) or {}).get(args[1])

    def _do_hmget(self, args: Sequence[bytes]) -> list[Any]:
        held = self._of(args[0], dict) or {}
        return [held.get(name) for name in args[1:]]

    def _do_hgetall(self, args: Sequence[bytes]) -> list[bytes]:
        return [text for pair in (self._of(args[0], dict) or {}).items() for text in pair]

    def _do_hexists(self, args: Sequence[bytes]) -> int:
        return int(args[1] in (self._of(args[0], dict) or {}))

    def _do_hlen(self, args: Sequence[bytes]) -> int:
        return len(self._of(args[0], dict) or {})

    def _do_hdel(self, args: Sequence[bytes]) -> int:
        held = self._of(args[0], dict)
        if held is None:
            return 0
        count = sum(held.pop(name, None) is not None for name in args[1:])
        self._drop_empty(args[0])
        return count

    def _do_hincrby(self, args: Sequence[bytes]) -> int:
        held = self._own(args[0], dict)
        number = _integer(held.get(args[1], b"0")) + _integer(args[2])
        held[args[1]] = b"%d" % number
        return number

    # lists

    def _do_rpush(self, args: Sequence[bytes]) -> int:
        held: list[bytes] = self._own(args[0], list)
        held.extend(args[1:])
        return len(held)

    def _do_lpush(self, args: Sequence[bytes]) -> int:
        held: list[bytes] = self._own(args[0], list)
        held[:0] = args[:0:-1]
        return len(held)

    def _do_lrange(self, args: Sequence[bytes]) -> list[bytes]:
        held: list[bytes] = self._of(args[0], list) or []
        first, last = _span(len(held), _integer(args[1]), _integer(args[2]))
        return held[first:last]

    def _do_ltrim(self, args: Sequence[bytes]) -> Status:
        held: list[bytes] = self._of(args[0], list) or []
        first, last = _span(len(held), _integer(args[1]), _integer(args[2]))
        held[:] = held[first:last]
        self._drop_empty(args[0])
        return Status(b"OK")

    def _do_llen(self, args: Sequence[bytes]) -> int:
        return len(self._of(args[0], list) or [])

    def _do_lindex(self, args: Sequence[bytes]) -> Any:
        held: list[bytes] = self._of(args[0], list) or []
        at = _integer(args[1])
        return held[at] if -len(held) <= at < len(held) else None

    # sets

    def _do_sadd(self, args: Sequence[bytes]) -> int:
        held: set[bytes] = self._own(args[0], set)
        before = len(held)
        held.update(args[1:])
        return len(held) - before

    def _do_srem(self, args: Sequence[bytes]) -> int:
        held: set[bytes] = self._of(args[0], set) or set()
        before = len(held)
        held.difference_update(args[1:])
        self._drop_empty(args[0])
        return before - len(held)

    def _do_smembers(self, args: Sequence[bytes]) -> list[bytes]:
        return sorted(self._of(args[0], set) or ())

    def _do_sismember(self, args: Sequence[bytes]) -> int:
        return int(args[1] in (self._of(args[0], set) or ()))

    def _do_scard(self, args: Sequence[bytes]) -> int:
        return len(self._of(args[0], set) or ())

    # sorted sets

    def _do_zadd(self, args: Sequence[bytes]) -> int:
        held = self._sorted_set(args[0])
        at, options = 1, set()
        while args[at].upper() in (b"NX", b"XX", b"GT", b"LT", b"CH"):
            options.add(args[at].upper())
            at += 1
        new = changed = 0
        for score, member in zip(args[at::2], args[at + 1 :: 2], strict=True):
            number, before = _float(score), held.get(member)
            if (
                (before is None and b"XX" in options)
                or (before is not None and b"NX" in options)
                or (before is not None and b"GT" in options and number <= before)
                or (before is not None and b"LT" in options and number >= before)
            ):
                continue
            new += before is None
            changed += before != number
            held[member] = number
        self._drop_empty(args[0])
        return changed if b"CH" in options else new

    def _do_zrem(self, args: Sequence[bytes]) -> int:
        held = self._of(args[0], SortedSet)
        if held is None:
            return 0
        count = sum(held.pop(member, None) is not None for member in args[1:])
        self._drop_empty(args[0])
        return count

    def _do_zremrangebyscore(self, args: Sequence[bytes]) -> int:
        held = self._of(args[0], SortedSet)
        if held is None:
            return 0
        within = _within(args[1], args[2])
        gone = [member for member, score in held.items() if within(score)]
        for member in gone:
            del held[member]
        self._drop_empty(args[0])
        return len(gone)

    def _do_zcard(self, args: Sequence[bytes]) -> int:
        return len(self._of(args[0], SortedSet) or ())

    def _do_zcount(self, args: Sequence[bytes]) -> int:
        within = _within(args[1], args[2])
        return sum(within(score) for score in (self._of(args[0], SortedSet) or {}).values())

    def _do_zscore(self, args: Sequence[bytes]) -> Any:
        score = (self._of(args[0], SortedSet) or {}).get(args[1])
        return None if score is None else _number_text(score)

    def _do_zpopmin(self, args: Sequence[bytes]) -> list[bytes]:
        held = self._of(args[0], SortedSet)
        if held is None:
            return []
        count = _integer(args[1]) if len(args) > 1 else 1
        reply = []
        for score, member in _in_order(held)[:count]:
            del held[member]
            reply += [member, _number_text(score)]
        self._drop_empty(args[0])
        return reply

    def _do_zrange(self, args: Sequence[bytes]) -> list[bytes]:
        return self._by_rank(args, _in_order(self._of(args[0], SortedSet) or {}))

    def _do_zrevrange(self, args: Sequence[bytes]) -> list[bytes]:
        return self._by_rank(args, _in_order(self._of(args[0], SortedSet) or {})[::-1])

    def _by_rank(self, args: Sequence[bytes], ordered: "list[tuple[float, bytes]]") -> list[bytes]:
        options = {option.upper() for option in args[3:]}
        if options - {b"WITHSCORES"}:
            raise NotImplementedError(f"a range of ranks with {args[3:]!r}")
        first, last = _span(len(ordered), _integer(args[1]), _integer(args[2]))
        return _members(ordered[first:last], scores=bool(options))

    def _do_zrangebyscore(self, args: Sequence[bytes]) -> list[bytes]:
        within = _within(args[1], args[2])
        found = [pair for pair in _in_order(self._of(args[0], SortedSet) or {}) if within(pair[0])]
        return self._limited(found, args[3:])

    def _do_zrevrangebyscore(self, args: Sequence[bytes]) -> list[bytes]:
        within = _within(args[2], args[1])
        found = [pair for pair in _in_order(self._of(args[0], SortedSet) or {})[::-1] if within(pair[0])]
        return self._limited(found, args[3:])

    def _limited(self, found: "list[tuple[float, bytes]]", options: Sequence[bytes]) -> list[bytes]:
        scores, at = False, 0
        while at < len(options):
            if options[at].upper() == b"WITHSCORES":
                scores = True
                at += 1
            else:  # LIMIT
                offset, count = _integer(options[at + 1]), _integer(options[at + 2])
                found = found[offset:] if count < 0 else found[offset : offset + count]
                at += 3
        return _members(found, scores=scores)

    # streams

    def _do_xadd(self, args: Sequence[bytes]) -> bytes | None:
        key, at, most = args[0], 1, None
        if args[at].upper() == b"NOMKSTREAM":
            if self._value(key) is None:
                return None
            at += 1
        if args[at].upper() == b"MAXLEN":
            at += 1
            at += args[at] in (b"=", b"~")
            most = _integer(args[at])
            at += 1
        text, fields = args[at], list(args[at + 1 :])
        new = _id(text, 0)
        held = self._of(key, Stream)
        if new <= (held.last if held else (0, 0)):
            raise RedisError("ERR The ID specified in XADD is equal or smaller than the target stream top item")
        if held is None:
            held = self.values[key] = Stream()
        written = b"%d-%d" % new
        held.ids.append(new)
        held.entries.append(StreamEntry(written, fields))
        held.last = new
        if most is not None:
            held.keep(most)
        return written

    def _do_xrange(self, args: Sequence[bytes]) -> list[Any]:
        held: Stream | None = self._of(args[0], Stream)
        if held is None:
            return []
        low, high = held.between(args[1], args[2])
        if len(args) > 3:
            high = min(high, low + _integer(args[4]))
        return held.entries[low:high]

    def _do_xrevrange(self, args: Sequence[bytes]) -> list[Any]:
        held: Stream | None = self._of(args[0], Stream)
        if held is None:
            return []
        low, high = held.between(args[2], args[1])
        if len(args) > 3:
            low = max(low, high - _integer(args[4]))
        return held.entries[low:high][::-1]

    def _do_xlen(self, args: Sequence[bytes]) -> int:
        held = self._of(args[0], Stream)
        return len(held.ids) if held else 0

    def _do_xtrim(self, args: Sequence[bytes]) -> int:
        held: Stream | None = self._of(args[0], Stream)
        if held is None:
            return 0
        kind, *rest = args[1:]
        threshold = rest[1] if rest[0] in (b"=", b"~") else rest[0]
        if kind.upper() == b"MAXLEN":
            return held.keep(_integer(threshold))
        return held.keep(len(held.ids) - bisect_left(held.ids, _id(threshold, 0)))

    # the server

    def _do_time(self, args: Sequence[bytes]) -> list[bytes]:
        return [b"%d" % (self.now_us // 1_000_000), b"%d" % (self.now_us % 1_000_000)]

    def _do_info(self, args: Sequence[bytes]) -> bytes:
        """Of the server, and of its memory as far as it is simulated."""
        used, most = (100, 100) if self.full else (1, 100)
        memory = f"used_memory:{used}\r\nmaxmemory:{most}\r\nmaxmemory_policy:noeviction\r\n"
        server = f"# Server\r\nredis_version:7.0.15\r\nrun_id:{self.run_id}\r\n"
        return f"{server}# Memory\r\n{memory}# Persistence\r\naof_enabled:1\r\n".encode()

    def _do_publish(self, args: Sequence[bytes]) -> int:
        return self.heard(args[0], args[1])

    def _do_ping(self, args: Sequence[bytes]) -> Any:
        return args[0] if args else Status(b"PONG")

    def _do_flushall(self, args: Sequence[bytes]) -> Status:
        self.flush()
        return Status(b"OK")

    def _do_script(self, args: Sequence[bytes]) -> Any:
        match args[0].upper():
            case b"LOAD":
                ENGINE.compile(args[1])
                sha = hashlib.sha1(args[1], usedforsecurity=False).hexdigest().encode()
                self.scripts[sha] = args[1]
                return sha
            case b"EXISTS":
                return [int(sha in self.scripts) for sha in args[1:]]
            case b"FLUSH":
                self.scripts.clear()
                return Status(b"OK")
        raise NotImplementedError(f"SCRIPT {args[0]!r}")


class SortedSet(dict[bytes, float]):
    """The value of a sorted set: scores of members."""


class TooMuch(Exception):
    """Redis is asked for more than any schedule may ask."""


# -- Texts and numbers ------------------------------------------------------------------------------------------


def _no_right(command: str, in_script: bool) -> str:
    if in_script:
        return "NOPERM The user executing the script can't run this command or subcommand"
    return f"NOPERM this user has no permissions to run the '{command}' command"


def _text(arg: Any) -> bytes:
    """An argument of `redis.call`. Numbers as Redis writes them: `%.17g`."""
    if isinstance(arg, bytes):
        return arg
    if isinstance(arg, bool) or not isinstance(arg, int | float):
        raise RedisError("ERR Lua redis lib command arguments must be strings or integers")
    return b"%d" % arg if isinstance(arg, int) and abs(arg) < 10**17 else b"%.17g" % arg


_INTEGER = re.compile(rb"-?(0|[1-9][0-9]*)\Z")


def _integer(text: bytes) -> int:
    if not _INTEGER.match(text):
        raise RedisError("ERR value is not an integer or out of range")
    return int(text)


def _float(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        raise RedisError("ERR value is not a valid float") from None


def _number_text(number: float) -> bytes:
    return b"%d" % number if math.isfinite(number) and number == int(number) else b"%.17g" % number


def _span(length: int, first: int, last: int) -> tuple[int, int]:
    first = max(0, first + length if first < 0 else first)
    last = last + length if last < 0 else last
    return first, max(first, last + 1)


def _in_order(held: dict[bytes, float]) -> list[tuple[float, bytes]]:
    return sorted((score, member) for member, score in held.items())


def _members(found: list[tuple[float, bytes]], *, scores: bool) -> list[bytes]:
    return [text for score, member in found for text in ((member, _number_text(score)) if scores else (member,))]


def _within(low: bytes, high: bytes) -> Callable[[float], bool]:
    least, most = _float(low.lstrip(b"(")), _float(high.lstrip(b"("))

    def is_within(score: float) -> bool:
        above = score > least if low.startswith(b"(") else score >= least
        return above and (score < most if high.startswith(b"(") else score <= most)

    return is_within


def _id(text: bytes, missing: int) -> Id:
    ms, dash, seq = text.partition(b"-")
    try:
        return int(ms), int(seq) if dash else missing
    except ValueError:
        raise RedisError("ERR Invalid stream ID specified as stream command argument") from None


def _cut(ids: list[Id], text: bytes, *, upper: bool) -> int:
    """Where a bound of a range lies in the ids."""
    exclusive = text.startswith(b"(")
    bound = _id(text.lstrip(b"("), (1 << 64) - 1 if upper else 0)
    return bisect_left(ids, bound) if upper == exclusive else bisect_right(ids, bound)


# -- Between Lua and Redis --------------------------------------------------------------------------------------


def _to_lua(reply: Any) -> Any:
    if reply is None:
        return False
    if type(reply) is bytes or type(reply) is int:
        return reply
    if type(reply) is StreamEntry:
        if reply.lua is None:  # no script changes what it was given
            reply.lua = ENGINE.table([reply[0], ENGINE.table(reply[1])])
        return reply.lua
    if isinstance(reply, list):
        return ENGINE.table([_to_lua(item) for item in reply])
    if type(reply) is Status:
        return ENGINE.table({b"ok": bytes(reply)})
    return reply


def _from_lua(value: Any) -> Any:
    if isinstance(value, bytes):
        return value
    if value is None or value is False:
        return None
    if value is True:
        return 1
    if isinstance(value, int | float):
        return int(value)
    if (error := value[b"err"]) is not None:
        text = error.decode(errors="replace")
        raise RedisError(text if text.partition(" ")[0].isupper() else f"ERR {text}")
    if (status := value[b"ok"]) is not None:
        return Status(status)
    return list(_items(value))


def _items(table: Any) -> Iterator[Any]:
    """As Redis reads an array: up to the first nil. An error within is an item."""
    for at in range(1, len(table) + 1):
        item = table[at]
        if item is None:
            return
        if isinstance(item, bytes):
            yield item
            continue
        try:
            yield _from_lua(item)
        except RedisError as error:
            yield error
