"""A client that sends requests and reads no answer holds a connection, and none of a replica's memory."""

import socket
from contextlib import suppress

import pytest

from tests.hostile.conftest import Target
from tests.hostile.wire import connected

FLOOD = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" * 2000
SENT = 20_000_000
GROWTH_KIB = 30 * 1024


@pytest.mark.parametrize("target", ["/healthz", "/api/openapi.json", "/api/accounts/me"])
def test_what_is_sent_ahead_of_answers_that_nobody_reads_is_not_kept(alone: Target, target: str) -> None:
    replica = alone.replicas[0]
    before = replica.rss_kib()

    with connected(alone.port) as connection:
        sent = flood(connection, FLOOD.replace(b"/healthz", target.encode()))
        grown = replica.rss_kib() - before

    assert grown < GROWTH_KIB, f"{sent} bytes sent"


def flood(connection: socket.socket, data: bytes) -> int:
    """Send as much as is taken within a second of the last byte; SENT bytes at most."""
    connection.settimeout(1)
    sent = 0
    with suppress(TimeoutError):
        while sent < SENT:
            sent += connection.send(data)
    return sent
