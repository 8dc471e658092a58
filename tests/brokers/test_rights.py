"""A Redis user that lacks rights: nothing is stored half, and readiness names the missing rights."""

import re
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from harness.servers import Redis, redis_server
from harness.streams import Lines, ListStream, hub_settings, identity
from harness.waiting import until
from structlog.testing import capture_logs

import allim.brokers.redis
from allim.brokers.redis import RedisBroker, RedisLedger
from allim.brokers.redis.rights import ASK_ANEW_S, SCRIPTS, Rights
from allim.errors import Unavailable
from allim.hub import Demand, Entry, Hub, Publication
from allim.telemetry import Metrics
from tests.brokers.brokers import fresh_prefix, ready

pytestmark = pytest.mark.anyio

CALLED = re.compile(r"call\)?\(\s*'(\w+)'")


@pytest.mark.parametrize(
    "script", sorted((Path(allim.brokers.redis.__file__).parent / "lua").glob("*.lua")), ids=lambda path: path.stem
)
def test_the_rights_of_each_script_are_those_of_the_commands_in_it(script: Path) -> None:
    text = "\n".join(line.partition("--")[0] for line in script.read_text().splitlines())
    called = set(CALLED.findall(text))
    if script.stem == "rights":
        assert called == set()
        return

    assert {command.partition(" ")[0] for command in SCRIPTS[script.stem]} == called
    assert len(re.findall(r"redis\.p?call\b", text)) == len(CALLED.findall(text)) + text.count("redis.pcall)")


# -- Over a Redis with a user of its own ---------------------------------------------------------------------


class Limited:
    """A replica, whose Redis user has all rights but those that a test takes away."""

    def __init__(self, server: Redis) -> None:
        self.server = server
        self.prefix = fresh_prefix()
        self.user = f"u-{self.prefix}"
        self.shard = f"{self.prefix}:{{0}}:"
        self.set("on", ">secret", "~*", "&*", "+@all")

    def set(self, *rules: str) -> None:
        with self.server.client() as client:
            client.execute_command("ACL", "SETUSER", self.user, *rules)

    def start(self, clock: Callable[[], float] = time.monotonic) -> None:
        rights = Rights(self.prefix, clock=clock)
        url = self.server.url.replace("redis://", f"redis://{self.user}:secret@")
        self.broker = RedisBroker(url, "r", Metrics(), prefix=self.prefix, rights=rights)
        self.ledger = RedisLedger(url, "r", prefix=self.prefix, rights=rights)
        self.hub = Hub(self.broker, self.ledger, Metrics(), hub_settings(heartbeat_s=1, pulse_s=0.2))

    def stored(self) -> dict[str, int]:
        """Return all keys under the prefix but those of clock and replicas, with their sizes."""
        sizes = {b"stream": "XLEN", b"list": "LLEN", b"zset": "ZCARD", b"hash": "HLEN", b"string": "STRLEN"}
        with self.server.client() as client:
            keys = [key for key in client.scan_iter(f"{self.prefix}:*") if not key.endswith((b"replicas", b"clock"))]
            return {key.decode(): client.execute_command(sizes[client.type(key)], key) for key in keys}

    async def says(self, text: str) -> bool:
        try:
            await self.broker.check()
        except Unavailable as error:
            return text in error.detail
        return False


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with redis_server() as server:
        yield server


@pytest.fixture
def limited(server: Redis) -> Limited:
    return Limited(server)


BATCH = Publication(
    [Entry(topic, bytes(Lines("t", topic))) for topic in ("user:42", "system", "user:42")], "k:1", "f"
)
MISSING = [
    (("-publish",), "+publish"),
    (("-expire",), "+expire"),
    (("-rpush",), "+rpush"),
    (("-lrange",), "+lrange"),
    (("-xadd",), "+xadd"),
    (("-hset",), "+hset"),
    (("resetchannels", "&{shard}pulse:*", "&{shard}origin"), "&{shard}*"),
    (("resetkeys", "~{shard}clock", "~{shard}history:*", "~{shard}replicas"), "~{shard}*"),
]
GIVEN_BACK = ("~*", "&*", "+@all")


