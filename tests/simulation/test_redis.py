"""The simulated Redis against the real one: what a schedule asked of it, asked again of a redis-server."""

import gc
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import redis as redis_py
from harness.servers import redis_server

from tests.simulation.redis import Redis, RedisError, SortedSet, Status, Stream, StreamEntry
from tests.simulation.schedule import Step
from tests.simulation.simulate import schedule_of, simulate

ALIKE = (
    Step(2.0, 0.0, "somebody_signs_out", 1),
    Step(3.0, 0.5, "link_loses_answers", 2),
    Step(4.0, 1.0, "replica_crashes", 3),
    Step(5.0, 0.0, "redis_clock_is_set", 4),
    Step(6.0, 1.0, "link_is_cut", 5),
    Step(9.0, 1.5, "redis_clock_is_wrong_for_a_while", 6),
)  # what a real Redis can be made to do as well


# Before a script, so that on a real Redis it meets the recorded time, and nothing expires: that is told by `del`.
FROZEN = rb"""
local redis = (function(redis)
  local function arguments(command, ...)
    local given = {...}
    for at = 2, #given do
      if command == 'SET' and given[at] == 'PX' then given[at + 1] = given[at + 1] + 1e9 end
    end
    if command:match('EXPIRE$') then given[2] = given[2] + 1e9 end
    return command, unpack(given)
  end
  local function by(call)
    return function(command, ...)
      if command == 'TIME' then return {'%d', '%d'} end
      return call(arguments(command, ...))
    end
  end
  return setmetatable({call = by(redis.call), pcall = by(redis.pcall)}, {__index = redis})
end)(redis)
"""


class Recorded(Redis):
    """Notes what it was asked and what it answered, and what it forgot meanwhile."""

    all: "list[Recorded]" = []  # noqa: RUF012 - of the test that runs

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: list[tuple[str, Any, Any]] = []
        self.all.append(self)

    def execute(self, command: Sequence[bytes]) -> Any:
        source = self.scripts.get(command[1].lower()) if command[0] == b"EVALSHA" else command[1]
        try:
            reply = super().execute(command)
        except RedisError as error:
            reply = error
            raise
        finally:
            if command[0] in (b"EVALSHA", b"EVAL") and source is not None and b"'INFO'" not in source:
                first, end_of_line, rest = source.partition(b"\n") if source.startswith(b"#!") else (b"", b"", source)
                frozen = first + end_of_line + FROZEN % divmod(self.now_us, 1_000_000) + rest
                self.asked.append(("eval", (frozen, *command[2:]), reply))
        return reply

    def _forget(self, key: bytes) -> bool:
        if key in self.ends_ms and self.ends_ms[key] <= self.now_ms:
            self.asked.append(("del", key, None))
        return super()._forget(key)


@pytest.fixture(scope="module")
def real() -> Iterator[redis_py.Redis]:
    with redis_server() as server, redis_py.Redis(port=server.port, protocol=2) as client:
        yield client


@pytest.mark.parametrize("seed", [3, 11, 12, 29])
def test_the_scripts_do_the_same_on_a_real_redis(real: redis_py.Redis, seed: int) -> None:
    real.flushall()
    Recorded.all.clear()
    with patch("tests.simulation.server.Redis", Recorded), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a replica that crashed closes nothing
        simulate(replace(schedule_of(seed), steps=ALIKE, ends_s=14.0))
        gc.collect()
    [simulated] = Recorded.all
    assert sum(kind == "eval" for kind, _, _ in simulated.asked) > 100

    for kind, what, reply in simulated.asked:
        if kind == "del":
            real.delete(what)
        else:
            unordered = b"HGETALL" in what[0]
            assert _answer(real, what, unordered=unordered) == _plain(reply, unordered=unordered), what

    assert {key: _value(real, key) for key in real.scan_iter()} == {
        key: (_plain_value(value), key in simulated.ends_ms) for key, value in simulated.values.items()
    }


