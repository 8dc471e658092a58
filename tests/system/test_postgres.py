"""The same over PostgreSQL: an account made on one replica, its stream on another; through PgBouncer; a failover."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path

import httpx
import pytest
from harness.postgres import Postgres, at_server, fresh_database, pgbouncer, primary, standby_of
from harness.proxy import fault_proxy
from harness.replicas import Reader, Replica, launch_replica, replica
from harness.servers import Redis
from harness.waiting import START_S, until_sync

pytestmark = pytest.mark.anyio

_accounts = count(1)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with primary() as server:
        yield server


@pytest.mark.parametrize("pool_mode", ["", "transaction"], ids=["direct", "pgbouncer"])
async def test_sign_up_snapshot_and_event_over_two_replicas(postgres: Postgres, redis: Redis, pool_mode: str) -> None:
    name = (await fresh_database(postgres.url)).rpartition("/")[2]
    pooler = pgbouncer(postgres.url, pool_mode) if pool_mode else nullcontext(postgres.url)

    def start(server_url: str) -> AbstractContextManager[Replica]:
        return replica(
            database_url=at_server(server_url, name), redis_url=redis.url, redis_prefix=f"pg{pool_mode}", pulse_s=0.5
        )

    account = {"email": "ada@example.org", "name": "Ada", "password": "long enough"}
    with pooler as server_url, start(server_url) as one, start(server_url) as two:
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


def test_a_pooler_without_transactions_is_named_at_the_start(postgres: Postgres, tmp_path: Path) -> None:
    with pgbouncer(postgres.url, "statement") as url:
        started = launch_replica(tmp_path, database_url=url)
        try:
            assert started.process.wait(START_S) != 0
        finally:
            started.end()

    assert "ALLIM_DATABASE_URL: PgBouncer's pool_mode=statement allows no transactions" in started.log.read_text()


def sign_up(to: Replica) -> httpx.Response:
    account = {"email": f"ada{next(_accounts)}@example.org", "name": "Ada", "password": "long enough"}
    return httpx.post(f"{to.url}/api/accounts", json=account, timeout=30)


def store_check(of: Replica) -> tuple[int, str]:
    answer = httpx.get(f"{of.url}/readyz", timeout=30)
    return answer.status_code, answer.json()["checks"]["store"]


def accepts_again(at: Replica) -> bool:
    return sign_up(at).status_code == 201 and store_check(at) == (200, "ok")


TAKES_NO_WRITES = "The database takes no writes: it is a standby, or read-only."


def test_a_failover_is_an_outage_until_the_name_leads_to_a_primary_again() -> None:
    with primary() as old, standby_of(old) as standby, fault_proxy(old.port) as name:
        url = old.url.replace(f":{old.port}/", f":{name.port}/")
        with replica(database_url=url) as running:
            assert sign_up(running).status_code == 201

            name.lead_to(standby)
            name.cut()
            until_sync(lambda: store_check(running) == (503, TAKES_NO_WRITES))
            refused = sign_up(running)
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
            assert int(refused.headers["retry-after"]) > 0

            name.lead_to(old)  # nothing is cut: a connection to the standby would go on
            began = time.monotonic()
            until_sync(lambda: accepts_again(running))
            assert time.monotonic() - began < 8

            old.stop()
            until_sync(lambda: store_check(running)[0] == 503)
            name.lead_to(standby)
            standby.promote()
            until_sync(lambda: accepts_again(running))

            log = running.log.read_text()
    assert "takes no writes: it is a standby, or read-only" in log
    assert "unexpected error" not in log
