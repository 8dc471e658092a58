"""Event types and catalogues in memory: forms of topics, checks, names given twice, control events."""

import json
from datetime import datetime
from typing import Any

import pytest
from harness.streams import hub_settings
from pydantic import TypeAdapter

from allim.brokers.memory import MemoryBroker, MemoryLedger
from allim.catalogue import Catalogue, EventData, EventType, load
from allim.catalogue.event_type import topic_pattern
from allim.client import Parser
from allim.errors import Invalid, Unusable
from allim.hub import ZERO, CloseReason, Draft, Hub, Opening, Position
from allim.hub.resume import Reset, Verdict
from allim.telemetry import Metrics
from allim.transports.control_events import CONTROL_EVENTS
from allim.transports.sse import frames

pytestmark = pytest.mark.anyio


class Shipment(EventData):
    order_id: str
    shipped_at: datetime | None = None


def shipped(**changes: Any) -> EventType:
    declared: dict[str, Any] = {
        "name": "orders.shipped",
        "model": Shipment,
        "topic": "orders:{orderId}",
        "summary": "An order has left.",
        "example": {"orderId": "1"},
    }
    return EventType(**{**declared, **changes})


# -- Topics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "fit", "other"),
    [
        ("system", ["system"], ["system:1", "systems"]),
        (
            "user:{id}",
            ["user:42", "user:a.b~c", "user:auth0%7C7"],
            ["user", "user:auth0|7", "user:auth0%7", "user:", "users:42", "user:a/b"],
        ),
        ("orders:{orderId}.{line}", ["orders:7.1"], ["orders:7", "orders:.", "orders:7-1"]),
        ("orders:all", ["orders:all"], ["orders:al1", "orders:"]),
        (
            "a:{x}{y}.{z}.end",
            ["a:12.3.end", "a:1%2E.3.end", "a:....end.end"],
            ["a:1.3.end", "a:12..end", "a:12.3.end."],
        ),
    ],
)
def test_a_topic_fits_its_form(form: str, fit: list[str], other: list[str]) -> None:
    pattern = topic_pattern(form)

    assert [topic for topic in fit if not pattern.fullmatch(topic)] == []
    assert [topic for topic in other if pattern.fullmatch(topic)] == []


def test_a_form_with_many_places_is_compared_in_linear_time() -> None:
    pattern = topic_pattern("a:{a}.{b}.{c}.{d}.{e}.{f}.{g}.end")

    assert pattern.fullmatch("a:" + "." * 1016 + ".end")
    assert not pattern.fullmatch("a:" + "." * 1020)  # with each end of each place tried, for years


@pytest.mark.parametrize("form", ["", "User:{id}", "user:", "user:{}", "user:{id", "user:{I d}", "{kind}:1", "a:b:c"])
def test_what_is_no_form_of_a_topic_is_refused(form: str) -> None:
    with pytest.raises(Unusable, match=r"^orders\.shipped: topic: must look like"):
        Catalogue([shipped(topic=form)])


# -- Catalogues ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"name": "Orders"}, "Orders: type: must match"),
        ({"name": "stream.mine"}, "stream.mine: type: `stream.*` and `heartbeat` are reserved"),
        ({"example": {}}, "orders.shipped: example.orderId: is required"),
    ],
)
def test_a_wrong_type_is_named(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(Unusable) as refused:
        Catalogue([shipped(**changes)])

    assert str(refused.value).startswith(line)


def test_a_name_is_declared_once() -> None:
    with pytest.raises(Unusable, match=r"^orders\.shipped: is declared already$"):
        Catalogue([shipped(), shipped()])


def test_control_events_are_in_the_document_and_are_not_checked() -> None:
    catalogue = Catalogue([shipped(), shipped(name="stream.mine", topic=None)])

    assert {each["type"]: each["control"] for each in catalogue.document()["types"]} == {
        "orders.shipped": False,
        "stream.mine": True,
    }
    assert list(catalogue.checks) == ["orders.shipped"]


def test_without_a_file_there_is_no_digest() -> None:
    assert load([shipped()], None).digest == ""


# -- Checks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic", "data", "fields"),
    [
        ("user:1", {"orderId": "1"}, ["topic"]),
        ("orders:1", {}, ["data.orderId"]),
        ("orders:1", {"orderId": 1, "more": 2}, ["data.orderId", "data.more"]),
        ("orders:1", {"orderId": "1", "shippedAt": "yesterday"}, ["data.shippedAt"]),
        ("orders:1", {"order_id": "1"}, ["data.orderId", "data.order_id"]),
        ("orders:1", [], ["data"]),
    ],
)
def test_what_does_not_fit_a_model_is_named(topic: str, data: object, fields: list[str]) -> None:
    check = Catalogue([shipped()]).checks["orders.shipped"]

    with pytest.raises(Invalid) as refused:
        check(Draft(topic, "orders.shipped", data))

    assert [field for field, _ in refused.value.fields] == fields


def test_a_model_is_compared_with_json_where_a_date_is_a_text() -> None:
    check = Catalogue([shipped()]).checks["orders.shipped"]

    check(Draft("orders:1", "orders.shipped", {"orderId": "1", "shippedAt": "2026-01-31T09:30:00Z"}))


async def test_the_hub_publishes_nothing_when_one_of_several_does_not_fit() -> None:
    ledger = MemoryLedger()
    broker = MemoryBroker(ledger=ledger)
    hub = Hub(broker, ledger, Metrics(), hub_settings(), checks=Catalogue([shipped()]).checks)
    good = Draft("orders:1", "orders.shipped", {"orderId": "1"})

    with pytest.raises(Invalid) as refused:
        await hub.publish([good, good._replace(data={"orderId": 2, "x": 3})], indexed=True)
    page = await broker.read(["orders:1"], ZERO, 10, 1 << 20)

    assert [field for field, _ in refused.value.fields] == ["[1].data.orderId", "[1].data.x"]
    assert refused.value.detail.count("[1].data.") == 2
    assert page.events == []
    assert len((await hub.publish([good, good._replace(type="orders.other", data=2)])).positions) == 2


# -- The types of allim itself ---------------------------------------------------------------------------------


def test_the_frames_that_a_stream_writes_are_the_declared_ones() -> None:
    verdict = Verdict("reset", (Reset("user:1", "trimmed"),), Position(1, 0))
    written = [
        frames.opening("s", "1", "replica", Opening(verdict, Position(1, 0), 3), 15, 2000),
        frames.opening("s", "1", "replica", Opening(verdict, Position(1, 0), 3), 0.5, 2000),
        frames.heartbeat(Position(1, 0)),
        frames.gap(["user:1"], "origin"),
        frames.expiring(59.5),
        *(frames.close(reason, 2000) for reason in CloseReason if reason.told),
    ]
    declared = {each.name: TypeAdapter(each.model) for each in CONTROL_EVENTS}
    messages = [message for frame in written for message in Parser().feed(frame)]

    assert len(messages) == len(written)
    assert {message.type for message in messages} == set(declared)
    for message in messages:
        declared[message.type].validate_json(json.dumps(message.data), strict=True)
