"""The application under ASGI servers other than uvicorn: a signal drains its streams."""

import asyncio
import time

import pytest

from tests.replicas import Reader, replica, token
from tests.waiting import START_S, until

pytestmark = pytest.mark.anyio

DRAIN_S = 3
SERVERS = {
    "granian, uvloop": "granian --interface asgi --loop uvloop --factory allim.app:create_app",
    "granian, asyncio": "granian --interface asgi --loop asyncio --factory allim.app:create_app",
    "hypercorn": "tests.transports.hypercorn",
}


@pytest.mark.parametrize("program", SERVERS.values(), ids=SERVERS)
async def test_sigterm_drains_the_streams_of_another_server(program: str) -> None:
    with replica(program=program, drain_s=DRAIN_S) as server:
        streams = [await Reader.open(server.url, token(str(number))) for number in range(10)]
        for stream in streams:
            await stream.next("stream.open")

        began = time.monotonic()
        server.process.terminate()

        async def ended(stream: Reader) -> float:
            assert (await stream.rest())[-1].data == {"reason": "drain", "reconnect": True}
            stream.abort()
            return time.monotonic() - began

        moments = await asyncio.gather(*map(ended, streams))
        await until(lambda: server.process.poll() is not None, START_S, "exit")
        assert max(moments) - min(moments) > 0.2, "all at once"
        assert server.process.returncode == 0
