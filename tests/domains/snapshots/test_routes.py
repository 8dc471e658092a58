import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from allim.access.rates import Policy
from allim.domains import snapshots
from allim.domains.snapshots import generation
from allim.domains.snapshots.service import MAX_OWED
from allim.domains.snapshots.store import Snapshot
from allim.errors import Conflict
from tests.access.gates import AMPLE, bearer, gate_of
from tests.domains.fakes import Clock, RecordingHub, profile
from tests.domains.snapshots.replicas import Replica, another_replica, replica_on
from tests.http.apps import assert_problem, client_of

pytestmark = pytest.mark.anyio

PATH = "/api/accounts/me/snapshots"
NEW_FIELDS = {"generatedAt": None, "snapshotCount": None, "serverId": None, "sha256": None}


@pytest.fixture
def replica(engine: AsyncEngine, hub: RecordingHub, clock: Clock) -> Replica:
    return replica_on(engine, hub, clock, "alpha")


@pytest.fixture
def enqueued() -> list[str]:
    return []


@pytest.fixture
def refused() -> list[str]:
    return []


@pytest.fixture
async def client(
    engine: AsyncEngine, clock: Clock, replica: Replica, enqueued: list[str], refused: list[str]
) -> AsyncIterator[httpx.AsyncClient]:
    async def enqueue(connection: AsyncConnection, snapshot_id: str) -> None:
        enqueued.append(snapshot_id)
        await replica.generation.enqueue(connection, snapshot_id)

    service = snapshots.Service(engine, profile, enqueue, clock, refused.append)
    async with client_of(snapshots.routes(service, gate_of(), AMPLE)) as client:
        client.headers.update(bearer("a1"))
        yield client


@pytest.mark.parametrize("body", [None, {}])
async def test_a_request_is_accepted_and_enqueued(
    client: httpx.AsyncClient, enqueued: list[str], body: object
) -> None:
    response = await client.post(PATH, json=body) if body is not None else await client.post(PATH)

    snapshot = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"{PATH}/{snapshot['id']}"
    requested_at = "2023-11-14T22:13:20.000Z"
    assert snapshot == {"id": snapshot["id"], "status": "pending", "requestedAt": requested_at, **NEW_FIELDS}
    assert enqueued == [snapshot["id"]]
    assert (await client.get(response.headers["location"])).json() == {**snapshot, "content": None}


async def test_a_generated_snapshot_is_shown_with_its_content(client: httpx.AsyncClient, replica: Replica) -> None:
    snapshot_id = (await client.post(PATH)).json()["id"]
    await replica.attempt(snapshot_id)

    shown = (await client.get(f"{PATH}/{snapshot_id}")).json()
    listed = (await client.get(PATH)).json()["items"][0]

    content = shown.pop("content")
    assert content["profile"]["id"] == "a1"
    assert (shown["status"], shown["snapshotCount"], shown["serverId"]) == ("generated", 1, "alpha")
    assert len(shown["sha256"]) == 64
    assert shown["generatedAt"].endswith("Z")
    assert shown == listed


async def test_somebody_elses_snapshot_and_none_look_the_same(client: httpx.AsyncClient) -> None:
    mine = (await client.post(PATH)).json()["id"]

    foreign = await client.get(f"{PATH}/{mine}", headers=bearer("a2"))
    unknown = await client.get(f"{PATH}/unknown", headers=bearer("a2"))

    odd = await client.get(f"{PATH}/%00", headers=bearer("a2"))

    assert_problem(foreign, 404, "not_found")
    assert odd.json() == unknown.json()
    assert foreign.json() == unknown.json()
    assert (await client.get(PATH, headers=bearer("a2"))).json() == {"items": [], "nextCursor": None}


async def test_few_are_pending_at_once_and_one_that_is_generated_makes_room(
    client: httpx.AsyncClient, enqueued: list[str], refused: list[str], replica: Replica
) -> None:
    accepted = [(await client.post(PATH)).json()["id"] for _ in range(MAX_OWED)]

    too_many = await client.post(PATH)
    other = await client.post(PATH, headers=bearer("a2"))
    await replica.attempt(accepted[0])
    again = await client.post(PATH)

    assert_problem(too_many, 409, "conflict")
    assert "pending" in too_many.json()["detail"]
    assert (other.status_code, again.status_code) == (202, 202)
    assert refused == ["snapshots_pending"]
    assert len(enqueued) == MAX_OWED + 2


async def test_requests_at_one_moment_on_two_replicas_are_not_more_than_may_be_pending(
    database_url: str, replica: Replica, hub: RecordingHub, clock: Clock
) -> None:
    async with another_replica(database_url, hub, clock, "beta") as beta:
        requests = [which.service.request("a1") for which in (replica, beta) for _ in range(MAX_OWED)]

        outcomes = await asyncio.gather(*requests, return_exceptions=True)

    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == MAX_OWED
    assert sum(isinstance(outcome, Snapshot) for outcome in outcomes) == MAX_OWED


