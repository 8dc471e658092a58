"""Declared types on a real replica: refusals on both paths of a publish, the descriptions, and a wrong file."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from harness.replicas import ROOT, Reader, Replica, replica, token_for_topics
from harness.servers import Redis
from harness.waiting import PATIENCE_S, until_sync

from allim.catalogue import load
from tests.catalogue.test_documents import OFFICIAL, compile_strictly
from tests.catalogue.test_file import ORDERS
from tests.http.apps import assert_problem

pytestmark = pytest.mark.anyio

ORDER = ("orders:0042", "orders.shipped")
GOOD: dict[str, Any] = {
    "orderId": "0042",
    "total": {"amount": 1, "currency": "EUR"},
    "lines": [{"sku": "A", "count": 1}],
}
WAYS = [pytest.param({}, id="fast path"), pytest.param({"x_other": "1"}, id="regular path")]
"""A header that the fast path does not know sends a request on the regular path."""


@pytest.fixture(scope="module")
def served() -> Iterator[Replica]:
    with replica(catalogue=ORDERS) as running:
        yield running


# -- Publish ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("event", "field", "message"),
    [
        ((*ORDER, GOOD | {"total": {"amount": -1, "currency": "EUR"}}), "data.total.amount", "must be at least 0"),
        ((*ORDER, GOOD | {"total": 1}), "data.total", "must be an object"),
        ((*ORDER, GOOD | {"lines": [GOOD["lines"][0], {"sku": "B"}]}), "data.lines[1].count", "is required"),
        ((*ORDER, GOOD | {"more": 1}), "data.more", "is not a known field"),
        (("user:1", "orders.shipped", GOOD), "topic", "must have the form orders:{orderId}, which is declared"),
        (("user:1", "snapshots.progress", {"snapshotId": "x", "step": 9, "of": 3}), "data.step", "is not allowed"),
    ],
)
def test_what_does_not_fit_is_refused_and_named(
    served: Replica, way: dict[str, str], event: tuple[str, str, object], field: str, message: str
) -> None:
    answer = served.publish(event, **way)

    assert_problem(answer, 422, "invalid", field)
    assert answer.json()["errors"][0]["message"].startswith(message)
    assert answer.json()["detail"].startswith(f"{field}: {message}")


@pytest.mark.parametrize("way", WAYS)
async def test_of_a_batch_with_one_wrong_event_nothing_is_published(served: Replica, way: dict[str, str]) -> None:
    async with await Reader.open(
        served.url, token_for_topics("7", "orders:0042"), query="?topics=orders:0042"
    ) as stream:
        await stream.next("stream.open")
        refused = served.publish(
            (*ORDER, GOOD), ("orders:0042", "undeclared", 1), (*ORDER, GOOD | {"total": 1}), **way
        )
        assert_problem(refused, 422, "invalid", "[2].data.total")
        last = GOOD | {"shippedAt": "2026-01-31T09:30:00Z"}
        accepted = served.publish((*ORDER, last), ("orders:0042", "undeclared", {"any": "thing"}), **way)
        heard = [await stream.next("orders.shipped"), await stream.next("undeclared")]

    assert accepted.status_code == 202
    assert [message.data for message in heard] == [last, {"any": "thing"}]
    assert [message.id for message in heard] == accepted.json()["ids"]


@pytest.mark.parametrize("way", WAYS)
def test_a_type_that_is_not_declared_takes_any_data_and_topic(served: Replica, way: dict[str, str]) -> None:
    events: list[tuple[str, str, object]] = [
        ("user:1", "orders.shippe", 1),
        ("system", "orders.shipped.more", None),
        ("x:y", "orders", []),
    ]

    assert [served.publish(event, **way).status_code for event in events] == [202, 202, 202]


# -- Descriptions ----------------------------------------------------------------------------------------------


def test_the_catalogue_lists_types_of_domains_of_the_file_and_control_events(served: Replica) -> None:
    answer = httpx.get(f"{served.url}/api/catalogue.json")
    types = {each["type"]: each for each in answer.json()["types"]}

    assert answer.headers["cache-control"] == "no-cache"
    assert types["orders.shipped"] == load([], ORDERS).document()["types"][0]
    assert types["snapshots.generated"]["topic"] == "user:{id}"
    control = {name for name, each in types.items() if each["control"]}
    assert control == {"stream.open", "heartbeat", "stream.gap", "stream.expiring", "stream.close"}


async def test_a_real_stream_opens_as_the_catalogue_says(served: Replica) -> None:
    types = {each["type"]: each for each in httpx.get(f"{served.url}/api/catalogue.json").json()["types"]}
    async with await Reader.open(served.url, token_for_topics("7")) as stream:
        opened = await stream.next("stream.open")

    jsonschema_rs.validate(types["stream.open"]["data"], opened.data)


def test_asyncapi_is_valid_by_its_official_schema(served: Replica) -> None:
    document = httpx.get(f"{served.url}/api/asyncapi.json").json()

    official = jsonschema_rs.Draft7Validator(json.loads(OFFICIAL.read_text()), offline=True)
    assert [str(error) for error in official.iter_errors(document)] == []
    assert "orders.shipped" in document["components"]["messages"]


def test_openapi_describes_the_events_of_a_stream(served: Replica) -> None:
    document = httpx.get(f"{served.url}/api/openapi.json").json()
    schemathesis.openapi.from_dict(document).validate()
    content = document["paths"]["/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]
    data = {
        form["title"]: form["properties"]["data"]["contentSchema"]["$ref"]
        for form in content["itemSchema"]["oneOf"]
        if "data" in form["properties"]
    }

    assert document["openapi"] == "3.2.0"
    assert data["orders.shipped"] == "#/components/schemas/orders.shipped"
    assert data["stream.open"] == "#/components/schemas/stream.open"
    money = document["components"]["schemas"]["orders.shipped"]["properties"]["total"]["$ref"]
    assert money.removeprefix("#/components/schemas/") in document["components"]["schemas"]


def test_a_stream_of_a_replica_fits_its_description(served: Replica) -> None:
    document = httpx.get(f"{served.url}/api/openapi.json").json()
    content = document["paths"]["/events"]["get"]["responses"]["200"]["content"]["text/event-stream"]
    schema = {**content["itemSchema"], "components": document["components"]}
    validator = jsonschema_rs.Draft202012Validator(schema, offline=True)

    assert validator.is_valid({"event": "orders.shipped", "data": "{}", "id": "1-0"})
    assert validator.is_valid({"event": "not.declared", "data": "1", "id": "1-0"})
    assert not validator.is_valid({"event": "orders.shipped", "id": "1-0"})


def test_the_command_prints_strict_typescript(served: Replica, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "allim", "types", served.url]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    (tmp_path / "events.ts").write_text(ended.stdout)

    assert '"orders.shipped": OrdersShipped;' in ended.stdout
    assert '"orders.shipped": `orders:${string}`;' in ended.stdout
    assert compile_strictly(tmp_path) == ""


@pytest.mark.parametrize(("path", "words"), [("/none", "answers 404"), ("/api/docs?", "the answer is no catalogue")])
def test_the_command_says_why_there_are_no_types(served: Replica, path: str, words: str) -> None:
    command = [sys.executable, "-m", "allim", "types", served.url + path]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("allim: ")
    assert words in ended.stderr


# -- Start -----------------------------------------------------------------------------------------------------


def test_a_wrong_file_stops_the_start_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "events.yaml"
    path.write_text(ORDERS.read_text().replace("type: integer, minimum: 1", "type: integer, minimum: one"))
    command = [sys.executable, "-m", "allim", "serve", "--port", "0"]
    environ = {"ALLIM_CATALOGUE": str(path), "ALLIM_DATA_DIR": str(tmp_path / "data")}
    ended = subprocess.run(
        command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )

    field = "data.properties.lines.items.properties.count.minimum"
    assert ended.returncode == 2
    assert ended.stderr == f"allim: ALLIM_CATALOGUE: {path}: orders.shipped: {field}: must be a number\n"


def test_replicas_with_different_files_say_so(redis: Redis, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(ORDERS.read_text().replace("maxLength: 200", "maxLength: 100"))
    shared: dict[str, Any] = {"redis_url": redis.url, "redis_prefix": "catalogue-differs", "pulse_s": 0.5}
    with replica(catalogue=ORDERS, **shared), replica(catalogue=other, **shared) as second:

        def told() -> bool:
            return "ALLIM_CATALOGUE" in httpx.get(f"{second.url}/readyz").json()["checks"]["redis"]

        until_sync(told, PATIENCE_S, what="the difference is told")
