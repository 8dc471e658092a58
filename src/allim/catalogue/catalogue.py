"""A catalogue: event types by name, and the check of each that is published."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from allim.catalogue.event_type import EventType, topic_pattern
from allim.catalogue.file import read_file
from allim.catalogue.json_schema import validator_of
from allim.errors import Invalid, Unusable
from allim.field_errors import invalid
from allim.hub import Check, Draft, check_type


class Catalogue:
    """Event types, each with a name of its own.

    Shape: `checks` has the check of each type that can be published; control events cannot. `digest` is equal
    for files that declare the same types, "" without a file.
    """

    def __init__(self, event_types: Iterable[EventType], digest: str = "") -> None:
        """Raises: Unusable naming the type and its wrong field."""
        self.event_types: dict[str, EventType] = {}
        self.checks: dict[str, Check] = {}
        self.digest = digest
        for event_type in event_types:
            try:
                self._add(event_type)
            except Unusable as error:
                raise Unusable(f"{event_type.name}: {error}", error.advice) from error

    def document(self) -> dict[str, Any]:
        """Return the catalogue as JSON, as `/api/catalogue.json` serves it."""
        return {"types": [_described(each) for each in self.event_types.values()]}

    def _add(self, event_type: EventType) -> None:
        if event_type.name in self.event_types:
            raise Unusable("is declared already")
        check_data = _check_of_data(event_type.model)
        try:
            check_data(event_type.example, "example")
            if event_type.topic is not None:
                check_type(event_type.name)
                self.checks[event_type.name] = _check_of(event_type.name, event_type.topic, check_data)
        except Invalid as error:
            raise Unusable(error.detail) from error
        self.event_types[event_type.name] = event_type


def load(event_types: Iterable[EventType], path: Path | None) -> Catalogue:
    """Return the catalogue of these types and those that a file declares.

    Raises: Unusable naming the file, the type and its wrong field.
    """
    built_in = Catalogue(event_types)
    if path is None:
        return built_in
    try:
        declared = read_file(path)
        digest = hashlib.sha256(json.dumps([_described(each) for each in declared], sort_keys=True).encode())
        return Catalogue([*built_in.event_types.values(), *declared], digest.hexdigest()[:16])
    except Unusable as error:
        raise Unusable(f"{path}: {error}", error.advice) from error


def _check_of(name: str, topic: str, check_data: Callable[[object, str], None]) -> Check:
    """Raises: Unusable for a wrong form of topics."""
    try:
        pattern = topic_pattern(topic)
    except ValueError as error:
        raise Unusable(f"topic: {error}") from None

    def check(draft: Draft) -> None:
        if not pattern.fullmatch(draft.topic):
            raise Invalid.field("topic", f"must have the form {topic}, which is declared for {name}")
        check_data(draft.data, "data")

    return check


def _check_of_data(model: Any) -> Callable[[object, str], None]:
    """Return the function that checks data at a path.

    The function raises Invalid naming each wrong field.
    Raises: Unusable for a wrong schema.
    """
    if isinstance(model, bool | Mapping):
        return validator_of(model if isinstance(model, bool) else dict(model))
    adapter: TypeAdapter[Any] = TypeAdapter(model)

    def check(value: object, under: str) -> None:
        try:
            # As JSON, because there a date is a text, also in strict mode.
            adapter.validate_json(to_json(value), strict=True)
        except ValidationError as error:
            raise invalid(error, under) from None

    return check


def _described(event_type: EventType) -> dict[str, Any]:
    return {
        "type": event_type.name,
        "topic": event_type.topic,
        "control": event_type.topic is None,
        "summary": event_type.summary,
        "description": event_type.description,
        "data": event_type.schema(),
        "example": event_type.example,
    }
