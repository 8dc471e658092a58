import asyncio

import pytest

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
