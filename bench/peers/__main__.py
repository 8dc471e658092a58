"""Whether each peer does what it is measured for.

    python -m bench.peers

Starts each one, opens the streams of two users, publishes to one of them and to everyone, and compares what comes.
"""

import asyncio
import json
import re
import sys
import tempfile
from pathlib import Path

from bench.contender import Contender, Running
from bench.peers import PEERS
from tests.servers import redis_server

WAIT_S = 10.0
SILENCE_S = 0.5

Link = tuple[asyncio.StreamReader, asyncio.StreamWriter]

# The head of a chunk may stand between two events, never inside one of these short ones.
DATA = re.compile(rb"^data: (.*?)\r?$", re.MULTILINE)


async def check(running: Running, *, batch: bool) -> None:
    """Raises: AssertionError when a stream gets anything but what was published to it, in order and as it was."""
    first, second = await asyncio.gather(open_stream(running, 1), open_stream(running, 2))
    publisher = await asyncio.open_connection("127.0.0.1", running.host_port)
    one, all_, three = ({"n": n, "t": 10**15 + n, "p": "é" * 8} for n in (1, 2, 3))
    await publish(publisher, running, 1, [one])
    await publish(publisher, running, None, [all_])
    if batch:
        await publish(publisher, running, 2, [three, one])

    assert await received(first, 2) == texts(one, all_)
    assert await received(second, 3 if batch else 1) == (texts(all_, three, one) if batch else texts(all_))
    assert len(running.pids()) >= 1
    for _, writer in (first, second, publisher):
        writer.close()


async def open_stream(running: Running, user: int) -> Link:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.host_port)
    writer.write(running.stream_request(user))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
    assert head.startswith(b"HTTP/1.1 200 ") and b"text/event-stream" in head.lower(), head
    return reader, writer


async def publish(link: Link, running: Running, user: int | None, events: list[object]) -> None:
    """Raises: AssertionError when the answer is not the promised one."""
    reader, writer = link
    writer.write(running.publish_request(user, events))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
    good = running.answer_ok if isinstance(running.answer_ok, tuple) else (running.answer_ok,)
    assert int(head.split()[1]) in good, head
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    assert length, head
    await reader.readexactly(int(length[1]))


async def received(link: Link, expected: int) -> list[bytes]:
    """The data lines of so many events, and of whatever follows them shortly after."""
    read = b""
    async with asyncio.timeout(WAIT_S):
        while len(DATA.findall(read)) < expected:
            read += await link[0].read(65_536)
    try:
        async with asyncio.timeout(SILENCE_S):
            read += await link[0].read(65_536)
    except TimeoutError:
        pass
    return DATA.findall(read)


def texts(*events: object) -> list[bytes]:
    return [json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() for event in events]


def try_out(peer: Contender) -> None:
    with redis_server() as redis, tempfile.TemporaryDirectory(prefix="allim-peer-") as folder:
        with peer.start(Path(folder), redis.url) as running:
            asyncio.run(check(running, batch="batch" in peer.can))
    print(f"OK  {peer.name}: {peer.versions()}", flush=True)


if __name__ == "__main__":
    wanted = sys.argv[1:]
    for peer in PEERS:
        if not wanted or any(word in peer.name for word in wanted):
            try_out(peer)
