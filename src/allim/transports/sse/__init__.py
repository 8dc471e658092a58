"""Server-sent events: exact bytes, two ways to write them, one route. This is its door."""

from allim.transports.sse.portable import draining_on_signals
from allim.transports.sse.routes import routes
from allim.transports.sse.stream import StreamDefaults

__all__ = ["StreamDefaults", "draining_on_signals", "routes"]
