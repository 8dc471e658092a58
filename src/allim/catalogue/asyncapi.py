"""The AsyncAPI document of a catalogue. Each form of topics is a channel, and control events have one of their own.

Source: AsyncAPI 3.0.0. Its schemas are JSON Schema draft-07 with more keywords, so tuples are written in that way.
"""

import re
from collections import defaultdict
from typing import Any

from allim import __version__
from allim.catalogue.catalogue import Catalogue
from allim.catalogue.event_type import EventType, parameters_of
from allim.catalogue.json_schema import hoisted, rewritten

SCHEMAS = "#/components/schemas/"
CONTROL_CHANNEL = "stream"
_ABOUT = """\
Events that allim sends. `GET /events` (`text/event-stream`) opens a stream of the user's own topics and of those that
the query names; `event:` holds the type, `data:` the payload. `POST /api/publish` publishes; /api/openapi.json
describes both. A publisher may also publish types that are not declared here.
"""


def asyncapi(catalogue: Catalogue) -> dict[str, Any]:
    """Return the AsyncAPI document."""
    by_topic: dict[str | None, list[EventType]] = defaultdict(list)
    for each in catalogue.event_types.values():
        by_topic[each.topic].append(each)
    channels = _named(by_topic)
    schemas = [hoisted(each.name, each.schema(), SCHEMAS) for each in catalogue.event_types.values()]
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "allim", "version": __version__, "description": _ABOUT},
        "defaultContentType": "application/json",
        "channels": {name: _channel(topic, by_topic[topic]) for name, topic in channels.items()},
        "operations": {f"send.{name}": _operation(name, by_topic[topic]) for name, topic in channels.items()},
        "components": {
            "messages": {name: _message(each) for name, each in catalogue.event_types.items()},
            "schemas": {name: rewritten(schema, _draft_07) for found in schemas for name, schema in found.items()},
        },
    }


def _named(by_topic: dict[str | None, list[EventType]]) -> dict[str, str | None]:
    """Return the forms of topics by a name that may stand in a reference."""
    found: dict[str, str | None] = {}
    for topic in by_topic:
        wanted = name = CONTROL_CHANNEL if topic is None else re.sub(r"[^A-Za-z0-9_.-]+", ".", topic).strip(".")
        number = 2
        while name in found:
            name, number = f"{wanted}.{number}", number + 1
        found[name] = topic
    return found


def _channel(topic: str | None, event_types: list[EventType]) -> dict[str, Any]:
    parameters: dict[str, Any] = {name: {} for name in parameters_of(topic or "")}
    about = "Control events: allim itself sends them on every stream." if topic is None else f"The topics `{topic}`."
    return {
        "address": topic,
        "description": about,
        **({"parameters": parameters} if parameters else {}),
        "messages": {each.name: {"$ref": f"#/components/messages/{each.name}"} for each in event_types},
    }


def _operation(channel: str, event_types: list[EventType]) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{each.name}"} for each in event_types],
    }


def _message(event_type: EventType) -> dict[str, Any]:
    about = {"description": event_type.description} if event_type.description else {}
    return {
        "name": event_type.name,
        "title": event_type.name,
        "summary": event_type.summary,
        **about,
        "payload": {"$ref": SCHEMAS + event_type.name},
        "examples": [{"payload": event_type.example}],
    }


def _draft_07(part: dict[str, Any]) -> dict[str, Any]:
    if "prefixItems" not in part:
        return part
    rest = {keyword: value for keyword, value in part.items() if keyword not in {"prefixItems", "items"}}
    more = {"additionalItems": part["items"]} if "items" in part else {}
    return {**rest, "items": part["prefixItems"], **more}
