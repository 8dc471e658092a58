"""Whether each peer does what it is measured for.

    python -m bench.peers

Starts each one twice over one Redis, opens one user's stream on the first process and another's on the second,
publishes to one of them and to everyone, and compares what comes. What has no Redis is started once.
"""

import asyncio
import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.servers import redis_server

from bench.contender import Contender, Running
from bench.peers import PEERS
from bench.peers.nchan import IN_MEMORY, PLAIN
from bench.peers.pushpin import PUSHPIN

WAIT_S = 10.0
SILENCE_S = 0.5
SETTLE_S = 1.0  # nchan answers before its subscription stands in Redis; what comes meanwhile, the stream misses

Link = tuple[asyncio.StreamReader, asyncio.StreamWriter]

# The head of a chunk may stand between two short events, never inside one.
DATA = re.compile(rb"^data: (.*?)\r?$", re.MULTILINE)


async def check(peer: Contender, here: Running, there: Running) -> None:
    """Raises: AssertionError when a stream gets anything but what was published to it, each once and as it was.

    Order is not compared: over Redis, nchan does not keep it between the channels of a stream.
    """
    first, second = await asyncio.gather(open_stream(here, 1), open_stream(there, 2))
    one, everyone, two, more = ({"n": n, "t": 10**15 + n, "p": "é" * 8} for n in range(4))
    await asyncio.sleep(SETTLE_S)
    publisher = await asyncio.open_connection("127.0.0.1", here.host_port)
    to_first, to_second = [everyone], [everyone]

    await publish(publisher, here, None, [everyone])
    if "publish" in peer.can:
        await publish(publisher, here, 1, [one])
        to_first.append(one)
    if "batch" in peer.can:
        await publish(publisher, here, 2, [two, more])
        to_second += [two, more]

    assert await received(first, len(to_first)) == texts(to_first)
    assert await received(second, len(to_second)) == texts(to_second)
    assert here.pids()
    for _, writer in (first, second, publisher):
        writer.close()


async def open_stream(running: Running, user: int) -> Link:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.host_port)
    writer.write(running.stream_request(user))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
    assert head.startswith(b"HTTP/1.1 200 "), head
    assert b"text/event-stream" in head.lower(), head
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
    """The data lines of so many events and of whatever follows them shortly after, sorted."""
    read = b""
    async with asyncio.timeout(WAIT_S):
        while len(DATA.findall(read)) < expected:
            read += await link[0].read(65_536)
    try:
        async with asyncio.timeout(SILENCE_S):
            read += await link[0].read(65_536)
    except TimeoutError:
        pass
    return sorted(DATA.findall(read))


def texts(events: Sequence[object]) -> list[bytes]:
    return sorted(json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() for event in events)


def processes(peer: Contender) -> int:
    return 1 if peer in (IN_MEMORY, PLAIN, PUSHPIN) else 2


def try_out(peer: Contender) -> None:
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server())
        folders = [stack.enter_context(TemporaryDirectory(prefix="allim-peer-")) for _ in range(processes(peer))]
        here, *others = [stack.enter_context(peer.start(Path(folder), redis.url)) for folder in folders]
        asyncio.run(check(peer, here, others[0] if others else here))
    print(f"OK  {peer.name}: {peer.versions()}", flush=True)


if __name__ == "__main__":
    for peer in PEERS:
        try_out(peer)
