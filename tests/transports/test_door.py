"""What the stream's route asks of whom it refuses."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from allim.app import create_app
from allim.identity import Identity
from allim.settings import load_settings

pytestmark = pytest.mark.anyio


async def never(identity: Identity, room: str) -> bool:
    return False


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody who has signed in, and may call three times a minute."""
    settings = load_settings({"ALLIM_DATA_DIR": str(tmp_path), "ALLIM_USER_CALLS_PER_MIN": "3"})
    app = create_app(settings, {"room": never})
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        account = {"email": "min@example.org", "name": "Min", "password": "a good password"}
        made = await client.post("/api/accounts", json=account)
        client.headers["authorization"] = f"Bearer {made.json()['token']}"
        yield client


@pytest.mark.parametrize(("topics", "status"), [("room:1", 403), ("BAD!", 422)])
async def test_a_refused_topic_is_a_call_as_well(client: httpx.AsyncClient, topics: str, status: int) -> None:
    answers = [await client.get("/events", params={"topics": topics}) for _ in range(4)]

    assert [answer.status_code for answer in answers] == [status] * 3 + [429]
    assert answers[0].headers["ratelimit"].startswith('"user";r=2;')


async def test_who_has_signed_out_hears_that_whatever_topic_is_asked_for(client: httpx.AsyncClient) -> None:
    await client.delete("/api/session")

    answer = await client.get("/events", params={"topics": "room:1"})

    assert answer.status_code == 401
