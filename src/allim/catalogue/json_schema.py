"""JSON Schemas of event types: a validator that names wrong fields, and the schemas inside a schema.

jsonschema-rs is imported when the first schema is read: only catalogues in files need it.
Source: JSON Schema 2020-12.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from allim.errors import FieldError, Unusable
from allim.field_errors import MAX_ERRORS, invalid_fields, path_of

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DEFINITION = "#/$defs/"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", re.ASCII)

_ONE = frozenset(
    {
        *("additionalProperties", "contains", "contentSchema", "else", "if", "items", "not", "propertyNames", "then"),
        *("unevaluatedItems", "unevaluatedProperties"),
    }
)
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAPS = frozenset({"$defs", "dependentSchemas", "patternProperties", "properties"})
_UNSUPPORTED = ("$anchor", "$dynamicAnchor", "$dynamicRef", "$id", "$vocabulary")
_KINDS = {
    **{"array": "a list", "boolean": "true or false", "integer": "a whole number", "null": "null"},
    **{"number": "a number", "object": "an object", "string": "a string"},
}


def validator_of(schema: dict[str, Any] | bool) -> Callable[[object, str], None]:
    """Return the function that checks a value against the schema; its second argument is the path of the value.

    The function raises Invalid naming each wrong field. Formats are checked; patterns are matched in linear time, so
    they know no look-around and no back reference.
    Raises: Unusable naming the place in the schema that is wrong.
    """
    try:
        import jsonschema_rs
    except ImportError:
        raise Unusable("a JSON Schema needs jsonschema-rs", "pip install 'allim[catalogue]'") from None
    try:
        jsonschema_rs.meta.validate(schema)
    except jsonschema_rs.ValidationError as error:
        raise Unusable(f"{path_of('data', error.instance_path)}: {_sentence(error.kind)}") from None
    _check_references(schema)
    try:
        validator = jsonschema_rs.Draft202012Validator(
            schema, validate_formats=True, pattern_options=jsonschema_rs.RegexOptions(), offline=True
        )
    except jsonschema_rs.ValidationError as error:
        words = _sentence(error.kind) if error.kind.name == "format" else error.message
        raise Unusable(f"{path_of('data', error.instance_path)}: {words}") from None

    def check(value: object, under: str) -> None:
        if not validator.is_valid(value):
            found = islice(validator.iter_errors(value), MAX_ERRORS)
            raise invalid_fields(islice((each for error in found for each in _fields(error, under)), MAX_ERRORS))

    return check


def children(schema: object) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield each schema directly inside a schema, with the path to it. The schema may still be malformed."""
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        if keyword in _ONE:
            yield (keyword,), value
        elif keyword in _LISTS and isinstance(value, list):
            yield from (((keyword, index), each) for index, each in enumerate(value))
        elif keyword in _MAPS and isinstance(value, dict):
            yield from (((keyword, name), each) for name, each in value.items())


