"""One slow, frozen or vanished reader costs a fixed amount of memory, and nobody else's time."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness.followers import quantile
from harness.replicas import PUBLISH_KEY, Reader, Replica, replica, token
from harness.servers import Redis
from harness.sockets import held, own_port, vanish
from harness.waiting import until

from allim.client import Message
from allim.transports.sse.handover import USER_TIMEOUT_MS

pytestmark = pytest.mark.anyio

TINY = 2048  # bytes a reader's kernel takes for it
EVENT_BYTES = 4000
BATCH = 25
BATCHES_PER_S = 10  # together 1 MB/s
WARM_UP_S = 4  # until history is full and buffers of all kinds have their size
MEASURED_S = 4
HEARTBEAT_S = 1
USER_TIMEOUT_S = USER_TIMEOUT_MS / 1000


# -- Helpers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Replica]:
    with replica(heartbeat_s=HEARTBEAT_S, pulse_s=0.2, history_events=64) as running:
        yield running


def peak_kib(server: Replica) -> int:
    """The most resident memory since the last `forget_peak`: between two looks nothing is overlooked."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def forget_peak(server: Replica) -> None:
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


def log_of(server: Replica, message: str, user: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("event") == message and line.get("user") == user]


async def until_logged_closed(server: Replica, user: str, timeout_s: float = 10.0) -> dict[str, Any]:
    await until(lambda: log_of(server, "stream closed", user), timeout_s, f"{user}'s stream closed")
    (line,) = log_of(server, "stream closed", user)
    return line


@asynccontextmanager
async def a_megabyte_per_second(server: Replica, topic: str) -> AsyncIterator[list[int]]:
    """Publish batches of `[number, moment, text]` meanwhile; the list holds the numbers accepted so far."""
    numbers: list[int] = []
    stop = asyncio.Event()

    async def publish() -> None:
        loop = asyncio.get_running_loop()
        headers = {"authorization": f"Bearer {PUBLISH_KEY}"}
        async with httpx.AsyncClient(headers=headers, trust_env=False) as http:
            at = loop.time()
            while not stop.is_set():
                batch = range(len(numbers), len(numbers) + BATCH)
                bodies = [
                    {"topic": topic, "type": "t", "data": [number, time.monotonic(), "x" * EVENT_BYTES]}
                    for number in batch
                ]
                assert (await http.post(f"{server.url}/api/publish", json=bodies)).status_code == 202
                numbers.extend(batch)
                at += 1 / BATCHES_PER_S
                await asyncio.sleep(max(0, at - loop.time()))

    task = asyncio.create_task(publish())
    try:
        yield numbers
    finally:
        stop.set()
        await task


@asynccontextmanager
async def reading(stream: Reader) -> AsyncIterator[list[float]]:
    """Read all the time meanwhile; the list grows by the seconds from publish to reading, per event."""
    values: list[float] = []

    async def read() -> None:
        while True:
            event = await stream.next("t")
            values.append(time.monotonic() - event.data[1])

    task = asyncio.create_task(read())
    try:
        yield values
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def tells(message: Message) -> bool:
    """Whether it says that events are missing."""
    return message.type == "stream.gap" or (message.type == "stream.open" and bool(message.data["resets"]))


def check_complete_or_told(messages: list[Message], before: int) -> None:
    """Each number after `before` came, in order and once, or a reset or gap stands where some are missing."""
    told = False
    for message in messages:
        if tells(message):
            told = True
        elif message.type == "t":
            number = message.data[0]
            assert number == before + 1 or (told and number > before), f"{before}, then {number}"
            before, told = number, False


# -- A reader that stops reading --------------------------------------------------------------------------------


