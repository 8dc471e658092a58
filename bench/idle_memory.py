"""Memory of an idle stream: signed-in, over Redis, each with its own topic; handover and portable side by side.

    python -m bench.idle_memory [--streams 5000]

Resident memory of the replica process is read before the streams open and after all have got their first frame and a
heartbeat round has passed; the difference is divided by their number. Kernel socket memory is not in it.
"""

import asyncio
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.replicas import Reader, Replica, replica, token
from tests.servers import redis_server

AT_ONCE = 50
ROUND_S = 6.0  # a heartbeat round of one beat


async def hold_open(server: Replica, streams: int) -> tuple[int, int, float]:
    """Open that many streams; KiB before and after, and how many were opened per second."""
    warm = [await Reader.open(server.url, token(f"warm-{number}")) for number in range(50)]
    for reader in warm:
        await reader.next("stream.open")
        reader.abort()
    await asyncio.sleep(1)
    before = server.rss_kib()
    gate = asyncio.Semaphore(AT_ONCE)

    async def open_one(number: int) -> Reader:
        async with gate:
            reader = await Reader.open(server.url, token(f"user-{number}"))
            await reader.next("stream.open", 60)
            return reader

    loop = asyncio.get_running_loop()
    began = loop.time()
    readers = await asyncio.gather(*(open_one(number) for number in range(streams)))
    per_second = streams / (loop.time() - began)
    await asyncio.sleep(ROUND_S)
    after = server.rss_kib()
    assert server.metric("allim_streams_open") == streams
    for reader in readers:
        reader.abort()
    return before, after, per_second


@click.command()
@click.option("--streams", default=5000, show_default=True)
def main(streams: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(
        f"{platform.machine()}, Python {platform.python_version()}, uvicorn {version('uvicorn')}, {streams} streams"
    )
    print(f"{'way':<10}{'KiB before':>12}{'KiB after':>12}{'KiB per stream':>16}{'opened per s':>14}")
    for way in ("handover", "portable"):
        with (
            redis_server() as redis,
            replica(portable=way == "portable", redis_url=redis.url, heartbeat_s=5, stream_lifetime_s=3600) as server,
        ):
            before, after, per_second = asyncio.run(hold_open(server, streams))
        print(f"{way:<10}{before:>12}{after:>12}{(after - before) / streams:>16.2f}{per_second:>14.0f}")


if __name__ == "__main__":
    main()