def rewritten(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return a copy of a schema in which `change` has replaced each part that is a schema.

    Shape: `change` is called with each part, from the innermost on, and returns the new one.
    """
    if not isinstance(schema, dict):
        return schema
    copy: dict[Any, Any] = {
        keyword: [*value] if keyword in _LISTS else {**value} if keyword in _MAPS else value
        for keyword, value in schema.items()
    }
    for (keyword, *rest), child in children(schema):
        if rest:
            copy[keyword][rest[0]] = rewritten(child, change)
        else:
            copy[keyword] = rewritten(child, change)
    return change(copy)


def hoisted(name: str, schema: dict[str, Any] | bool, base: str) -> dict[str, Any]:
    """Return the schemas that a document needs for this one, by their names under `base`, such as
    `#/components/schemas/`: the schema as `name`, and its definitions as `name.Definition`.
    """

    def lead_there(part: dict[str, Any]) -> dict[str, Any]:
        if "$ref" not in part:
            return part
        old = part["$ref"]
        return {**part, "$ref": base + (name if old == "#" else f"{name}.{old.removeprefix(DEFINITION)}")}

    if isinstance(schema, bool):
        return {name: {} if schema else {"not": {}}}
    own = {keyword: value for keyword, value in schema.items() if keyword not in {"$defs", "$schema"}}
    definitions = {f"{name}.{each}": value for each, value in schema.get("$defs", {}).items()}
    return {each: rewritten(value, lead_there) for each, value in {name: own, **definitions}.items()}


def with_definitions(schema: Any, shared: Mapping[str, Any]) -> Any:
    """Return the schema with those of the shared definitions that it leads to."""
    own = schema.get("$defs", {}) if isinstance(schema, dict) else None
    if not isinstance(own, dict):
        return schema
    known = {**shared, **own}
    needed: dict[str, Any] = {}
    open_: list[Any] = [schema]
    while open_:
        for name in _definitions_in(open_.pop()):
            if name in known and name not in needed:
                needed[name] = known[name]
                open_.append(known[name])
    return {**schema, "$defs": needed} if needed else schema


def _definitions_in(schema: Any) -> Iterator[str]:
    """Yield the names of the definitions that a schema leads to, its own definitions left out."""
    if isinstance(schema, dict) and isinstance(schema.get("$ref"), str):
        yield schema["$ref"].removeprefix(DEFINITION)
    for (keyword, *_), child in children(schema):
        if keyword != "$defs":
            yield from _definitions_in(child)


def _check_references(schema: object, path: tuple[str | int, ...] = ()) -> None:
    """Raises: Unusable for a reference that leads anywhere but to the schema itself or to one of its `$defs`."""
    if not isinstance(schema, dict):
        return
    if schema.get("$schema", DIALECT) != DIALECT:
        raise Unusable(f"{path_of('data', (*path, '$schema'))}: must be {DIALECT}")
    reference = schema.get("$ref", "#")
    if reference != "#" and "/" in reference.removeprefix(DEFINITION):
        raise Unusable(f"{path_of('data', (*path, '$ref'))}: must be `#` or `#/$defs/Name`")
    for keyword in _UNSUPPORTED:
        if keyword in schema:
            raise Unusable(f"{path_of('data', (*path, keyword))}: is not supported here")
    for name in schema.get("$defs", ()):
        if not _NAME.fullmatch(name):
            raise Unusable(f"{path_of('data', (*path, '$defs', name))}: must be named with A-Z a-z 0-9 . _ -")
    for at, child in children(schema):
        _check_references(child, (*path, *at))


def _fields(error: Any, under: str) -> Iterable[FieldError]:
    kind, place = error.kind, error.instance_path
    if kind.name == "required":
        return [FieldError(path_of(under, [*place, kind.property]), "is required")]
    if kind.name in {"additionalProperties", "unevaluatedProperties"}:
        unknown = kind.unexpected[:MAX_ERRORS]
        return [FieldError(path_of(under, [*place, each]), "is not a known field") for each in unknown]
    return [FieldError(path_of(under, place), _sentence(kind))]


def _sentence(kind: Any) -> str:
    """Return the sentence that tells the form of a value. It never repeats the value."""
    if kind.name == "type":
        return f"must be {' or '.join(_KINDS[each] for each in kind.types)}"
    if kind.name == "enum":
        return f"must be {' or '.join(json.dumps(each, ensure_ascii=False) for each in kind.options)}"
    limit = kind.value if isinstance(kind.value, str) else json.dumps(kind.value, ensure_ascii=False, default=str)
    return _SENTENCES.get(kind.name, f"does not fit `{kind.name}`").format(limit)


_SENTENCES = {
    "const": "must be {}",
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "exclusiveMinimum": "must be more than {}",
    "exclusiveMaximum": "must be less than {}",
    "multipleOf": "must be a multiple of {}",
    "minLength": "must have at least {} characters",
    "maxLength": "must have at most {} characters",
    "minItems": "must have at least {} items",
    "maxItems": "must have at most {} items",
    "minProperties": "must have at least {} members",
    "maxProperties": "must have at most {} members",
    "uniqueItems": "must not have the same item twice",
    "pattern": "must match {}",
    "format": "must have the format {}",
    "anyOf": "must have one of the declared forms",
    "oneOf": "must have exactly one of the declared forms",
    "falseSchema": "is not allowed",
}
