"""What an operator sees: structured logs and metrics. The rooms' door to both."""

from allim.telemetry.logging import configure_logging, quiet, request_id
from allim.telemetry.metrics import Metrics

__all__ = ["Metrics", "configure_logging", "quiet", "request_id"]
