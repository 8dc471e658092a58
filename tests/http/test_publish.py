import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from harness.streams import hub_settings

from allim.access.publishers import Publisher, Publishers, SettingsKeys
from allim.access.rates import Policy
from allim.brokers.memory import MemoryBroker, MemoryLedger
from allim.errors import Unavailable
from allim.http.publish import MAX_BODY_BYTES, routes
from allim.hub import ZERO, Hub, Publication
from allim.identity import user_topic
from allim.telemetry import Metrics
from tests.access.gates import AMPLE, ROOMY, rates_of
from tests.http.apps import assert_problem, client_of

pytestmark = pytest.mark.anyio

GOOD = {"topic": "user:1", "type": "t", "data": 1}
SHOP = Publisher("shop", ("user:*", "news"), ("t", "orders.*"))


class Server:
    """The route over a hub with a broker in memory."""

    def __init__(self, limit: Policy = AMPLE, broker: MemoryBroker | None = None, memory: Policy = ROOMY) -> None:
        ledger = MemoryLedger()
        self.broker = broker or MemoryBroker(history_events=2000, ledger=ledger)
        hub = Hub(self.broker, ledger, Metrics(), hub_settings(max_event_bytes=1000))
        keys = SettingsKeys(["orders:key-1", "billing:key-2", "shop:key-3"], {"shop": SHOP})
        self.client = client_of(routes(hub, Publishers(keys), rates_of(ledger), limit, lambda: memory))

    async def post(self, body: Any, key: str = "key-1", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post("/api/publish", json=body, headers={"authorization": f"Bearer {key}", **named})

    async def stored(self, topic: str = "user:1") -> list[str]:
        page = await self.broker.read([topic], ZERO, 2000, 1 << 20)
        return [str(event.position) for event in page.events]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    async with server.client:
        yield server


async def test_one_event_gives_its_id(server: Server) -> None:
    response = await server.post(GOOD)

    assert response.status_code == 202
    assert response.json() == {"id": (await server.stored())[0], "durability": "memory"}


async def test_a_batch_gives_an_id_each_in_its_order(server: Server) -> None:
    response = await server.post([GOOD, {**GOOD, "topic": "a"}, GOOD])

    assert response.status_code == 202
    ids = response.json()["ids"]
    assert await server.stored() == [ids[0], ids[2]]
    assert await server.stored("a") == [ids[1]]


@pytest.mark.parametrize("subject", ["auth0|42", "min@example.org", "q83v/+8=", "김 지우", "🦉" * 255, "|" * 255])
async def test_the_topic_of_any_user_can_be_published_to(server: Server, subject: str) -> None:
    response = await server.post({**GOOD, "topic": user_topic(subject)})

    assert response.status_code == 202
    assert await server.stored(user_topic(subject)) == [response.json()["id"]]


async def test_a_batch_of_one_is_still_a_batch(server: Server) -> None:
    assert list((await server.post([GOOD])).json()) == ["ids", "durability"]


@pytest.mark.parametrize("data", [None, False, 0, "", [], {}, {"a": [1, {"b": None}]}, "é\u2028\r\n\0"])
async def test_any_json_is_data(server: Server, data: Any) -> None:
    assert (await server.post({**GOOD, "data": data})).status_code == 202


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["topic", "type", "data"]),
        ("text", ["body"]),
        (None, ["body"]),
        (1, ["body"]),
        ([], ["body"]),
        ({**GOOD, "extra": 1}, ["extra"]),
        ({"topic": "a", "type": "t"}, ["data"]),
        ({**GOOD, "topic": 1}, ["topic"]),
        ({**GOOD, "topic": "A"}, ["topic"]),
        ({**GOOD, "topic": "a\r\nb"}, ["topic"]),
        ({**GOOD, "topic": "a" * 65}, ["topic"]),
        ({**GOOD, "topic": "a:" + "b" * 3200}, ["topic"]),
        ({**GOOD, "topic": "user:auth0%7c42"}, ["topic"]),
        ({**GOOD, "topic": "user:auth0|42"}, ["topic"]),
        ({**GOOD, "type": None}, ["type"]),
        ({**GOOD, "type": "stream.open"}, ["type"]),
        ({**GOOD, "type": "heartbeat"}, ["type"]),
        ({**GOOD, "type": "a\ndata: x"}, ["type"]),
        ([GOOD, GOOD, GOOD, {**GOOD, "topic": "A"}], ["[3].topic"]),
        ([GOOD, {**GOOD, "type": "T"}], ["[1].type"]),
        ([{**GOOD, "topic": "T"}, {"topic": "a"}], ["[0].topic"]),
        ([{**GOOD, "type": "T"}, "text"], ["[0].type"]),
        ([GOOD, {"topic": "a"}], ["[1].type", "[1].data"]),
        ([GOOD, "text"], ["[1]"]),
        ([GOOD, [GOOD]], ["[1]"]),
        ([GOOD, {**GOOD, "extra": 1}], ["[1].extra"]),
        ([GOOD] * 1001, ["body"]),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_stored(server: Server, body: Any, fields: list[str]) -> None:
    assert_problem(await server.post(body), 422, "invalid", *fields)
    assert await server.stored() == []


