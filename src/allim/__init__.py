"""allim: horizontally scaled server-sent event notifications."""

__version__ = "0.1.0"
