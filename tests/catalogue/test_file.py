"""Types that a file declares: its forms, its faults, and the faults of data that does not fit a schema."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from allim.catalogue import Catalogue, load
from allim.catalogue.json_schema import validator_of
from allim.errors import Invalid, Unusable
from allim.hub import Draft
from tests.catalogue.test_types import shipped

ORDERS = Path(__file__).with_name("orders.yaml")
TYPE = {"topic": "orders:{id}", "summary": "One.", "data": {"type": "integer"}, "example": 1}


def written(folder: Path, content: str, name: str = "events.yaml") -> Path:
    path = folder / name
    path.write_text(content)
    return path


def refused(path: Path, *built_in: Any) -> str:
    """The line that says why the file is not usable, without the path before it."""
    with pytest.raises(Unusable) as error:
        load(built_in, path)
    line = str(error.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line.removeprefix(f"{path}: ")


def faults(schema: Any, value: object) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as error:
        validator_of(schema)(value, "data")
    return [(field, message) for field, message in error.value.fields]


# -- Reading ---------------------------------------------------------------------------------------------------


def test_yaml_and_json_declare_the_same(tmp_path: Path) -> None:
    from_yaml = load([], ORDERS)
    as_json = {
        "types": {
            each["type"]: {name: each[name] for name in ("topic", "summary", "description", "data", "example")}
            for each in from_yaml.document()["types"]
        }
    }

    from_json = load([], written(tmp_path, json.dumps(as_json), "events.json"))

    assert from_json.document() == from_yaml.document()
    assert from_json.digest == from_yaml.digest != ""


def test_a_type_has_the_definitions_that_it_leads_to() -> None:
    types = {each["type"]: each["data"] for each in load([], ORDERS).document()["types"]}

    assert list(types["orders.shipped"]["$defs"]) == ["Money"]
    assert "$defs" not in types["notices.posted"]


def test_a_date_without_quotes_is_a_text(tmp_path: Path) -> None:
    content = "types: {a.b: {topic: system, summary: S, data: {type: string, format: date}, example: 2026-01-31}}"

    [declared] = load([], written(tmp_path, content)).document()["types"]

    assert declared["example"] == "2026-01-31"


def test_other_content_has_another_digest(tmp_path: Path) -> None:
    other = written(tmp_path, ORDERS.read_text().replace("maxLength: 200", "maxLength: 201"))

    assert load([], other).digest != load([], ORDERS).digest


# -- Faults of a file ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"topic": "Orders"}, "a.b: topic: must look like"),
        ({"topic": 1}, "a.b: topic: must be a string"),
        ({"summary": ""}, "a.b: summary: must have at least 1 characters"),
        ({"more": 1}, "a.b: more: is not a known field"),
        ({"example": "x"}, "a.b: example: must be a whole number"),
        ({"data": {"type": "intger"}}, "a.b: data.type: must have one of the declared forms"),
        ({"data": {"properties": {"x": {"minimum": "1"}}}}, "a.b: data.properties.x.minimum: must be a number"),
        ({"data": {"pattern": "("}}, "a.b: data.pattern: must have the format regex"),
        ({"data": {"pattern": "a(?=b)"}, "example": "ab"}, "a.b: data"),
        ({"data": {"$ref": "#/$defs/No"}}, "a.b: data: Pointer '/$defs/No' does not exist"),
        ({"data": {"items": {"$ref": "https://a.example/x"}}}, "a.b: data.items.$ref: must be `#` or"),
        ({"data": {"properties": []}}, "a.b: data.properties: must be an object"),
        ({"data": {"allOf": {"a": 1}}}, "a.b: data.allOf: must be a list"),
        ({"data": {"$defs": 1}}, "a.b: data.$defs: must be an object"),
        ({"data": {"$ref": "#/$defs/a b", "$defs": {"a b": {}}}}, "a.b: data.$defs.a b: must be named with"),
        ({"data": {"$ref": 1}}, "a.b: data.$ref: must be a string"),
        ({"data": {"$id": "x"}}, "a.b: data.$id: is not supported here"),
        ({"data": {"$schema": "http://json-schema.org/draft-07/schema#"}}, "a.b: data"),
    ],
)
def test_a_fault_names_type_and_field(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    content = json.dumps({"types": {"a.b": {**TYPE, **changes}}})

    assert refused(written(tmp_path, content)).startswith(line)


@pytest.mark.parametrize("field", ["topic", "summary", "data", "example"])
def test_a_field_that_is_missing_is_named(tmp_path: Path, field: str) -> None:
    content = json.dumps({"types": {"a.b": {name: value for name, value in TYPE.items() if name != field}}})

    assert refused(written(tmp_path, content)) == f"a.b: {field}: is required"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("e.yaml", "types: {a.b: [}", "is not YAML at line 1, column 15"),
        ("e.yaml", "types: {a.b: 1, a.b: 2}", "a.b: is there twice"),
        ("e.yaml", "types: {1: 2}", "is not YAML at line 1, column 8: a name that is no text"),
        ("e.yaml", "types: &a {x: *a}", "holds a value that is not JSON"),
        ("e.yaml", "types: !!python/object:os.system {}", "is not YAML at line 1"),
        ("e.yaml", "", "must be a JSON object"),
        ("e.yaml", "type: {}", "types: is required"),
        ("e.yaml", "types: {a.b: 1}", "a.b: must be a JSON object"),
        ("e.json", "{", "is not JSON at line 1, column 2"),
        ("e.json", '{"types": {"a": 1, "a": 2}}', "a: is there twice"),
        ("e.json", '{"types": {"a": NaN}}', "holds a value that is not JSON"),
    ],
)
def test_a_file_that_cannot_be_read_says_where(tmp_path: Path, name: str, content: str, line: str) -> None:
    assert refused(written(tmp_path, content, name)).startswith(line)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.yaml") == "No such file or directory"


def test_a_type_of_allim_itself_is_not_declared_anew() -> None:
    assert refused(ORDERS, shipped()) == "orders.shipped: is declared already"


@pytest.mark.parametrize(
    ("library", "words"), [("yaml", "YAML needs PyYAML"), ("jsonschema_rs", "a JSON Schema needs")]
)
def test_without_its_library_the_file_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, library: str, words: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)

    with pytest.raises(Unusable, match=words) as error:
        load([], ORDERS)

    assert "pip install 'allim[catalogue]'" in error.value.advice


# -- Faults of data --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "value", "words"),
    [
        ({"type": ["string", "null"]}, 1, "must be null or a string"),
        ({"type": "integer"}, True, "must be a whole number"),
        ({"enum": ["EUR", None, 3]}, 1, 'must be "EUR" or null or 3'),
        ({"const": {"a": 1}}, 1, 'must be {"a": 1}'),
        ({"minimum": 1}, 0, "must be at least 1"),
        ({"maximum": 1.5}, 2, "must be at most 1.5"),
        ({"exclusiveMinimum": 1}, 1, "must be more than 1"),
        ({"exclusiveMaximum": 1}, 1, "must be less than 1"),
        ({"multipleOf": 2}, 3, "must be a multiple of 2"),
        ({"minLength": 2}, "a", "must have at least 2 characters"),
        ({"maxLength": 2}, "abc", "must have at most 2 characters"),
        ({"minItems": 2}, [], "must have at least 2 items"),
        ({"maxItems": 0}, [1], "must have at most 0 items"),
        ({"uniqueItems": True}, [1, 1], "must not have the same item twice"),
        ({"pattern": "^a{2}$"}, "b", "must match ^a{2}$"),
        ({"format": "date-time"}, "today", "must have the format date-time"),
        ({"anyOf": [{"type": "null"}]}, 1, "must have one of the declared forms"),
        ({"oneOf": [True, True]}, 1, "must have exactly one of the declared forms"),
        ({"not": {}}, 1, "does not fit `not`"),
        ({"propertyNames": {"maxLength": 1}}, {"ab": 1}, "does not fit `propertyNames`"),
        (False, 1, "is not allowed"),
    ],
)
def test_a_fault_of_data_is_a_sentence_without_the_value(schema: Any, value: object, words: str) -> None:
    assert faults({"properties": {"x": schema}}, {"x": value}) == [("data.x", words)]


def test_a_member_too_few_or_too_many_is_named_itself() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {}}, "additionalProperties": False}

    assert faults({"items": schema}, [{"a": 1}, {"b": 1, "c": 2}]) == [
        ("data[1].b", "is not a known field"),
        ("data[1].c", "is not a known field"),
        ("data[1].a", "is required"),
    ]


def test_many_faults_are_told_as_twenty() -> None:
    assert len(faults({"items": {"type": "string"}}, list(range(50_000)))) == 20
    assert (
        len(
            faults(
                {"properties": {"a": {}}, "additionalProperties": False}, {str(number): 0 for number in range(1000)}
            )
        )
        == 20
    )


def test_a_pattern_that_others_take_for_ever_for_takes_no_time() -> None:
    assert faults({"pattern": "^(a+)+$"}, "a" * 50_000 + "!")


def test_a_declared_example_is_published_and_another_topic_is_not() -> None:
    catalogue: Catalogue = load([], ORDERS)
    for name, check in catalogue.checks.items():
        topic = {"orders.shipped": "orders:0042", "notices.posted": "system"}[name]
        check(Draft(topic, name, catalogue.event_types[name].example))

    with pytest.raises(Invalid, match=r"^topic: must have the form system, which is declared for notices\.posted$"):
        catalogue.checks["notices.posted"](Draft("user:1", "notices.posted", {"text": "x"}))
