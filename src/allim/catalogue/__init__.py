"""The event catalogue: event types with the form of their data and topics, checked when an event is published.

Types come from domains, from the transports (control events) and from a file. docs/events.md describes all of it.
"""

from allim.catalogue.catalogue import Catalogue, load
from allim.catalogue.event_type import EventData, EventType

__all__ = ["Catalogue", "EventData", "EventType", "load"]
