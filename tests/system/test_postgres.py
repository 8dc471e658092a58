"""The same over PostgreSQL: an account made on one replica, its stream on another."""

from collections.abc import Iterator
from contextlib import AbstractContextManager

import httpx
import pytest

from tests.postgres import fresh_database, postgres_server
from tests.replicas import Reader, Replica, replica
from tests.servers import Redis

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with postgres_server() as url:
        yield url


async def test_sign_up_snapshot_and_event_over_two_replicas(postgres: str, redis: Redis) -> None:
    database_url = await fresh_database(postgres)

    def start() -> AbstractContextManager[Replica]:
        return replica(database_url=database_url, redis_url=redis.url, redis_prefix="postgres", pulse_s=0.5)

    account = {"email": "ada@example.org", "name": "Ada", "password": "long enough"}
    with start() as one, start() as two:
        signed_in = httpx.post(f"{one.url}/api/accounts", json=account).json()
        headers = {"authorization": f"Bearer {signed_in['token']}"}
        async with await Reader.open(two.url, signed_in["token"]) as stream:
            await stream.next("stream.open")
            asked = httpx.post(f"{one.url}/api/accounts/me/snapshots", headers=headers).json()
            generated = await stream.next("snapshots.generated")
            while generated.data["snapshotId"] != asked["id"]:  # the first one may come before it
                generated = await stream.next("snapshots.generated")
            one.publish((f"user:{signed_in['account']['id']}", "t", "hello"))

            assert (await stream.next("t")).data == "hello"
        shown = httpx.get(f"{two.url}/api/accounts/me/snapshots/{asked['id']}", headers=headers).json()
        again = httpx.post(f"{two.url}/api/accounts", json=account)

    assert generated.data["snapshotCount"] == shown["snapshotCount"] == 2
    assert shown["status"] == "generated"
    assert again.status_code == 409