@pytest.mark.parametrize(("rules", "named"), MISSING, ids=[rules[0] for rules, _ in MISSING])
async def test_a_publish_that_redis_would_refuse_half_way_changes_nothing(
    limited: Limited, rules: tuple[str, ...], named: str
) -> None:
    limited.set(*(rule.format(shard=limited.shard) for rule in rules))
    limited.start()
    async with limited.hub.running():
        for _ in range(3):
            with pytest.raises(Unavailable):
                await limited.broker.publish(BATCH)
        assert limited.stored() == {}
        await until(lambda: limited.says(named.format(shard=limited.shard)))

        limited.set(*GIVEN_BACK)
        await until(lambda: ready(limited.hub))
        await until(lambda: well(limited))
        stream = ListStream()
        await limited.hub.follow(stream, await limited.hub.join(stream, None))
        await limited.broker.publish(BATCH)
        await limited.broker.publish(BATCH)
        await until(lambda: len(stream.data) >= 3)

        assert stream.data == ["user:42", "system", "user:42"]
        assert limited.stored()[limited.shard + "history:user:42"] == 2


async def well(limited: Limited) -> bool:
    return await limited.broker.check() is None if not await limited.says("") else False


@pytest.mark.parametrize("rule", ["expire", "rpush"])
async def test_a_right_taken_away_while_it_runs_costs_at_most_the_publish_that_finds_out(
    limited: Limited, rule: str
) -> None:
    limited.start()
    async with limited.hub.running():
        await until(lambda: ready(limited.hub))
        await limited.broker.publish(BATCH)
        limited.set(f"-{rule}")
        with pytest.raises(Unavailable):
            await limited.broker.publish(BATCH._replace(key="k:2"))
        stored = limited.stored()
        for number in range(3):
            with pytest.raises(Unavailable):
                await limited.broker.publish(BATCH._replace(key=f"k:{number + 3}"))
        assert limited.stored() == stored
        await until(lambda: limited.says(f"+{rule}"))

        limited.set(f"+{rule}")
        await until(lambda: well(limited))
        assert len((await limited.broker.publish(BATCH._replace(key="k:9"))).positions) == 3


async def test_a_right_taken_away_while_it_runs_is_missed_before_it_is_needed(limited: Limited) -> None:
    passed_s = 0.0
    limited.start(clock=lambda: passed_s)
    async with limited.hub.running():
        await until(lambda: ready(limited.hub))
        limited.set("-xrange")  # which only a reader that returns needs

        passed_s += ASK_ANEW_S
        await until(lambda: limited.says("+xrange"))


@pytest.mark.parametrize("rule", ["subscribe", "info", "eval", "evalsha", "wait", "config|get"])
async def test_only_rights_that_are_needed_are_missed(limited: Limited, rule: str) -> None:
    limited.set(f"-{rule}")
    limited.start()
    async with limited.hub.running():
        if rule in ("wait", "config|get"):
            await until(lambda: ready(limited.hub))
            assert await limited.broker.check() is None
        else:
            await until(lambda: limited.says(f"ACL SETUSER … +{rule}"))


DEMANDS = [Demand("user:42", 10, 60)]
LEDGER_CALLS: dict[str, Callable[[RedisLedger], Awaitable[object]]] = {
    "sign_out": lambda ledger: ledger.sign_out(identity(), 60),
    "kick": lambda ledger: ledger.kick("42", 60, 0.0),
    "admit": lambda ledger: ledger.admit(identity(), "s", 1, 60, None, DEMANDS),
    "charge": lambda ledger: ledger.charge(DEMANDS, identity()),
}


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ("pexpire", "sign_out"),
        ("set", "sign_out"),
        ("set", "kick"),
        ("zpopmin", "admit"),
        ("pexpire", "admit"),
        ("exists", "charge"),
        ("set", "charge"),
    ],
)
async def test_the_ledger_writes_nothing_that_it_may_not_finish(limited: Limited, rule: str, name: str) -> None:
    limited.set(f"-{rule}")
    limited.start()
    try:
        with pytest.raises(Unavailable, match="NOPERM"):
            await LEDGER_CALLS[name](limited.ledger)
        assert limited.stored() == {}
    finally:
        await limited.ledger.close()
        await limited.broker.close()


async def test_missing_rights_are_logged_once(limited: Limited) -> None:
    limited.set("-rpush")
    limited.start()
    with capture_logs() as lines:
        async with limited.hub.running():
            for _ in range(3):
                with pytest.raises(Unavailable):
                    await limited.broker.publish(BATCH)
            await until(lambda: limited.says("+rpush"))
            limited.set("+rpush")
            await until(lambda: well(limited))

    told = [(line["log_level"], line["event"]) for line in lines if "rights" in line["event"]]
    assert told == [("error", "redis rights missing"), ("info", "redis rights complete")]
