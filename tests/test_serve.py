"""One replica's sockets."""

import subprocess
import sys

_TWO = """
import asyncio
from types import SimpleNamespace
from allim import serve

async def leave(seconds): ...

class App:
    state = SimpleNamespace(
        leave=leave, refused=print, shortcuts=lambda look_through: SimpleNamespace(take=None, paths=())
    )

    async def __call__(self, scope, receive, send):
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            print(message["type"], flush=True)
            if message["type"] == "lifespan.shutdown":
                return

first = serve.listen("127.0.0.1", 0)
second = serve.listen(*first.getsockname())
first.listen()
settings = SimpleNamespace(drain_s=1, trusted_proxies=(), clustered=False, connections_per_address=10)
serve.serve(App(), settings, second)
"""


def test_who_finds_the_address_taken_when_it_begins_to_listen_ends() -> None:
    done = subprocess.run([sys.executable, "-c", _TWO], capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert "cannot listen" in done.stdout + done.stderr
    assert "lifespan.shutdown" in done.stdout
