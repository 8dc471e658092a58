"""The relational store: how it is opened, read, written and migrated. This is its door.

Rooms define their own tables on `metadata` and bring their own queries; nothing here knows a room.
"""

from allim.storage.engine import metadata, open_engine, reachable, reading, writing
from allim.storage.migrate import migrate

__all__ = ["metadata", "migrate", "open_engine", "reachable", "reading", "writing"]
