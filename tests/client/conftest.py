"""What the tests of the Python client share."""

from collections.abc import Iterator

import pytest
from harness.replicas import Replica, replica

from allim.client import answers


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full jitter that always draws next to nothing."""
    monkeypatch.setattr(answers, "BACKOFF_S", 0.001)


@pytest.fixture(scope="package")
def server() -> Iterator[Replica]:
    with replica(heartbeat_s=1, pulse_s=0.2, retry_ms=10, stream_lifetime_s=3600) as running:
        yield running
