import asyncio

import pytest
from harness.waiting import until

from allim.errors import Unavailable
from allim.http import health
from tests.http.apps import client_of

pytestmark = pytest.mark.anyio


async def well() -> None:
    pass


async def unwell() -> None:
    raise Unavailable("The database does not answer.")


async def broken() -> None:
    raise RuntimeError("password=hunter2")


async def silent() -> None:
    await asyncio.Event().wait()


async def test_alive_asks_nobody() -> None:
    async with client_of(health.routes({"store": unwell})) as client:
        response = await client.get("/healthz")

    assert (response.status_code, response.json()) == (200, {"status": "alive"})


async def test_ready_when_every_check_is() -> None:
    async with client_of(health.routes({"store": well, "pulse": well})) as client:
        response = await client.get("/readyz")

    assert response.status_code == 200
    assert response.json() == {"status": "ready", "checks": {"store": "ok", "pulse": "ok"}}
    assert response.headers["cache-control"] == "no-store"


async def test_not_ready_says_why_and_tells_no_secret() -> None:
    checks = {"ok": well, "store": unwell, "odd": broken, "pulse": silent}
    async with client_of(health.routes(checks, timeout_s=0.05)) as client:
        response = await client.get("/readyz")

    assert response.status_code == 503
    assert response.json() == {
        "status": "not ready",
        "checks": {
            "ok": "ok",
            "store": "The database does not answer.",
            "odd": "failed; see the log",
            "pulse": "no answer within 0.05 s",
        },
    }


class Store:
    """Another process, which is asked as often as `asked` says."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer = asyncio.Event()
        self.answer.set()
        self.well = True

    async def check(self) -> None:
        self.asked += 1
        await self.answer.wait()
        if not self.well:
            raise Unavailable("The database does not answer.")


async def test_all_who_ask_at_once_ask_another_process_once() -> None:
    store = Store()
    store.answer.clear()
    async with client_of(health.routes({"store": store.check}, asking={"store"}, keep_s=0)) as client:
        asking = [asyncio.create_task(client.get("/readyz")) for _ in range(100)]
        await until(lambda: store.asked)
        asking[0].cancel()
        await asyncio.sleep(0.05)
        store.answer.set()
        statuses = {(await one).status_code for one in asking[1:]}

    assert (store.asked, statuses) == (1, {200})


async def test_what_another_process_said_is_kept_and_what_is_known_here_is_not() -> None:
    store, here = Store(), Store()
    checks = {"store": store.check, "hub": here.check}
    async with client_of(health.routes(checks, asking={"store"}, keep_s=0.3)) as client:
        assert (await client.get("/readyz")).status_code == 200
        here.well = False
        assert (await client.get("/readyz")).status_code == 503
        here.well, store.well = True, False
        assert (await client.get("/readyz")).status_code == 200

        async def is_red() -> bool:
            return (await client.get("/readyz")).status_code == 503

        await until(is_red)

    assert store.asked == 2


async def test_a_process_that_does_not_answer_is_asked_again() -> None:
    store = Store()
    store.answer.clear()
    async with client_of(health.routes({"store": store.check}, 0.05, {"store"}, 0)) as client:
        assert (await client.get("/readyz")).status_code == 503
        store.answer.set()
        assert (await client.get("/readyz")).status_code == 200
