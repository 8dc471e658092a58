"""One replica's sockets."""

import subprocess
import sys

_TWO = """
import asyncio
from types import SimpleNamespace
from allim.server import replica

async def leave(seconds): ...

class App:
    state = SimpleNamespace(
        leave=leave, refused=print, fast_path=lambda look_through: SimpleNamespace(answer=None, paths=())
    )

    async def __call__(self, scope, receive, send):
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            print(message["type"], flush=True)
            if message["type"] == "lifespan.shutdown":
                return

first = replica.listen("127.0.0.1", 0)
second = replica.listen(*first.getsockname())
first.listen()
settings = SimpleNamespace(drain_s=1, trusted_proxies=(), clustered=False, connections_per_address=10)
replica.serve(App(), settings, second)
"""


def test_who_finds_the_address_taken_when_it_begins_to_listen_ends() -> None:
    done = subprocess.run([sys.executable, "-c", _TWO], capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert "cannot listen" in done.stdout + done.stderr
    assert "lifespan.shutdown" in done.stdout
