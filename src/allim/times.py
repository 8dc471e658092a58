"""Times as text."""

from datetime import UTC, datetime


def utc(unix_s: float) -> str:
    """Return a time as RFC 3339 in UTC with milliseconds: `2026-01-31T09:30:00.000Z`."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
