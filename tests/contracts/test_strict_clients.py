"""Clients of other people, straight on a replica: each event arrives at once, and an end is told from an abort."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import requests
import sseclient
from harness.replicas import Replica, bearer, replica, token
from harness.waiting import PATIENCE_S

NEXT_WITHIN_S = 8.0  # for an event that was published; heartbeats, which could push it out, come later


@pytest.fixture(scope="module", params=[False, True], ids=["handover", "portable"])
def quiet(request: pytest.FixtureRequest) -> Iterator[Replica]:
    """A replica without heartbeats: what is held back stays there."""
    with replica(portable=request.param, heartbeat_s=300, drain_s=1) as running:
        yield running


@contextmanager
def opened(server: Replica, who: str) -> Iterator[requests.Response]:
    with requests.Session() as session:
        session.trust_env = False
        headers = bearer(token(who))
        with session.get(f"{server.url}/events", headers=headers, stream=True, timeout=NEXT_WITHIN_S) as response:
            yield response


def test_sseclient_over_requests_is_given_each_event_at_once(quiet: Replica) -> None:
    with opened(quiet, "sseclient") as response:
        events = sseclient.SSEClient(iter(response)).events()
        assert next(events).event == "stream.open"
        for number in range(3):
            quiet.publish(("user:sseclient", "t", number))

            assert (next(events).event, number) == ("t", number)


def test_iter_lines_of_requests_is_given_each_event_at_once(quiet: Replica) -> None:
    with opened(quiet, "lines") as response:
        lines = response.iter_lines()
        while next(lines):
            pass  # the first frame ends with an empty line
        for number in range(3):
            quiet.publish(("user:lines", "t", number))

            assert [next(lines) for _ in range(4)][1:] == [b"event: t", b"data: %d" % number, b""]


@pytest.mark.parametrize("quiet", [False], ids=["handover"], indirect=True)  # uvicorn itself chunks for HTTP/1.0 too
def test_a_client_of_http_1_0_gets_a_body_that_ends_with_the_connection(quiet: Replica) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", quiet.port, timeout=PATIENCE_S)
    connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"  # type: ignore[attr-defined]
    connection.request("GET", "/events", headers=bearer(token("old", lifetime_s=2)))

    response = connection.getresponse()
    body = response.read()
    connection.close()

    assert response.getheader("transfer-encoding") is None
    assert body.startswith(b"retry: ")
    assert body.endswith(b'event: stream.close\ndata: {"reason":"token_expired","reconnect":false}\n\n')


def test_a_drained_stream_ends_and_a_killed_replicas_is_broken_off(quiet: Replica) -> None:
    with opened(quiet, "drained") as response:
        quiet.process.terminate()
        assert b'"reason":"drain"' in response.content  # read to the end, without an error
    quiet.process.wait(PATIENCE_S)

    quiet.start()
    quiet.until_ready()
    with opened(quiet, "killed") as response:
        chunks = response.iter_content(None)
        assert b"stream.open" in next(chunks)
        quiet.kill()
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            list(chunks)
    # The replica stays dead: this is the last test of this file.
