"""One deadline for a publish, whatever the server does or does not do."""

import asyncio
import gc
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from harness.replicas import PUBLISH_KEY, Replica

from allim.client import AsyncPublisher, NotConfirmed
from tests.client.publishing import Kind, both, publishing
from tests.client.scripted import ACCEPTED, Answer, full_backlog, page, problem, scripted, silence, trickle

pytestmark = pytest.mark.anyio

TIMEOUT_S = 1.0
SLACK_S = 2.0  # of a busy machine
HEAD = b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n"
ENDLESS = {
    "never answers": silence,
    "trickles the head": trickle(b"HTTP/1.1 202 Accepted\r\n" + b"x: y\r\n" * 1000),
    "trickles the body": trickle(HEAD + b" " * 1000),
    "asks to come back late": problem(503, retry_after="60"),
    "refuses for ever": page(502),
}


async def taken_s(kind: Kind, url: str, data: object = 1, **named: float) -> tuple[float, NotConfirmed]:
    """Return how long a publish takes until it fails."""
    async with publishing(kind, url, timeout_s=named.pop("timeout_s", 60)) as publish:
        began = time.monotonic()
        with pytest.raises(NotConfirmed) as caught:
            await publish("a", "t", data, **named)
        return time.monotonic() - began, caught.value


@both
@pytest.mark.parametrize("answer", ENDLESS.values(), ids=ENDLESS)
async def test_a_server_that_does_not_confirm_costs_the_deadline_and_no_more(kind: Kind, answer: Answer) -> None:
    with scripted(answer) as server:
        took_s, error = await taken_s(kind, server.url, timeout_s=TIMEOUT_S)

    assert took_s < TIMEOUT_S + SLACK_S
    assert error.may_be_stored


@both
async def test_a_call_has_a_deadline_of_its_own(kind: Kind) -> None:
    with scripted(silence) as server:
        async with publishing(kind, server.url, timeout_s=60) as publish:
            began = time.monotonic()
            with pytest.raises(NotConfirmed, match=r"in 0\.5 s: "):
                await publish([("a", "t", 1)], timeout_s=0.5)

    assert time.monotonic() - began < 0.5 + SLACK_S


@both
async def test_a_connection_that_is_never_made_costs_the_deadline_and_nothing_is_stored(kind: Kind) -> None:
    with full_backlog() as url:
        took_s, error = await taken_s(kind, url, timeout_s=TIMEOUT_S)

    assert took_s < TIMEOUT_S + SLACK_S
    assert not error.may_be_stored


@both
async def test_a_name_that_is_not_resolved_costs_the_deadline(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    real = socket.getaddrinfo

    def late(host: object, *rest: object, **named: object) -> object:
        if host in ("slow.example.org", b"slow.example.org"):
            ended.wait()
        return real("127.0.0.1", *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", late)
    try:
        took_s, error = await taken_s(kind, "http://slow.example.org", timeout_s=TIMEOUT_S)
    finally:
        ended.set()

    assert took_s < TIMEOUT_S + SLACK_S
    assert not error.may_be_stored


@both
async def test_a_reader_that_takes_the_body_slowly_costs_the_deadline(kind: Kind) -> None:
    with sipping() as url:
        took_s, error = await taken_s(kind, url, "x" * 8_000_000, timeout_s=TIMEOUT_S)

    assert took_s < TIMEOUT_S + SLACK_S
    assert error.may_be_stored


@both
async def test_a_second_attempt_comes_while_there_is_time(kind: Kind) -> None:
    with scripted(silence, ACCEPTED) as server:
        async with publishing(kind, server.url, timeout_s=6) as publish:
            published = await publish("a", "t", 1)

    assert published.ids == ("5-0",)
    assert len(server.keys) == 1


@both
async def test_retry_after_is_waited_for(kind: Kind) -> None:
    with scripted(problem(429, retry_after="1"), ACCEPTED) as server:
        async with publishing(kind, server.url) as publish:
            began = time.monotonic()
            await publish("a", "t", 1)

    assert time.monotonic() - began >= 1


@both
async def test_a_stopped_replica_costs_the_deadline_and_its_key_is_good_afterwards(
    kind: Kind, server: Replica
) -> None:
    async with publishing(kind, server.url, PUBLISH_KEY, timeout_s=30) as publish:
        await publish("user:1", "t", 0)
        server.pause()
        try:
            began = time.monotonic()
            with pytest.raises(NotConfirmed) as caught:
                await publish("user:1", "t", 1, timeout_s=TIMEOUT_S)
            took_s = time.monotonic() - began
        finally:
            server.resume()
        key = caught.value.idempotency_key
        ids = {(await publish("user:1", "t", 1, idempotency_key=key)).ids for _ in range(2)}

    assert took_s < TIMEOUT_S + SLACK_S
    assert len(ids) == 1


@contextmanager
def sipping() -> Iterator[str]:
    """The URL of a server that reads some bytes now and then and never answers."""
    ended = threading.Event()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            with suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    threads.append(threading.Thread(target=sip, args=(sock,)))
                    threads[-1].start()

        def sip(sock: socket.socket) -> None:
            with sock:
                while not ended.wait(0.05) and sock.recv(2048):
                    pass

        threads = [threading.Thread(target=serve)]
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def test_an_asynchronous_publisher_serves_one_event_loop_after_the_other() -> None:
    with scripted(ACCEPTED) as server, pytest.warns(ResourceWarning):  # its connections ended with their loops
        publish_in_two_loops(server.url)

    assert [asked.connection for asked in server.asked] == [1, 2]


def publish_in_two_loops(url: str) -> None:
    publisher = AsyncPublisher(url, "k", timeout_s=10)
    for _ in range(2):
        asyncio.run(publisher.publish("a", "t", 1))
    del publisher
    gc.collect()
