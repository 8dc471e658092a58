"""Event types: the declaration of one, and the form of its topics."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic.alias_generators import to_camel
from pydantic.json_schema import GenerateJsonSchema

_KEY = r"(?:[A-Za-z0-9._~-]|%[0-9A-F]{2})"
_PLACE = re.compile(r"\{([a-z][A-Za-z0-9_]*)\}", re.ASCII)
_TOPIC = re.compile(rf"([a-z][a-z0-9_-]{{0,63}})(?::((?:{_KEY}|{_PLACE.pattern}){{1,128}}))?", re.ASCII)


class EventData(BaseModel):
    """The base of models for the data of events: camelCase members, unknown members refused, no type coercion."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=False,
        serialize_by_alias=True,
    )


@dataclass(frozen=True, slots=True)
class EventType:
    """A declared type of events.

    Shape: `model` is a type that pydantic knows, or a JSON Schema 2020-12 as a dict or bool; the data of each event
    fits it. `topic` is the form of the topics that it is published to: `system`, `user:{id}`, `orders:{orderId}`.
    Without a topic it is a control event, which allim itself sends on every stream. `example` is data that fits.
    """

    name: str
    model: Any
    topic: str | None
    summary: str
    example: object
    description: str = ""

    def schema(self) -> dict[str, Any] | bool:
        """Return the JSON Schema 2020-12 of the data; its references lead to its own `$defs`."""
        if isinstance(self.model, bool | Mapping):
            return self.model if isinstance(self.model, bool) else dict(self.model)
        return TypeAdapter(self.model).json_schema(schema_generator=Untitled)


class Untitled(GenerateJsonSchema):
    """JSON Schema without a title for each field that only repeats its name."""

    def field_title_should_be_set(self, _: Any) -> bool:
        """Return False."""
        return False


def topic_pattern(form: str) -> re.Pattern[str]:
    """Return the pattern of all topics that have the form. It is matched in linear time.

    Raises: ValueError when it is no form of a topic.
    """
    found = _TOPIC.fullmatch(form)
    if found is None:
        raise ValueError("must look like `system`, `user:{id}` or `orders:{orderId}`")
    return re.compile(found[1] + (f":{_key_pattern(found[2])}" if found[2] else ""), re.ASCII)


def _key_pattern(form: str) -> str:
    """Return the pattern of the part behind the colon.

    A place ends at the first text that follows it in the form: a later one would fit no more topics. So no place but
    the last is tried with another end, for which the time would grow with a power of the length.
    """
    first, *following = map(re.escape, _PLACE.split(form)[::2])
    places = [f"(?>{_KEY}+?{text})" for text in following[:-1]]
    return first + "".join(places) + (f"{_KEY}+{following[-1]}" if following else "")


def parameters_of(topic: str) -> list[str]:
    """Return the names in a topic's form: `orderId` of `orders:{orderId}`."""
    return _PLACE.findall(topic)
