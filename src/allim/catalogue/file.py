"""Reads the event types that a file declares, in YAML or JSON.

YAML is read as JSON is: a name given twice is refused, and a date without quotes is a text.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from allim.catalogue.event_type import EventType
from allim.catalogue.json_schema import with_definitions
from allim.errors import Unusable
from allim.field_errors import invalid


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    topic: str
    summary: Annotated[str, Field(min_length=1)]
    description: str = ""
    data: dict[str, Any] | bool
    example: Any


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    types: dict[str, Any]
    definitions: Annotated[dict[str, dict[str, Any] | bool], Field(alias="$defs", default_factory=dict)]


def read_file(path: Path) -> list[EventType]:
    """Return the event types of the file.

    Raises: Unusable naming the type and its wrong field.
    """
    content = _content(path)
    try:
        json.dumps(content, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Unusable(f"holds a value that is not JSON: {error}") from None
    file: _File = _validated(_File, content, "")
    found = []
    for name, value in file.types.items():
        declared = _validated(_Declared, value, name)
        schema = with_definitions(declared.data, file.definitions)
        found.append(
            EventType(name, schema, declared.topic, declared.summary, declared.example, declared.description)
        )
    return found


def _validated(model: type[Any], value: object, name: str) -> Any:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        prefix = f"{name}: " if name else ""
        raise Unusable(prefix + invalid(error).detail.replace("body: ", "", 1)) from None


def _content(path: Path) -> object:
    """Raises: Unusable for a file that cannot be read, and for a text that is not YAML or JSON."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise Unusable(error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise Unusable(f"is not UTF-8 at byte {error.start + 1}") from None
    return _from_json(text) if path.suffix == ".json" else _from_yaml(text)


def _from_json(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise Unusable(f"is not JSON at line {error.lineno}, column {error.colno}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise Unusable(f"{name}: is there twice")
        found[name] = value
    return found


def _from_yaml(text: str) -> object:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        raise Unusable("YAML needs PyYAML", "pip install 'allim[catalogue]', or write it as .json") from None

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """YAML with the values of JSON alone."""

        yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own attribute
            first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            pairs = [(self.construct_object(key, deep=True), value) for key, value in node.value]
            for key, _ in pairs:
                if not isinstance(key, str):
                    raise yaml.constructor.ConstructorError(None, None, "a name that is no text", node.start_mark)
            return _object([(key, self.construct_object(value, deep=deep)) for key, value in pairs])

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise Unusable(f"is not YAML{place}: {getattr(error, 'problem', None) or 'unknown'}") from None
