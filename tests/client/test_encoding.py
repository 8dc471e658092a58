"""What a publish takes as data, and how it names what it does not take."""

import dataclasses
import json
import math
from collections import deque
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from typing import NamedTuple
from uuid import UUID

import pytest
from harness.replicas import PUBLISH_KEY, Replica
from pydantic import BaseModel, ConfigDict, computed_field
from pydantic.alias_generators import to_camel

from allim.client import Publisher
from tests.client.scripted import ACCEPTED, scripted

ID = UUID("12345678-1234-5678-1234-567812345678")
NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


class Colour(Enum):
    RED = "red"


class Size(StrEnum):
    L = "large"


@dataclasses.dataclass
class Line:
    item: UUID
    price: Decimal


class Order(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    order_id: UUID
    placed_at: datetime
    lines: list[Line]
    total: float = 0.0

    @computed_field
    def ten_times(self) -> float:
        return self.total * 10


class Point(NamedTuple):
    x: int
    y: int


CASES: dict[str, tuple[object, object]] = {
    "an aware datetime": (NOON, "2026-01-31T12:00:00Z"),
    "another zone": (NOON.astimezone(timezone(timedelta(hours=9))), "2026-01-31T21:00:00+09:00"),
    "a naive datetime": (datetime(2026, 1, 31, 12), "2026-01-31T12:00:00"),
    "a date": (date(2026, 1, 31), "2026-01-31"),
    "a time": (time(9, 30), "09:30:00"),
    "a timedelta": (timedelta(hours=1, seconds=2), "PT1H2S"),
    "a UUID": (ID, str(ID)),
    "a Decimal": (Decimal("10.10"), "10.10"),
    "an Enum": (Colour.RED, "red"),
    "a StrEnum": (Size.L, "large"),
    "a dataclass": (Line(ID, Decimal("1.0")), {"item": str(ID), "price": "1.0"}),
    "a model": (
        Order(order_id=ID, placed_at=NOON, lines=[Line(ID, Decimal(1))], total=3.0),
        {
            "orderId": str(ID),
            "placedAt": "2026-01-31T12:00:00Z",
            "lines": [{"item": str(ID), "price": "1"}],
            "total": 3.0,
            "tenTimes": 30.0,
        },
    ),
    "a named tuple": (Point(1, 2), [1, 2]),
    "a set": ({ID}, [str(ID)]),
    "a deque": (deque([NOON]), ["2026-01-31T12:00:00Z"]),
    "containers of them": ({"a": [{"b": (Decimal("0.1"), Colour.RED)}]}, {"a": [{"b": ["0.1", "red"]}]}),
    "keys": ({ID: 1, date(2026, 1, 31): 2, 7: 3}, {str(ID): 1, "2026-01-31": 2, "7": 3}),
    "bytes of text": ("ü".encode(), "ü"),
    "a large number": (2**100, 2**100),
    "text of all kinds": ("é😀\u2028 NaN, Infinity", "é😀\u2028 NaN, Infinity"),
    "a text that is no number": (["NaN", {"a": "-Infinity"}], ["NaN", {"a": "-Infinity"}]),
    "nothing": (None, None),
}


@pytest.mark.parametrize(("data", "sent"), CASES.values(), ids=CASES)
def test_data_is_written_as_pydantic_writes_it(data: object, sent: object) -> None:
    with scripted(ACCEPTED) as server, Publisher(server.url, "k") as publisher:
        publisher.publish("a", "t", data)

    assert json.loads(server.asked[0].body)["data"] == sent


circle: list[object] = []
circle.append(circle)
deep: object = 1
for _ in range(300):
    deep = [deep]

FAULTS: dict[str, tuple[object, type[Exception], str]] = {
    "NaN": (math.nan, ValueError, r"^data: nan is no number in JSON$"),
    "infinity": ({"a": [1.0, {"b": math.inf}]}, ValueError, r"^data\.a\[1\]\.b: inf is no number in JSON$"),
    "a Decimal": ({"price": Decimal("NaN")}, ValueError, r"^data\.price: NaN is no number in JSON$"),
    "a Decimal of a dataclass": ([Line(ID, Decimal("-Infinity"))], ValueError, r"^data\[0\]\.price: -Infinity is no"),
    "a model": (
        Order(order_id=ID, placed_at=NOON, lines=[], total=math.nan), ValueError, r"^data\.total: nan is no number",
    ),
    "what a model computes": (
        {"x": Order(order_id=ID, placed_at=NOON, lines=[], total=1e308)}, ValueError, r"^data\.x\.tenTimes: inf",
    ),
    "an object": ({"a": {"b": object()}}, TypeError, r"^data\.a\.b: a value of type object cannot be written as "),
    "a function": ([len], TypeError, r"^data\[0\]: a value of type builtin_function_or_method cannot"),
    "a key": ({"a": {object(): 1}}, TypeError, r"^data\.a: a value of type dict cannot be written"),
    "bytes that are no text": ({"a": b"\xff"}, TypeError, r"^data\.a: a value of type bytes cannot"),
    "half a surrogate pair": ({"a": "\ud800"}, TypeError, r"^data\.a: a value of type str cannot"),
    "itself": (circle, ValueError, r"^data\[0\]\[0\].*: is nested more than 64 levels deep, or holds itself$"),
    "deeper than JSON is read": (deep, ValueError, r"is nested more than 64 levels deep"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "kind", "told"), FAULTS.values(), ids=FAULTS)
def test_what_is_no_json_is_named_and_never_sent(data: object, kind: type[Exception], told: str) -> None:
    with scripted(ACCEPTED) as server, Publisher(server.url, "k") as publisher:
        with pytest.raises(kind, match=told):
            publisher.publish("a", "t", data)
        with pytest.raises(kind, match=told.replace("^data", r"^\[1\]\.data")):
            publisher.publish_batch([("a", "t", 1), ("a", "t", data)])

    assert server.asked == []


def test_the_real_server_takes_them(server: Replica) -> None:
    order = Order(order_id=ID, placed_at=NOON, lines=[Line(ID, Decimal("1.10"))])

    with Publisher(server.url, PUBLISH_KEY) as publisher:
        first = publisher.publish("user:1", "orders.placed", order, idempotency_key="an-order")
        again = publisher.publish("user:1", "orders.placed", order.model_copy(), idempotency_key="an-order")

    assert first == again