async def test_an_account_requests_so_many_a_minute(engine: AsyncEngine, clock: Clock) -> None:
    async def enqueue(_connection: AsyncConnection, _snapshot_id: str) -> None: ...

    service = snapshots.Service(engine, profile, enqueue, clock)
    async with client_of(snapshots.routes(service, gate_of(), Policy("snapshots", 2, 60))) as client:
        answers = [await client.post(PATH, headers=bearer("a1")) for _ in range(3)]
        other = await client.post(PATH, headers=bearer("a2"))
        shown = await client.get(PATH, headers=bearer("a1"))

    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert (other.status_code, shown.status_code) == (202, 200)


async def test_the_newest_are_kept(
    client: httpx.AsyncClient, replica: Replica, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "KEPT", 3)
    await client.post(PATH, headers=bearer("a2"))
    counts = []
    for _ in range(5):
        clock.advance(1)
        await replica.attempt((await client.post(PATH)).json()["id"])
        counts.append([item["snapshotCount"] for item in (await client.get(PATH)).json()["items"]])

    assert counts[-1] == [5, 4, 3]
    assert len((await client.get(PATH, headers=bearer("a2"))).json()["items"]) == 1


async def test_an_identity_without_account_gets_no_snapshot(client: httpx.AsyncClient, enqueued: list[str]) -> None:
    assert_problem(await client.post(PATH, headers=bearer("nobody")), 404, "not_found")
    assert enqueued == []


@pytest.mark.parametrize(("method", "path"), [("POST", PATH), ("GET", PATH), ("GET", PATH + "/x")])
async def test_nobody_gets_anything(client: httpx.AsyncClient, method: str, path: str) -> None:
    del client.headers["Authorization"]

    assert_problem(await client.request(method, path), 401, "unauthenticated")


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code", "field"),
    [
        (b'{"kind": 1}', "application/json", 422, "invalid", "kind"),
        (b"[]", "application/json", 422, "invalid", "body"),
        (b"{", "application/json", 422, "invalid", "body"),
        (b" ", "application/json", 422, "invalid", "body"),
        (b"{}", "text/plain", 415, "unsupported_media_type", "Content-Type"),
        (b"x" * 1025, "application/json", 413, "too_large", "body"),
    ],
)
async def test_malformed_requests_are_refused(
    client: httpx.AsyncClient, enqueued: list[str], body: bytes, content_type: str, status: int, code: str, field: str
) -> None:
    response = await client.post(PATH, content=body, headers={"Content-Type": content_type})

    assert_problem(response, status, code, field)
    assert enqueued == []


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("limit=0", ["limit"]),
        ("limit=x", ["limit"]),
        ("cursor=x", ["cursor"]),
        ("offset=1&page=2", ["offset", "page"]),
    ],
)
async def test_malformed_queries_are_refused(client: httpx.AsyncClient, query: str, fields: list[str]) -> None:
    assert_problem(await client.get(f"{PATH}?{query}"), 422, "invalid", *fields)


async def test_other_methods_are_refused(client: httpx.AsyncClient) -> None:
    refused = await client.delete(PATH)

    assert_problem(refused, 405, "method_not_allowed")
    assert set(refused.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}


async def test_pages_neither_skip_nor_repeat_while_snapshots_are_added(
    client: httpx.AsyncClient, clock: Clock, replica: Replica
) -> None:
    async def request() -> str:
        snapshot_id: str = (await client.post(PATH)).json()["id"]
        await replica.attempt(snapshot_id)  # or too many would be pending
        return snapshot_id

    at_once = {await request() for _ in range(5)}  # the same time for all: the id decides
    clock.advance(1)
    later = [await request() for _ in range(2)]
    await client.post(PATH, headers=bearer("a2"))

    seen: list[str] = []
    query = "limit=3"
    for expected in (3, 3, 1):
        page = (await client.get(f"{PATH}?{query}")).json()
        assert len(page["items"]) == expected
        seen += [item["id"] for item in page["items"]]
        clock.advance(1)
        await request()  # newer than anything seen
        query = f"limit=3&cursor={page['nextCursor']}"

    assert page["nextCursor"] is None
    assert seen[0] in later
    assert set(seen[2:]) == at_once
    assert sorted(seen) == sorted([*at_once, *later])


async def test_a_full_last_page_has_no_next(client: httpx.AsyncClient) -> None:
    for _ in range(2):
        await client.post(PATH)

    assert (await client.get(f"{PATH}?limit=2")).json()["nextCursor"] is None