@pytest.mark.parametrize(
    "content", [b"", b" ", b"{", b"\xff", b'{"a": NaN}', b'{"topic": "a", "topic": "b"}', b"[" * 70 + b"]" * 70]
)
async def test_what_is_no_json_is_a_wrong_body(server: Server, content: bytes) -> None:
    headers = {"authorization": "Bearer key-1", "content-type": "application/json"}

    response = await server.client.post("/api/publish", content=content, headers=headers)

    assert_problem(response, 422, "invalid", "body")


@pytest.mark.parametrize(
    ("body", "field"), [({**GOOD, "data": "x" * 1000}, "data"), ([GOOD, {**GOOD, "data": "x" * 1000}], "[1].data")]
)
async def test_an_event_over_the_limit_is_named_and_nothing_is_stored(server: Server, body: Any, field: str) -> None:
    assert_problem(await server.post(body), 413, "too_large", field)
    assert await server.stored() == []


async def test_a_body_over_the_limit_is_refused(server: Server) -> None:
    assert_problem(await server.post({**GOOD, "data": "x" * MAX_BODY_BYTES}), 413, "too_large", "body")


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic key-1", "key-1"])
async def test_who_has_no_key_is_refused_before_the_body_is_looked_at(
    server: Server, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"authorization": authorization}

    response = await server.client.post("/api/publish", content=b"{", headers=headers)

    assert_problem(response, 401, "unauthenticated")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({**GOOD, "topic": "system"}, ["topic"]),
        ({**GOOD, "topic": "user"}, ["topic"]),
        ({**GOOD, "type": "billing.paid"}, ["type"]),
        ({**GOOD, "topic": "system", "type": "billing.paid"}, ["topic", "type"]),
        ([GOOD, GOOD, GOOD, {**GOOD, "topic": "system"}, {**GOOD, "type": "x"}], ["[3].topic"]),
        ([{**GOOD, "type": "orders"}], ["[0].type"]),
    ],
)
async def test_what_the_key_may_not_publish_is_named_and_nothing_is_stored(
    server: Server, body: Any, fields: list[str]
) -> None:
    assert_problem(await server.post(body, key="key-3"), 403, "forbidden", *fields)
    assert await server.stored() == []
    assert await server.stored("system") == []


async def test_what_the_key_may_publish_is_stored(server: Server) -> None:
    allowed = [GOOD, {**GOOD, "type": "orders.shipped"}, {**GOOD, "topic": "news"}]

    assert (await server.post(allowed, key="key-3")).status_code == 202
    assert len(await server.stored()) == 2


async def test_a_refusal_tells_nothing_about_what_exists(server: Server) -> None:
    await server.post({**GOOD, "topic": "room:known"})

    known = await server.post({**GOOD, "topic": "room:known"}, key="key-3")
    unknown = await server.post({**GOOD, "topic": "room:unknown"}, key="key-3")

    assert known.status_code == 403
    assert known.content == unknown.content


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({**GOOD, "topic": "System"}, ["topic"]),
        ({**GOOD, "topic": "system", "data": 1, "extra": 1}, ["extra"]),
        ([{**GOOD, "topic": "system"}, {**GOOD, "topic": "user:\n"}], ["[1].topic"]),
    ],
)
async def test_the_body_is_judged_before_the_permission(server: Server, body: Any, fields: list[str]) -> None:
    assert_problem(await server.post(body, key="key-3"), 422, "invalid", *fields)


