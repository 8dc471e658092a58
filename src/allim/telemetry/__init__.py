"""What an operator sees: structured logs and metrics. The rooms' door to both."""

from allim.telemetry.logging import configure_logging, request_id
from allim.telemetry.metrics import Metrics

__all__ = ["Metrics", "configure_logging", "request_id"]
