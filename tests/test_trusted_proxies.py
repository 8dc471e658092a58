"""Whose word about a client is believed: that of a trusted proxy and of nobody else."""

import json
from collections.abc import Iterator

import httpx
import pytest
from harness.replicas import Replica, replica
from harness.waiting import until_sync

FORGED = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}


@pytest.fixture(scope="module", params=["127.0.0.1", "::"])
def running(request: pytest.FixtureRequest) -> Iterator[Replica]:
    """A replica that listens on IPv4, and one on IPv6 that IPv4 clients reach too."""
    with replica(host=request.param, trusted_proxies="127.0.0.1") as running:
        yield running


def asked_from(running: Replica, address: str, **headers: str) -> httpx.Response:
    with httpx.Client(transport=httpx.HTTPTransport(local_address=address)) as client:
        return client.get(f"{running.url}/api/accounts/me", headers=headers)


def logged_client(running: Replica, answer: httpx.Response) -> str:
    """Whom the replica took for the client of this answer's request."""

    def line() -> str | None:
        wanted = answer.headers["x-request-id"]
        lines = [line for line in running.log.read_text().splitlines() if wanted in line]
        return next((str(json.loads(line)["client"]) for line in lines), None)

    client = until_sync(line, what="the request's line")
    assert client is not None
    return client


def test_a_trusted_proxy_is_believed(running: Replica) -> None:
    answer = asked_from(running, "127.0.0.1", **FORGED)

    assert logged_client(running, answer) == "203.0.113.7"
    assert "strict-transport-security" in answer.headers


def test_anybody_else_is_not(running: Replica) -> None:
    answer = asked_from(running, "127.0.0.2", **FORGED)

    assert logged_client(running, answer) == "127.0.0.2"
    assert "strict-transport-security" not in answer.headers


def test_of_a_chain_only_what_the_trusted_one_added_counts(running: Replica) -> None:
    answer = asked_from(running, "127.0.0.1", **{"X-Forwarded-For": "6.6.6.6, 203.0.113.7"})

    assert logged_client(running, answer) == "203.0.113.7"


def test_without_a_word_the_connection_counts(running: Replica) -> None:
    assert logged_client(running, asked_from(running, "127.0.0.2")) == "127.0.0.2"
