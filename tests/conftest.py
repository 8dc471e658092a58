"""Shared fixtures. Servers are started per session, state is separated by prefixes and folders."""

from collections.abc import Iterator

import pytest
from harness.servers import Redis, redis_server


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """A real Redis of our own."""
    with redis_server() as server:
        yield server
