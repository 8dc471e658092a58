import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from harness.streams import hub_settings
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from allim.access.publishers import CACHE_S, Publishers, SettingsKeys, digest_of
from allim.brokers.memory import MemoryBroker, MemoryLedger
from allim.domains import keys
from allim.http import publish
from allim.hub import Hub
from allim.identity import OPERATOR
from allim.storage import reading
from allim.telemetry import Metrics
from tests.access.gates import AMPLE, ROOMY, bearer, gate_of, rates_of
from tests.domains.fakes import Clock
from tests.http.apps import assert_problem, client_of

pytestmark = pytest.mark.anyio

PATH = "/api/keys"
NEW = {"name": "shop", "topics": ["user:*", "news"], "types": ["orders.*"]}
EVENT = {"topic": "user:1", "type": "orders.shipped", "data": 1}
NOBODY = {"authorization": ""}
A_USER = bearer("u1")


class Replica:
    """The routes of keys and of publishing, on one database; its publishers' clock and the room's are one."""

    def __init__(self, engine: AsyncEngine, clock: Clock) -> None:
        service = keys.Service(engine, clock)
        hub = Hub(MemoryBroker(), MemoryLedger(), Metrics(), hub_settings())
        publishers = Publishers(SettingsKeys([], {}), service.publisher, clock)
        self.client = client_of(
            [*keys.routes(service, gate_of()), *publish.routes(hub, publishers, rates_of(), AMPLE, lambda: ROOMY)]
        )
        self.client.headers.update(bearer("op1", OPERATOR))

    async def create(self, **fields: Any) -> dict[str, Any]:
        response = await self.client.post(PATH, json={**NEW, **fields})
        assert response.status_code == 201, response.text
        created: dict[str, Any] = response.json()
        return created

    async def rotate(self, key: dict[str, Any], **body: Any) -> dict[str, Any]:
        response = await self.client.post(f"{PATH}/{key['id']}/rotation", json=body)
        assert response.status_code == 201, response.text
        rotated: dict[str, Any] = response.json()
        return rotated

    async def publish(self, key: dict[str, Any], event: object = EVENT, idempotency_key: str | None = None) -> int:
        headers = {"authorization": f"Bearer {key['key']}"}
        if idempotency_key is not None:
            headers["idempotency-key"] = idempotency_key
        return (await self.client.post("/api/publish", json=event, headers=headers)).status_code


@pytest.fixture
async def replica(engine: AsyncEngine, clock: Clock) -> AsyncIterator[Replica]:
    replica = Replica(engine, clock)
    async with replica.client:
        yield replica


@pytest.fixture
def client(replica: Replica) -> httpx.AsyncClient:
    return replica.client


def without_secret(key: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in key.items() if name != "key"}


