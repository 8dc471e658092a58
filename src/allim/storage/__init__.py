"""The relational store: how it is opened, read, written and migrated. This is its door.

Domains define their own tables on `metadata` and bring their own queries; nothing here knows a domain.
"""

from allim.storage.engine import metadata, open_engine, reading, writable, writing
from allim.storage.migrate import migrate, usable

__all__ = ["metadata", "migrate", "open_engine", "reading", "usable", "writable", "writing"]
