"""Sign-ins while one address floods them."""

import asyncio
import itertools
from collections import Counter

import httpx
import pytest
from harness.replicas import Replica, replica
from harness.waiting import until

pytestmark = pytest.mark.anyio

ADA = {"email": "ada@example.org", "password": "correct horse"}


class Flood:
    """Sign-ins as many different users from one address, which a trusted proxy tells."""

    def __init__(self, running: Replica, address: str) -> None:
        self._url = f"{running.url}/api/session"
        self._address = address
        self._numbers = itertools.count()
        self.answers: Counter[int] = Counter()

    async def one(self, client: httpx.AsyncClient) -> None:
        body = {"email": f"nobody{next(self._numbers)}@example.org", "password": "wrong password"}
        answer = await client.post(self._url, json=body, headers={"x-forwarded-for": self._address})
        self.answers[answer.status_code] += 1

    async def go_on(self, client: httpx.AsyncClient, per_s: float) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self.one(client))
                await asyncio.sleep(1 / per_s)


@pytest.mark.parametrize("address", ["203.0.113.7", "2001:db8:0:7::1"])
async def test_a_flood_from_one_address_leaves_the_sign_in_of_another_quick(address: str) -> None:
    limits = httpx.Limits(max_connections=None)
    with replica(address_calls_per_min=100_000) as running:
        async with httpx.AsyncClient(timeout=50, limits=limits) as flooding, httpx.AsyncClient(timeout=50) as client:
            await client.post(f"{running.url}/api/accounts", json={**ADA, "name": "Ada"})
            flood = Flood(running, address)
            burst = asyncio.gather(*[flood.one(flooding) for _ in range(140)])
            ongoing = asyncio.create_task(flood.go_on(flooding, 60))
            await until(lambda: flood.answers)

            hashed_meanwhile = []
            for _ in range(3):
                before = flood.answers[401]
                answer = await client.post(
                    f"{running.url}/api/session", json=ADA, headers={"x-forwarded-for": "203.0.113.8"}
                )
                assert answer.status_code == 200
                hashed_meanwhile.append(flood.answers[401] - before)

            await burst
            ongoing.cancel()
            await asyncio.gather(ongoing, return_exceptions=True)

            # Two were running, and one has a turn before it; some that were answered before are counted late.
            assert max(hashed_meanwhile) <= 20
            assert flood.answers.keys() <= {401, 429, 503}  # 503 where a hash takes very long
            assert running.metric("allim_refusals_total", limit="hashing") >= 100