async def test_a_key_is_made_and_its_secret_is_shown_once(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    response = await client.post(PATH, json=NEW)

    created = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"{PATH}/{created['id']}"
    assert response.headers["cache-control"] == "no-store"
    made = {"id": created["id"], "createdAt": "2023-11-14T22:13:20.000Z", "expiresAt": None, "key": created["key"]}
    assert created == {**NEW, **made}
    shown = await client.get(response.headers["location"])
    listed = await client.get(PATH)
    assert shown.json() == without_secret(created)
    assert listed.json() == {"items": [shown.json()], "nextCursor": None}
    assert shown.headers["cache-control"] == listed.headers["cache-control"] == "no-store"
    async with reading(engine) as connection:
        row = (await connection.execute(text("SELECT * FROM allim_keys"))).mappings().one()
    assert row["digest"] == digest_of(created["key"].encode()).hex()
    assert row["created_by"] == "op1"
    assert created["key"] not in str(row)


async def test_a_key_publishes_what_it_was_made_for(replica: Replica) -> None:
    key = await replica.create()

    assert await replica.publish(key) == 202
    assert await replica.publish(key, {**EVENT, "topic": "system"}) == 403
    assert await replica.publish(key, {**EVENT, "type": "billing.paid"}) == 403
    everything = await replica.create(topics=["*"], types=["*"])
    assert await replica.publish(everything, {"topic": "system", "type": "billing.paid", "data": 1}) == 202


async def test_what_the_gate_refuses_is_refused_before_anything_is_looked_at(replica: Replica) -> None:
    key = await replica.create()
    calls = [
        ("POST", PATH),
        ("GET", PATH),
        ("GET", f"{PATH}/{key['id']}"),
        ("DELETE", f"{PATH}/{key['id']}"),
        ("POST", f"{PATH}/{key['id']}/rotation"),
        ("GET", f"{PATH}/unknown"),
    ]

    for method, path in calls:
        assert_problem(await replica.client.request(method, path, headers=NOBODY), 401, "unauthenticated")
        assert_problem(await replica.client.request(method, path, headers=A_USER), 403, "forbidden")
    assert (await replica.client.get(PATH)).json()["items"] == [without_secret(key)]


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["name", "topics", "types"]),
        ([], ["body"]),
        ({**NEW, "key": "ak_mine"}, ["key"]),
        ({**NEW, "name": ""}, ["name"]),
        ({**NEW, "name": "a b"}, ["name"]),
        ({**NEW, "name": "shop\n"}, ["name"]),
        ({**NEW, "name": "a" * 65}, ["name"]),
        ({**NEW, "name": None}, ["name"]),
        ({**NEW, "topics": "user:*"}, ["topics"]),
        ({**NEW, "topics": []}, ["topics"]),
        ({**NEW, "topics": ["a"] * 101}, ["topics"]),
        ({**NEW, "topics": ["news", "User"]}, ["topics[1]"]),
        ({**NEW, "topics": ["user*"]}, ["topics[0]"]),
        ({**NEW, "topics": [1]}, ["topics[0]"]),
        ({**NEW, "types": []}, ["types"]),
        ({**NEW, "types": ["orders*", "orders.*", ""]}, ["types[0]", "types[2]"]),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_made(
    client: httpx.AsyncClient, body: object, fields: list[str]
) -> None:
    assert_problem(await client.post(PATH, json=body), 422, "invalid", *fields)
    assert (await client.get(PATH)).json()["items"] == []


async def test_a_hundred_long_grants_are_stored(replica: Replica) -> None:
    grants = {"topics": ["a" * 64 + ":" + "B" * 128] * 100, "types": ["a" * 126 + ".*"] * 100}

    key = await replica.create(**grants)

    assert (await replica.client.get(f"{PATH}/{key['id']}")).json() == without_secret(key)


@pytest.mark.parametrize("grace_s", [-1, 604_801, 1.5, True, "60", None])
async def test_a_grace_over_its_limits_is_named_and_nothing_is_rotated(replica: Replica, grace_s: object) -> None:
    key = await replica.create()

    response = await replica.client.post(f"{PATH}/{key['id']}/rotation", json={"graceS": grace_s})

    assert_problem(response, 422, "invalid", "graceS")
    assert (await replica.client.get(PATH)).json()["items"] == [without_secret(key)]


async def test_a_rotated_key_is_good_until_its_grace_is_over_and_its_successor_stays(
    replica: Replica, clock: Clock
) -> None:
    old = await replica.create()
    clock.advance(60)

    new = await replica.rotate(old, graceS=604_800)

    assert (new["name"], new["expiresAt"], new["createdAt"]) == ("shop", None, "2023-11-14T22:14:20.000Z")
    assert (new["topics"], new["types"]) == (old["topics"], old["types"])
    assert new["id"] != old["id"]
    assert new["key"] != old["key"]
    expired = {**without_secret(old), "expiresAt": "2023-11-21T22:14:20.000Z"}
    assert (await replica.client.get(PATH)).json()["items"] == [without_secret(new), expired]
    assert (await replica.publish(old), await replica.publish(new)) == (202, 202)
    clock.advance(604_800 - 1)
    assert await replica.publish(old) == 202  # from here on remembered for CACHE_S
    clock.advance(CACHE_S)
    assert (await replica.publish(old), await replica.publish(new)) == (401, 202)
    assert (await replica.client.get(f"{PATH}/{old['id']}")).json() == expired


async def test_a_rotation_without_a_body_leaves_an_hour(replica: Replica) -> None:
    key = await replica.create()

    response = await replica.client.post(f"{PATH}/{key['id']}/rotation")

    assert response.status_code == 201
    assert response.headers["location"] == f"{PATH}/{response.json()['id']}"
    assert response.headers["cache-control"] == "no-store"
    assert (await replica.client.get(f"{PATH}/{key['id']}")).json()["expiresAt"] == "2023-11-14T23:13:20.000Z"