@pytest.mark.parametrize(
    "command",
    [
        "SET a 1 NX",
        "SET a 2 PX 50000",
        "SET a 3 XX GET",
        "SET a 4 KEEPTTL",
        "SET a 5 PX 0",
        "PEXPIRE a 100 GT",
        "PEXPIRE a 900000 GT",
        "PEXPIRE a 100000 NX",
        "EXPIRE nothing 5",
        "INCRBY a 4",
        "INCR h",
        "HSET h x 1 y 2",
        "HSET h x 3 z 4",
        "HMGET h x q z",
        "HGETALL h",
        "HDEL h x y z",
        "EXISTS h a",
        "RPUSH l 1 2 3",
        "LPUSH l 0 9",
        "LRANGE l 0 -1",
        "LRANGE l -2 7",
        "LRANGE l 4 1",
        "LTRIM l 1 2",
        "LINDEX l -1",
        "LLEN a",
        "ZADD z 3 c 1 a 2 b",
        "ZADD z GT CH 5 a 1 b",
        "ZRANGE z 0 -1 WITHSCORES",
        "ZREVRANGE z 0 1",
        "ZRANGEBYSCORE z 3 +inf WITHSCORES LIMIT 0 1",
        "ZREVRANGEBYSCORE z +inf (2 LIMIT 1 5",
        "ZREMRANGEBYSCORE z -inf (3",
        "ZPOPMIN z 2",
        "ZPOPMIN z",
        "ZCARD z",
        "ZSCORE z q",
        "XADD s 5-1 p 0-0 n 1",
        "XADD s 5-1 p 0-0",
        "XADD s MAXLEN 2 5-2 p 5-1",
        "XADD s MAXLEN = 2 7-0 p 5-2",
        "XADD s MAXLEN 2 7-0 p 5-2",
        "XRANGE s - +",
        "XRANGE s (5-2 + COUNT 1",
        "XRANGE s 5 5",
        "XRANGE s 5 (7-0",
        "XREVRANGE s + - COUNT 1",
        "XREVRANGE s (7-0 -",
        "XLEN s",
        "XTRIM s MINID 6-0",
        "XADD h 1-1 a b",
        "LRANGE s 0 1",
        "TYPE s",
        "DEL s z",
        "SADD m b a b",
        "SREM m b",
        "SISMEMBER m a",
        "PERSIST a",
        "TTL a",
        "PTTL nothing",
    ],
)
def test_a_command_does_the_same_on_a_real_redis(
    real: redis_py.Redis, simulated: Redis, command: str, emptied: None
) -> None:
    """In this order, on the same data: each sees what those before did."""
    words = command.encode().split()

    try:
        found: Any = simulated.execute(words)
    except RedisError as error:
        found = error

    assert _plain(found) == _answer(real, words, script=False)


@pytest.fixture(scope="module")
def simulated() -> Redis:
    return Redis(lambda: 1_000_000)


@pytest.fixture(scope="module")
def emptied(real: redis_py.Redis) -> None:
    real.flushall()


@pytest.mark.parametrize(
    "source",
    [
        "return 3.99",
        "return {1, 2.7, 'x', false, 4}",
        "return {1, nil, 3}",
        "return true",
        "return false",
        "return redis.status_reply('FINE')",
        "return redis.error_reply('READONLY no')",
        "return {err = 'MY own'}",
        "return redis.call('GET', 'nothing') == false",
        "return redis.call('SET', KEYS[1], ARGV[1]).ok",
        "return redis.call('GET', KEYS[1])",
        "return redis.pcall('LRANGE', KEYS[1], 0, 1).err ~= nil",
        "return redis.call('LRANGE', KEYS[1], 0, 1)",
        "return redis.call('SET', 'n', 1/3).ok .. redis.call('GET', 'n')",
        "return redis.call('SET', 'n', 12345678901234567890).ok .. redis.call('GET', 'n')",
        "return tostring(redis.call('ZADD', 'z', 0.5, 'a')) .. redis.call('ZPOPMIN', 'z')[2]",
        "return undefined",
        "undefined = 1",
        "return string.format('%.0f', 1700000000000123)",
        "return {{1, {'a'}}, {}}",
    ],
)
def test_what_lua_gives_is_converted_the_same(
    real: redis_py.Redis, simulated: Redis, source: str, emptied: None
) -> None:
    arguments = (source.encode(), b"1", b"lua", b"text")

    try:
        found: Any = simulated.execute((b"EVAL", *arguments))
    except RedisError as error:
        found = error

    assert _plain(found) == _answer(real, arguments)


def _answer(client: redis_py.Redis, words: Sequence[bytes], *, script: bool = True, unordered: bool = False) -> Any:
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command(*((b"EVAL", *words) if script else words))  # type: ignore[no-untyped-call]
        return _plain(connection.read_response(), unordered=unordered)
    except redis_py.RedisError as error:
        return _plain(error)
    finally:
        client.connection_pool.release(connection)


def _plain(reply: Any, *, unordered: bool = False) -> Any:
    """A reply for comparison; of an error only that it is one."""
    if isinstance(reply, redis_py.RedisError | RedisError):
        return "error"
    if isinstance(reply, Status):
        return bytes(reply)
    if isinstance(reply, list | StreamEntry):
        items = [_plain(item, unordered=unordered) for item in reply]
        return sorted(items, key=repr) if unordered else items
    return reply


def _value(client: redis_py.Redis, key: bytes) -> tuple[Any, bool]:
    read: dict[bytes, tuple[Any, ...]] = {
        b"string": ("GET", key),
        b"hash": ("HGETALL", key),
        b"list": ("LRANGE", key, 0, -1),
        b"zset": ("ZRANGE", key, 0, -1, "WITHSCORES"),
        b"stream": ("XRANGE", key, "-", "+"),
    }
    found = _answer(client, [b"TYPE", key], script=False)
    reply = _answer(client, list(read[found]), script=False)
    if found == b"hash":
        reply = dict(zip(reply[::2], reply[1::2], strict=True))
    if found == b"zset":
        reply = dict(zip(reply[::2], map(float, reply[1::2]), strict=True))
    return reply, bool(client.pttl(key) != -1)


def _plain_value(value: Any) -> Any:
    if isinstance(value, Stream):
        return [_plain(entry) for entry in value.entries]
    if isinstance(value, SortedSet):
        return dict(value)
    return value