async def test_a_refused_publish_may_be_mended_under_its_idempotency_key(server: Server) -> None:
    await server.post({**GOOD, "topic": "system"}, key="key-3", idempotency_key="k")

    assert (await server.post(GOOD, key="key-3", idempotency_key="k")).status_code == 202


async def test_the_same_key_and_body_is_one_event(server: Server) -> None:
    first = await server.post(GOOD, idempotency_key="k")
    again = await server.post(GOOD, idempotency_key="k")

    assert first.json() == again.json()
    assert again.status_code == 202
    assert len(await server.stored()) == 1


async def test_the_same_key_with_another_body_is_a_conflict(server: Server) -> None:
    await server.post(GOOD, idempotency_key="k")

    response = await server.post({**GOOD, "data": 2}, idempotency_key="k")

    assert_problem(response, 409, "conflict", "Idempotency-Key")
    assert len(await server.stored()) == 1


async def test_publishers_do_not_share_their_keys(server: Server) -> None:
    await server.post(GOOD, idempotency_key="k")
    await server.post(GOOD, key="key-2", idempotency_key="k")

    assert len(await server.stored()) == 2


async def test_a_batch_that_was_refused_may_be_mended_under_its_key(server: Server) -> None:
    await server.post([GOOD, {**GOOD, "topic": "A"}], idempotency_key="k")

    assert (await server.post([GOOD, GOOD], idempotency_key="k")).status_code == 202
    assert len(await server.stored()) == 2


@pytest.mark.parametrize("key", ["", " ", "a b", "a\tb", "k" * 257, "\xfc"])
async def test_a_key_of_another_form_is_refused(server: Server, key: str) -> None:
    headers = [(b"authorization", b"Bearer key-1"), (b"idempotency-key", key.encode("latin-1"))]

    response = await server.client.post("/api/publish", json=GOOD, headers=headers)

    assert_problem(response, 422, "invalid", "Idempotency-Key")


async def test_a_store_that_does_not_confirm_is_unavailable_and_retryable() -> None:
    class Down(MemoryBroker):
        async def publish(self, publication: Publication) -> Any:
            await asyncio.sleep(0)
            raise Unavailable("Redis does not answer")

    server = Server(broker=Down())
    async with server.client:
        response = await server.post(GOOD)

    assert_problem(response, 503, "unavailable")
    assert response.json()["retryable"] is True
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("content", "status", "cost"),
    [
        (b"{", 422, 1),
        (b"[" + b"[]," * 100_000 + b"1]", 422, 1),
        (b'{"topic":"a"}', 422, 1),
        (b"[1,2,3]", 422, 3),
        (b"[]", 422, 1),
        (b" " * (MAX_BODY_BYTES + 1), 413, 1),
        (b'{"topic":"user:1","type":"t","data":"' + b"x" * 1000 + b'"}', 413, 1),
        (b'[{"topic":"user:1","type":"t","data":1},{"topic":"board","type":"t","data":1}]', 403, 2),
    ],
)
async def test_a_refused_body_costs_the_rate(content: bytes, status: int, cost: int) -> None:
    server = Server(Policy("publish", 4, 60))
    headers = {"authorization": "Bearer key-3", "content-type": "application/json"}
    async with server.client:
        first = await server.client.post("/api/publish", content=content, headers=headers)
        again = [await server.client.post("/api/publish", content=content, headers=headers) for _ in range(4 // cost)]

    assert first.status_code == status
    assert [answer.status_code for answer in again] == [status] * (4 // cost - 1) + [429]


async def test_a_refused_content_type_and_key_cost_the_rate() -> None:
    server = Server(Policy("publish", 2, 60))
    async with server.client:
        text = await server.post(GOOD, content_type="text/plain")
        key = await server.post(GOOD, idempotency_key="a b")
        good = await server.post(GOOD)

    assert [text.status_code, key.status_code, good.status_code] == [415, 422, 429]


async def test_a_publisher_over_its_memory_is_refused_and_stores_nothing() -> None:
    server = Server(memory=Policy("publish-memory", 10_000, 3600))
    async with server.client:
        first, second, third = [await server.post({**GOOD, "topic": f"a:{number}"}) for number in range(3)]
        other = await server.post({**GOOD, "topic": "a:3"}, key="key-2")

    assert [answer.status_code for answer in (first, second, third, other)] == [202, 202, 429, 202]
    assert int(third.headers["retry-after"]) > 1000
    assert await server.stored("a:2") == []
