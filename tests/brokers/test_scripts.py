"""Calls that are tried again."""

import asyncio
import re
from collections.abc import Sequence
from typing import Any, cast

import pytest
from harness.servers import Redis
from harness.waiting import until

from allim.brokers.redis import RedisBroker, RedisLedger
from allim.brokers.redis.rights import Rights
from allim.brokers.redis.scripts import Call, NotDone, Refused, Script, ScriptCalls
from allim.brokers.redis.server import Connected, RedisServer, ask
from allim.errors import Unavailable
from allim.telemetry import Metrics

pytestmark = pytest.mark.anyio


class Nowhere:
    """A Redis that cannot be reached, or one whose connections end before anything can be written."""

    def __init__(self, *, reached: bool) -> None:
        self.reached = reached
        self.tries = 0
        self.rights = Rights()
        self._writer = None

    async def connect(self) -> Connected:
        self.tries += 1
        if not self.reached:
            raise OSError("nobody is there")
        return Connected(cast(Any, self), "run")

    async def disconnect(self, nowait: bool) -> None:
        pass


def calls_to(server: Nowhere, within_s: float | None = None) -> ScriptCalls:
    return ScriptCalls(cast(RedisServer, server), lambda _: (), within_s=within_s)


PULSE = Script("pulse", "time", "clock", "expiry")
PAUSES: Sequence[float] = (0.01, 0.02)


async def test_what_had_no_effect_is_tried_again_after_each_pause() -> None:
    server = Nowhere(reached=False)

    with pytest.raises(NotDone):
        await calls_to(server).call(PULSE, [], [], pauses=PAUSES)
    assert server.tries == 3


@pytest.mark.parametrize(("repeatable", "tries"), [(True, 3), (False, 1)])
async def test_what_may_have_had_an_effect_is_tried_again_only_if_repeatable(repeatable: bool, tries: int) -> None:
    server = Nowhere(reached=True)

    with pytest.raises(Unavailable, match="did not answer"):
        await calls_to(server).call(PULSE, [], [], pauses=PAUSES, repeatable=repeatable)
    assert server.tries == tries


async def test_all_tries_together_have_one_deadline() -> None:
    server = Nowhere(reached=False)

    async with asyncio.timeout(9):
        with pytest.raises(Unavailable, match="in time"):
            await calls_to(server, within_s=0.5).call(PULSE, [], [], pauses=(0.01, 10))
    assert server.tries == 2


async def test_who_has_gone_is_not_called_for_again() -> None:
    server = Nowhere(reached=False)
    call = calls_to(server).call(PULSE, [], [], pauses=(0.02,))
    await until(lambda: server.tries == 1, what="the first try")
    call.cancel()
    await asyncio.sleep(0.05)

    assert server.tries == 1


async def test_nothing_is_called_after_the_end() -> None:
    server = Nowhere(reached=False)
    calls = calls_to(server)
    under_way = calls.call(PULSE, [], [], pauses=(10,))
    await until(lambda: server.tries == 1, what="the first try")
    await calls.close()

    for call in (under_way, calls.call(PULSE, [], [], pauses=(10,))):
        with pytest.raises(NotDone):
            async with asyncio.timeout(1):
                await call
    assert server.tries == 1


class Forgotten(ScriptCalls):
    """Calls to a Redis that forgets its scripts before each of the first `times` questions."""

    times = 0

    async def _replies(self, connected: Connected, batch: Sequence[Call], *, whole: bool = False) -> list[Any]:
        if self.times:
            self.times -= 1
            await ask(connected.connection, "SCRIPT", "FLUSH")
        return await super()._replies(connected, batch, whole=whole)


@pytest.mark.parametrize("times", [1, 2])
async def test_a_call_whose_script_redis_forgets_again_and_again_is_made_once(redis: Redis, times: int) -> None:
    server = RedisServer(redis.url, "forgotten", Rights())
    calls = Forgotten(server, lambda run_id: (run_id, "0-0", ""))
    calls.times = times
    with redis.client() as client:
        channel = f"forgotten:{times}"
        heard = client.pubsub()
        heard.subscribe(channel)
        heard.get_message(timeout=5)

        await calls.call(PULSE, [f"forgotten:{times}:clock"], [channel, "nonce"])

        await calls.close()
        await server.close()
        assert heard.get_message(timeout=5) is not None
        assert heard.get_message(timeout=0.1) is None
        heard.close()


async def test_what_redis_refuses_is_not_asked_again_also_if_repeatable(redis: Redis) -> None:
    server = RedisServer(redis.url, "refused", Rights())
    calls = ScriptCalls(server, lambda run_id: (run_id, "0-0", ""))
    with redis.client() as client:
        client.set("refused:clock", "no hash")
        before = client.info("errorstats").get("errorstat_WRONGTYPE", {"count": 0})["count"]

        with pytest.raises(Refused, match="WRONGTYPE"):
            await calls.call(PULSE, ["refused:clock"], ["refused", "nonce"], pauses=PAUSES, repeatable=True)

        assert (
            client.info("errorstats")["errorstat_WRONGTYPE"]["count"] - before <= 2
        )  # the command's and its script's
    await calls.close()
    await server.close()


BUILT_IN = {"tonumber", "ipairs", "pairs", "unpack", "error", "type", "pcall"} | {
    "and",
    "or",
    "not",
    "if",
    "function",
}


def every_script() -> list[Script]:
    """Return the scripts of broker and ledger."""
    owners = (RedisBroker("redis://127.0.0.1", "r", Metrics()), RedisLedger("redis://127.0.0.1", "r"))
    return [value for owner in owners for value in vars(owner).values() if isinstance(value, Script)]


@pytest.mark.parametrize("script", every_script(), ids=lambda script: script.name)
def test_a_script_calls_only_functions_that_it_defines(script: Script) -> None:
    """Redis finds a function that does not exist only when a call comes to it, perhaps on a full disk alone."""
    code = "\n".join(line.partition("--")[0] for line in script.source.splitlines())
    code = re.sub(r"'[^'\n]*'", "''", code)
    defined = set(re.findall(r"function (\w+)\(", code))

    assert set(re.findall(r"(?<![.:\w])([a-z_]\w*)\(", code)) <= defined | BUILT_IN
