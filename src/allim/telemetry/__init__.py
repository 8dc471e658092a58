"""Structured logs and metrics. This is the door to both."""

from allim.telemetry.logging import configure_logging, quiet, request_id
from allim.telemetry.metrics import Metrics

__all__ = ["Metrics", "configure_logging", "quiet", "request_id"]