async def test_a_reader_that_stops_at_a_megabyte_per_second_is_ended_and_costs_the_others_nothing(
    server: Replica,
) -> None:
    """The same load is measured without it and with it: peaks of memory, and how long another reader waits."""
    closed_before = server.metric("allim_streams_closed_total", reason="slow_reader")
    async with (
        a_megabyte_per_second(server, "system") as numbers,
        await Reader.open(server.url, token("quick")) as quick,
        reading(quick) as waits_s,
    ):
        await asyncio.sleep(WARM_UP_S)
        forget_peak(server)
        waits_s.clear()
        await asyncio.sleep(MEASURED_S)
        healthy_kib, healthy_s = peak_kib(server), waits_s.copy()

        forget_peak(server)
        waits_s.clear()
        async with await Reader.open(server.url, token("frozen"), receive_bytes=TINY) as frozen:
            await frozen.next("t")  # and reads no more
            last = next(message for message in reversed(frozen.messages) if message.type == "t")
            stopped_at = time.monotonic()
            await asyncio.sleep(MEASURED_S)
            beside_kib, beside_s = peak_kib(server), waits_s.copy()
            line = await until_logged_closed(server, "frozen")
            assert (line["reason"], line["topics"]) == ("slow_reader", ["user:frozen", "system"])
            assert server.metric("allim_streams_closed_total", reason="slow_reader") == closed_before + 1

            async with await Reader.open(server.url, token("frozen"), last_event_id=last.id) as returned:
                await _read_to(returned, numbers[-1])
            check_complete_or_told(returned.messages, last.data[0])

            await until(lambda: held(server.port, own_port(frozen)) is None, 30, "its socket gone")
            gone_s = time.monotonic() - stopped_at

    p99 = [1000 * quantile(values, 0.99) for values in (healthy_s, beside_s)]
    _show(
        f"socket gone after {gone_s:.2f} s; peak {healthy_kib} KiB, beside a frozen reader "
        f"{beside_kib - healthy_kib:+d} KiB; p99 {p99[0]:.1f} ms, then {p99[1]:.1f} ms"
    )
    assert beside_kib - healthy_kib < 1024
    assert p99[1] < 3 * p99[0] + 100


async def _read_to(stream: Reader, number: int) -> None:
    while (await stream.next("t")).data[0] < number:
        pass


async def test_readers_that_stop_one_after_the_other_leave_no_memory_behind(server: Replica) -> None:
    async def stop_one(name: str) -> None:
        async with await Reader.open(server.url, token(name), receive_bytes=TINY) as frozen:
            await frozen.next("stream.open")  # and reads no more
            await until_logged_closed(server, name, 60)

    async with a_megabyte_per_second(server, "system"):
        for number in range(2):
            await stop_one(f"warm-{number}")
        forget_peak(server)
        before_kib = peak_kib(server)
        for number in range(5):
            await stop_one(f"one-of-many-{number}")
        grown_kib = peak_kib(server) - before_kib

    _show(f"five frozen readers, one after the other: {grown_kib:+d} KiB")
    assert grown_kib < 1024


async def test_a_reader_at_a_kilobyte_per_second_stays_open_for_longer_than_the_kernel_waits(server: Replica) -> None:
    async with await Reader.open(server.url, token("slow-reader"), receive_bytes=TINY) as slow:
        async with a_megabyte_per_second(server, "user:slow-reader"):
            began = time.monotonic()
            while time.monotonic() - began < USER_TIMEOUT_S + 15:
                await slow.sip(1000)
                await asyncio.sleep(1)

        assert log_of(server, "stream closed", "slow-reader") == []
        check_complete_or_told(slow.messages, -1)


# -- A reader nobody hears of -----------------------------------------------------------------------------------


async def test_a_frozen_and_a_vanished_reader_are_freed_when_the_kernel_gives_them_up(server: Replica) -> None:
    """Only heartbeats flow, far too few to fill a buffer: the user timeout of the kernel finds both."""
    async with (
        await Reader.open(server.url, token("frozen-idle"), receive_bytes=TINY) as frozen,
        await Reader.open(server.url, token("vanished")) as vanished,
        await Reader.open(server.url, token("healthy")) as healthy,
    ):
        for stream in (frozen, vanished, healthy):
            await stream.next("heartbeat")
        server.publish(("user:frozen-idle", "t", "x" * 16_000))  # fills its window; from now on heartbeats alone
        vanish(vanished)
        began = time.monotonic()

        async def freed_after_s(stream: Reader, user: str) -> float:
            line = await until_logged_closed(server, user, USER_TIMEOUT_S + HEARTBEAT_S + 10)
            took_s = time.monotonic() - began
            assert line["topics"] == [f"user:{user}", "system"]
            assert held(server.port, own_port(stream)) is None
            _show(f"{user}: freed after {took_s:.1f} s as {line['reason']}")
            return took_s

        took_s = await asyncio.gather(freed_after_s(frozen, "frozen-idle"), freed_after_s(vanished, "vanished"))
        await healthy.next("heartbeat")

    assert max(took_s) < USER_TIMEOUT_S + HEARTBEAT_S + 3  # the kernel looks at its next probe


