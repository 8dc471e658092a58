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
from allim.hub.catch_up import Start
from allim.hub.close_reason import CloseReason
from allim.hub.event import TYPE_FORM, Check, Draft, Entry, Event, Framing, Run, check_type, encode
from allim.hub.hub import Charge, Hub, Published
from allim.hub.ledger import Admission, Demand, Grant, Holder, Ledger, Quota, SessionState, is_kicked, refuse_ended
from allim.hub.position import ZERO, Position
from allim.hub.resume import ResetReason
from allim.hub.sessions import Sessions
from allim.hub.settings import HubSettings
from allim.hub.stream import Backlog, Opening, Stream
from allim.hub.topic import KEY_FORM, MAX_TOPICS, TOPIC_FORM, check_topic

__all__ = [
    "IDEMPOTENCY_WINDOW_S",
    "KEY_FORM",
    "MAX_TOPICS",
    "TOPIC_FORM",
    "TYPE_FORM",
    "ZERO",
    "Admission",
    "Backlog",
    "Broker",
    "Charge",
    "Check",
    "CloseReason",
    "Demand",
    "Draft",
    "Entry",
    "Event",
    "Framing",
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
    "ResetReason",
    "Run",
    "SessionState",
    "Sessions",
    "Start",
    "Stream",
    "check_topic",
    "check_type",
    "encode",
    "is_kicked",
    "refuse_ended",
]
