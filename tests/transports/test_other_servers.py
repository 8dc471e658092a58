"""The application under ASGI servers other than uvicorn: a signal drains its streams."""

import pytest
from harness.replicas import moments_of_drain, replica
from harness.waiting import START_S, until

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
        moments = await moments_of_drain(server, 10)
        await until(lambda: server.process.poll() is not None, START_S, "exit")
        assert max(moments) - min(moments) > 0.2, "all at once"
        assert server.process.returncode == 0