# -- A reader that ends or speaks -------------------------------------------------------------------------------


def half_close(stream: Reader) -> None:
    stream.writer.write_eof()


def reset(stream: Reader) -> None:
    sock = stream.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.abort()


def ask_again(stream: Reader) -> None:
    stream.writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")


def speak(stream: Reader) -> None:
    stream.writer.write(b"\0")


@pytest.mark.parametrize(
    ("portable", "act", "reason"),
    [
        (False, half_close, "client_left"),
        (False, reset, "client_left"),
        (False, ask_again, "client_spoke"),
        (False, speak, "client_spoke"),
        (True, half_close, "client_left"),
        (True, reset, "client_left"),
    ],
)
async def test_a_reader_that_ends_or_speaks_is_freed_at_once_and_the_log_says_why(
    server: Replica, portable_server: Replica, portable: bool, act: Callable[[Reader], None], reason: str
) -> None:
    """What a client says after its request ends the stream by handover only; elsewhere the ASGI server keeps it."""
    asked = portable_server if portable else server
    user = act.__name__
    closed_before = asked.metric("allim_streams_closed_total", reason=reason)
    async with await Reader.open(asked.url, token(user)) as stream:
        await stream.next("stream.open")
        act(stream)

        await until(lambda: asked.metric("allim_streams_closed_total", reason=reason) == closed_before + 1, 10)
        if not portable:  # elsewhere the server's log has a form of its own
            (line,) = log_of(asked, "stream closed", user)
            assert (line["reason"], line["topics"]) == (reason, [f"user:{user}", "system"])


@pytest.fixture(scope="module")
def portable_server() -> Iterator[Replica]:
    with replica(portable=True, heartbeat_s=HEARTBEAT_S, pulse_s=0.2) as running:
        yield running


# -- A reader that is too slow for its own return -----------------------------------------------------------------


@pytest.mark.parametrize("history_events", [64, 5000], ids=["history too short", "history long enough"])
async def test_a_return_at_a_kilobyte_per_second_under_load_is_complete_or_told(
    redis: Redis, history_events: int
) -> None:
    """Catch-up waits for the reader, history goes on without it. Over Redis, where what is read is held anew."""
    settings: dict[str, Any] = {
        "redis_url": redis.url,
        "redis_prefix": f"slow-{history_events}",
        "history_events": history_events,
    }
    with replica(**settings) as server:
        async with await Reader.open(server.url, token("slow")) as stream:
            first = await stream.next("stream.open")
        async with a_megabyte_per_second(server, "user:slow") as numbers:
            await until(lambda: len(numbers) >= 400)
            forget_peak(server)
            before_kib = peak_kib(server)
            async with await Reader.open(
                server.url, token("slow"), last_event_id=first.id, receive_bytes=TINY
            ) as slow:
                for _ in range(3):
                    await slow.sip(1000)
                    await asyncio.sleep(1)
                grown_kib = peak_kib(server) - before_kib
                with suppress(EOFError, ConnectionError):  # it may be slower than the live events, and is ended then
                    await _read_to(slow, numbers[-1])
            async with await Reader.open(server.url, token("slow"), last_event_id=slow.messages[-1].id) as quick:
                await _read_to(quick, numbers[-1])

        messages = slow.messages + quick.messages
        check_complete_or_told(messages, -1)
        told = [message.data for message in messages if tells(message)]

    _show(f"a slow return over {history_events} events of history: {grown_kib:+d} KiB, told {len(told)} times")
    assert grown_kib < 3 * 1024
    assert bool(told) == (history_events < 400)


def _show(line: str) -> None:
    print(line)  # noqa: T201 - shown by `pytest -s`, and with every failure