async def test_without_grace_a_rotated_key_ends_at_once(replica: Replica) -> None:
    key = await replica.create()

    new = await replica.rotate(key, graceS=0)

    assert (await replica.publish(key), await replica.publish(new)) == (401, 202)


async def test_of_many_rotations_at_once_one_makes_a_successor(replica: Replica) -> None:
    key = await replica.create()
    path = f"{PATH}/{key['id']}/rotation"

    answers = await asyncio.gather(*(replica.client.post(path, json={}) for _ in range(8)))

    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    assert len((await replica.client.get(PATH)).json()["items"]) == 2
    assert_problem(await replica.client.post(path, json={}), 409, "conflict")


async def test_a_successor_knows_the_idempotency_keys_of_the_key_before(replica: Replica) -> None:
    key = await replica.create()
    await replica.publish(key, idempotency_key="k")
    new = await replica.rotate(key)

    assert await replica.publish(new, {**EVENT, "data": 2}, idempotency_key="k") == 409


async def test_a_deleted_key_is_refused_by_every_replica_within_two_seconds(
    replica: Replica, engine: AsyncEngine, clock: Clock
) -> None:
    other = Replica(engine, clock)
    key = await replica.create()
    assert (await replica.publish(key), await other.publish(key)) == (202, 202)

    deleted = await replica.client.delete(f"{PATH}/{key['id']}")
    clock.advance(2)

    assert (deleted.status_code, deleted.content) == (204, b"")
    assert (await replica.publish(key), await other.publish(key)) == (401, 401)
    assert (await replica.client.get(PATH)).json()["items"] == []
    await other.client.aclose()


@pytest.mark.parametrize(("method", "suffix"), [("GET", ""), ("DELETE", ""), ("POST", "/rotation")])
@pytest.mark.parametrize("key_id", ["unknown", "%00", "a" * 65, "deleted"])
async def test_unknown_keys_all_look_the_same(replica: Replica, method: str, suffix: str, key_id: str) -> None:
    if key_id == "deleted":
        key_id = (await replica.create())["id"]
        await replica.client.delete(f"{PATH}/{key_id}")

    response = await replica.client.request(method, f"{PATH}/{key_id}{suffix}")

    assert_problem(response, 404, "not_found")
    assert response.json()["detail"] == "There is no such publish key."


async def test_pages_neither_skip_nor_repeat_while_keys_are_made(replica: Replica, clock: Clock) -> None:
    at_once = {(await replica.create())["id"] for _ in range(4)}  # the same time for all: the id decides
    clock.advance(1)
    newest = (await replica.create())["id"]

    seen: list[str] = []
    query = "limit=2"
    for expected in (2, 2, 1):
        page = (await replica.client.get(f"{PATH}?{query}")).json()
        assert len(page["items"]) == expected
        seen += [item["id"] for item in page["items"]]
        clock.advance(1)
        await replica.create()
        query = f"limit=2&cursor={page['nextCursor']}"

    assert page["nextCursor"] is None
    assert seen[0] == newest
    assert set(seen[1:]) == at_once


@pytest.mark.parametrize(("query", "field"), [("limit=0", "limit"), ("cursor=x", "cursor"), ("name=a", "name")])
async def test_malformed_queries_are_refused(client: httpx.AsyncClient, query: str, field: str) -> None:
    assert_problem(await client.get(f"{PATH}?{query}"), 422, "invalid", field)


async def test_what_operators_do_is_logged_without_secrets(replica: Replica) -> None:
    with capture_logs() as logs:
        key = await replica.create()
        new = await replica.rotate(key, graceS=60)
        await replica.client.delete(f"{PATH}/{key['id']}", headers=bearer("op2", OPERATOR))
        await replica.client.delete(f"{PATH}/{key['id']}")

    told = [(line["event"], line["key"], line["publisher"], line["operator"]) for line in logs]
    assert told == [
        ("publish key created", key["id"], "shop", "op1"),
        ("publish key rotated", key["id"], "shop", "op1"),
        ("publish key deleted", key["id"], "shop", "op2"),
    ]
    assert logs[1]["successor"] == new["id"]
    written = json.dumps(logs)
    assert key["key"] not in written
    assert new["key"] not in written
