"""AsyncAPI and TypeScript of a catalogue: valid by AsyncAPI's own schema, and compiled by tsc."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from harness.replicas import ROOT

from allim.catalogue import Catalogue, EventType, load
from allim.catalogue.asyncapi import asyncapi
from allim.catalogue.typescript import declarations
from allim.domains.snapshots.events import EVENTS
from allim.transports.control_events import CONTROL_EVENTS
from tests.catalogue.test_file import ORDERS

NODE_MODULES = ROOT / "web" / "node_modules"
OFFICIAL = NODE_MODULES / "@asyncapi" / "specs" / "schemas" / "3.0.0.json"

# Every keyword that TypeScript has words for, and names that are hard to write.
HARD: dict[str, Any] = {
    "type": "object",
    "required": ["a-b", "pair", "tree"],
    "properties": {
        "a-b": {"type": ["integer", "null"], "description": "Ends */ a comment\nand goes on."},
        "pair": {
            "type": "array",
            "prefixItems": [{"type": "string"}, {"type": "number"}],
            "minItems": 2,
            "items": False,
        },
        "more": {"prefixItems": [{"const": 1}], "items": {"enum": ["x", None]}, "type": "array"},
        "map": {"type": "object", "additionalProperties": {"type": "number"}},
        "any": True,
        "none": False,
        "both": {"allOf": [{"$ref": "#/$defs/Named"}, {"type": "object", "properties": {"z": {"type": "boolean"}}}]},
        "either": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": ["string", "number"]}}]},
        "tree": {"$ref": "#/$defs/Tree"},
        "self": {"$ref": "#"},
    },
    "$defs": {
        "Named": {"properties": {"name": {"type": "string"}}},
        "Tree": {"type": "object", "additionalProperties": {"$ref": "#/$defs/Tree"}},
    },
}
EXAMPLE = {"a-b": 1, "pair": ["x", 1], "tree": {}}
USE = """
import type { ControlType, Events, OrdersShipped, Topics } from "./events";

const shipped: OrdersShipped = {
  orderId: "0042", total: { amount: 1, currency: "EUR" }, lines: [{ sku: "A", count: 1 }],
};
const topic: Topics["orders.shipped"] = "orders:0042";
const control: ControlType = "stream.open";
function on<Type extends keyof Events>(type: Type, handler: (data: Events[Type]) => void): void {
  console.log(type, handler, topic, control, shipped);
}
on("stream.close", (data) => data.reconnect === true && data.reason === "kicked");
on("a.hard", (data) => data.pair[0].toUpperCase() + data.tree["x"] + data["a-b"]?.toFixed());
// @ts-expect-error it is no currency
const wrong: OrdersShipped["total"] = { amount: 1, currency: "XXX" };
// @ts-expect-error it is another form
const other: Topics["orders.shipped"] = "user:1";
// @ts-expect-error it is not declared
on("orders.lost", () => wrong + other);
"""


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    declared = [
        EventType("a.hard", HARD, "system", "Hard.", EXAMPLE),
        EventType("a-hard", {"type": "string"}, "user:{id}", "Its name is the same in TypeScript.", "x"),
        EventType("b", True, "user:id", "Any data, and a topic like another form.", None),
    ]
    from_file = load([], ORDERS).event_types.values()
    return Catalogue([*EVENTS, *CONTROL_EVENTS, *from_file, *declared])


# -- AsyncAPI --------------------------------------------------------------------------------------------------


def test_the_document_is_asyncapi_3(catalogue: Catalogue) -> None:
    official = jsonschema_rs.Draft7Validator(json.loads(OFFICIAL.read_text()), offline=True)
    document = asyncapi(catalogue)

    assert list(official.iter_errors(document)) == []
    assert not official.is_valid({**document, "channels": {"x": {"adress": "x"}}})


def test_every_form_of_topics_is_a_channel_with_its_messages(catalogue: Catalogue) -> None:
    document = asyncapi(catalogue)
    channels = {channel["address"]: channel for channel in document["channels"].values()}

    assert set(channels) == {each.topic for each in catalogue.event_types.values()}
    assert list(channels["orders:{orderId}"]["messages"]) == ["orders.shipped"]
    assert list(channels["orders:{orderId}"]["parameters"]) == ["orderId"]
    assert set(channels[None]["messages"]) == {each.name for each in CONTROL_EVENTS}
    assert len(document["operations"]) == len(channels)


def test_every_reference_leads_somewhere(catalogue: Catalogue) -> None:
    document = asyncapi(catalogue)
    references = {part["$ref"] for part in inside(document) if isinstance(part.get("$ref"), str)}

    assert {"#/components/schemas/orders.shipped.Money", "#/components/schemas/a.hard"} <= references
    for reference in references:
        place: Any = document
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]


def test_a_tuple_is_written_as_draft_07_writes_it(catalogue: Catalogue) -> None:
    members = asyncapi(catalogue)["components"]["schemas"]["a.hard"]["properties"]

    assert members["pair"] == {
        "type": "array",
        "items": [{"type": "string"}, {"type": "number"}],
        "additionalItems": False,
        "minItems": 2,
    }


def inside(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from inside(child)


# -- TypeScript ------------------------------------------------------------------------------------------------


def compile_strictly(folder: Path) -> str:
    """Compile the files of a folder. Returns the output of tsc."""
    files = [str(path) for path in folder.glob("*.ts")]
    command = [str(NODE_MODULES / ".bin" / "tsc"), "--strict", "--noEmit", "--noUncheckedIndexedAccess", *files]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return ended.stdout + ended.stderr


def test_the_declarations_are_strict_typescript(catalogue: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "events.ts").write_text(declarations(catalogue.document()))
    (tmp_path / "use.ts").write_text(USE)

    assert compile_strictly(tmp_path) == ""


def test_two_names_that_are_one_in_typescript_get_a_number(catalogue: Catalogue) -> None:
    text = declarations(catalogue.document())

    assert '  "a.hard": AHard;' in text
    assert '  "a-hard": AHard2;' in text


def test_the_page_has_the_types_of_the_catalogue() -> None:
    """`allim types` of a replica without a file makes web/src/events/types.ts."""
    made = declarations(Catalogue([*EVENTS, *CONTROL_EVENTS]).document())

    assert (ROOT / "web" / "src" / "events" / "types.ts").read_text() == made
