"""NestJS with ioredis and RxJS (`nestjs/main.ts`): the design this project grew out of.

`@Sse()` for each user, a Subject per user, one Redis Pub/Sub channel that every instance hears in full. A publish is
durable as allim's is: XADD to a capped stream and PUBLISH, in one pipeline. Measured twice: over Express, Nest's
default and what that design had, and over Fastify, which Nest's documentation offers for performance.
In its favour: production mode, no request log, no sign-in, no catch-up when a stream opens.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.servers import lasting_port

from bench.contender import Contender, Running
from bench.peers import publication
from bench.peers.environments import nest, npm_versions
from bench.peers.processes import process


@contextmanager
def _serve(folder: Path, redis_url: str, adapter: str) -> Iterator[Running]:
    port = lasting_port()
    environ = {"NODE_ENV": "production", "ADAPTER": adapter, "PORT": str(port), "REDIS_URL": redis_url}
    with process([shutil.which("node") or "node", str(nest())], folder, port, environ=environ) as server:
        yield publication.running(port, lambda: [server.pid])


def _contender(name: str, adapter: str) -> Contender:
    return Contender(
        name,
        start=lambda folder, redis_url: _serve(folder, redis_url, adapter),
        can=frozenset({"idle", "broadcast", "publish", "batch", "paced"}),
        versions=lambda: npm_versions("@nestjs/core", f"@nestjs/platform-{adapter}", "ioredis", "rxjs"),
        command=f"NODE_ENV=production ADAPTER={adapter} PORT=… REDIS_URL=… node bench/peers/nestjs/dist/main.js",
    )


NEST = _contender("NestJS", "express")
NEST_FASTIFY = _contender("NestJS on Fastify", "fastify")
