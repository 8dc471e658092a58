"""TypeScript declarations of a catalogue, as `/api/catalogue.json` serves it.

A JSON Schema is translated as far as TypeScript can say it; numbers' limits, patterns and formats are left out.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from allim.catalogue.json_schema import DEFINITION

_SCALARS = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean", "null": "null"}
_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*", re.ASCII)
_PLACE = re.compile(r"\{\w+\}", re.ASCII)


def declarations(document: Mapping[str, Any]) -> str:
    """Return the declarations: a type for each event's data, `Events` by event type, and `Topics`."""
    types = document["types"]
    names = _Names()
    blocks: list[str] = []
    events, topics = [], []
    for each in types:
        name = names.new(each["type"])
        blocks += _data_types(name, each, names)
        key = json.dumps(each["type"])
        events += [*_comment(each["summary"], "  "), f"  {key}: {name};"]
        if each["topic"] is not None:
            topics += [*_comment(each["summary"], "  "), f"  {key}: {_topic_type(each['topic'])};"]
    control = " | ".join(json.dumps(each["type"]) for each in types if each["control"]) or "never"
    blocks += [
        _block(_comment("The data of each event, by its type."), "export interface Events {", events),
        _block(_comment("The form of each type's topics."), "export interface Topics {", topics),
        "\n".join(
            [
                *_comment("The events that allim itself sends on every stream."),
                f"export type ControlType = {control};",
            ]
        ),
    ]
    return "// Made by `allim types`. Changes are lost when it is made anew.\n\n" + "\n\n".join(blocks) + "\n"


class _Names:
    """Names of types, each given once."""

    def __init__(self) -> None:
        self._given = {"Events", "Topics", "ControlType"}

    def new(self, text: str) -> str:
        """Return a name made of the words in a text: `OrdersShipped` of `orders.shipped`."""
        words = [word[0].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", text) if word]
        wanted = name = "".join(words)
        number = 2
        while name in self._given:
            name, number = f"{wanted}{number}", number + 1
        self._given.add(name)
        return name


def _data_types(name: str, described: Mapping[str, Any], names: _Names) -> Iterator[str]:
    schema = described["data"]
    definitions = schema.get("$defs", {}) if isinstance(schema, dict) else {}
    known = {DEFINITION + each: names.new(f"{name}.{each}") for each in definitions} | {"#": name}
    yield _declared(name, f"Data of `{described['type']}`. {described['summary']}", schema, known)
    for each, definition in definitions.items():
        about = definition.get("description", "") if isinstance(definition, dict) else ""
        yield _declared(known[DEFINITION + each], about, definition, known)


def _declared(name: str, about: str, schema: Any, known: Mapping[str, str]) -> str:
    return "\n".join([*_comment(about), f"export type {name} = {_type(schema, known, '')};"])


def _block(comment: Iterable[str], head: str, lines: Iterable[str]) -> str:
    return "\n".join([*comment, head, *lines, "}"])


def _comment(text: str, indent: str = "") -> list[str]:
    """Return a comment of one line."""
    line = " ".join(text.split()).replace("*/", "*\\/")
    return [f"{indent}/** {line} */"] if line else []


def _topic_type(form: str) -> str:
    """Return the type of all texts with a topic's form."""
    return "`" + _PLACE.sub("${string}", form) + "`" if "{" in form else json.dumps(form)


def _type(schema: Any, known: Mapping[str, str], indent: str) -> str:
    """Return the type of a schema: all its keywords together."""
    if not isinstance(schema, dict):
        return "unknown" if schema else "never"
    parts = [part for part in _parts(schema, known, indent) if part != "unknown"]
    if len(parts) == 1:
        return parts[0]
    return " & ".join(_grouped(part) for part in dict.fromkeys(parts)) or "unknown"


def _parts(schema: Mapping[str, Any], known: Mapping[str, str], indent: str) -> Iterator[str]:
    if "$ref" in schema:
        yield known.get(schema["$ref"], "unknown")
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            yield " | ".join(_grouped(_type(each, known, indent)) for each in schema[keyword])
    for each in schema.get("allOf", ()):
        yield _type(each, known, indent)
    if "const" in schema:
        yield _literal(schema["const"])
    elif "enum" in schema:
        yield " | ".join(map(_literal, schema["enum"])) or "never"
    else:
        yield _by_kind(schema, known, indent)


def _by_kind(schema: Mapping[str, Any], known: Mapping[str, str], indent: str) -> str:
    kinds = schema.get("type", _implied(schema))
    found = []
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind == "object":
            found.append(_object(schema, known, indent))
        elif kind == "array":
            found.append(_array(schema, known, indent))
        else:
            found.append(_SCALARS.get(kind, "unknown"))
    return " | ".join(dict.fromkeys(found)) or "unknown"


def _implied(schema: Mapping[str, Any]) -> list[str]:
    """Return the kinds that a schema without `type` is meant for: it has members."""
    return ["object"] if "properties" in schema else []


def _object(schema: Mapping[str, Any], known: Mapping[str, str], indent: str) -> str:
    members = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    if not members:
        of = "never" if others is False else _type(others, known, indent)
        return f"{{ [name: string]: {of} }}"
    required = set(schema.get("required", ()))
    lines = ["{"]
    for name, member in members.items():
        about = member.get("description", "") if isinstance(member, dict) else ""
        lines += _comment(about, indent + "  ")
        mark = "" if name in required else "?"
        lines.append(f"{indent}  {_member_name(name)}{mark}: {_type(member, known, indent + '  ')};")
    return "\n".join([*lines, indent + "}"])


def _array(schema: Mapping[str, Any], known: Mapping[str, str], indent: str) -> str:
    first = [_type(each, known, indent) for each in schema.get("prefixItems", ())]
    items = schema.get("items", True)
    rest = _grouped(_type(items, known, indent))
    if not first:
        return f"{rest}[]"
    needed = schema.get("minItems", 0)
    members = [each if index < needed else f"({each})?" for index, each in enumerate(first)]
    return f"[{', '.join([*members, *([] if items is False else [f'...{rest}[]'])])}]"


def _grouped(type_: str) -> str:
    return f"({type_})" if " | " in type_ or " & " in type_ else type_


def _member_name(name: str) -> str:
    return name if _NAME.fullmatch(name) else json.dumps(name)


def _literal(value: object) -> str:
    return (
        json.dumps(value, ensure_ascii=False) if value is None or isinstance(value, str | int | float) else "unknown"
    )
