"""The core: events, positions, streams and the broker's promise. This is its door."""

from allim.hub.broker import (
    IDEMPOTENCY_WINDOW_S,
    Broker,
    Heads,
    Listener,
    Outcome,
    Publication,
    Reading,
)
from allim.hub.close_reason import CloseReason
from allim.hub.event import TYPE_FORM, Check, Draft, Entry, Event, check_type
from allim.hub.hub import Hub, HubSettings, Published, Toll, refuse_ended
from allim.hub.ledger import Admission, Demand, Grant, Holder, Ledger, Quota, Standing, is_kicked
from allim.hub.position import ZERO, Position
from allim.hub.stream import Backlog, Opening, Stream
from allim.hub.topic import MAX_TOPICS, TOPIC_FORM, check_topic

__all__ = [
    "IDEMPOTENCY_WINDOW_S",
    "MAX_TOPICS",
    "TOPIC_FORM",
    "TYPE_FORM",
    "ZERO",
    "Admission",
    "Backlog",
    "Broker",
    "Check",
    "CloseReason",
    "Demand",
    "Draft",
    "Entry",
    "Event",
    "Grant",
    "Heads",
    "Holder",
    "Hub",
    "HubSettings",
    "Ledger",
    "Listener",
    "Opening",
    "Outcome",
    "Position",
    "Publication",
    "Published",
    "Quota",
    "Reading",
    "Standing",
    "Stream",
    "Toll",
    "check_topic",
    "check_type",
    "is_kicked",
    "refuse_ended",
]
