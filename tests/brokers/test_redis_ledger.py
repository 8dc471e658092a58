"""What the ledger over Redis has for itself: a connection that may break."""

import asyncio

import pytest
from harness.proxy import FaultProxy, fault_proxy
from harness.servers import Redis

from allim.brokers.redis import RedisLedger
from allim.hub import Demand

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("fault", [FaultProxy.cut, FaultProxy.reset])
async def test_after_its_connection_has_ended_it_asks_over_a_new_one(redis: Redis, fault: object) -> None:
    assert callable(fault)
    with fault_proxy(redis.port) as way:
        ledger = RedisLedger(f"redis://127.0.0.1:{way.port}/0", "replica-0", prefix="ended")
        await ledger.charge([Demand("any", 10, 60)])
        fault(way)
        await asyncio.sleep(0.05)  # until our side has read that, which nobody can see

        assert (await ledger.charge([Demand("any", 10, 60)])).granted
        await ledger.close()
