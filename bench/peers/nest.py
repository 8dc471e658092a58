"""NestJS with ioredis and RxJS (`nestjs/main.ts`): the design this project grew out of.

`@Sse()` for each user, a Subject per user, one Redis Pub/Sub channel that every instance hears in full. A publish is
durable as allim's is: XADD to a capped stream and PUBLISH, in one pipeline. Express is Nest's default.
In its favour: production mode, no request log, no sign-in, no catch-up when a stream opens.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import lasting_port

from bench.contender import Contender, Running
from bench.peers import publication
from bench.peers.environments import nest, npm_versions
from bench.peers.processes import process


@contextmanager
def start(folder: Path, redis_url: str) -> Iterator[Running]:
    port = lasting_port()
    environ = {"NODE_ENV": "production", "PORT": str(port), "REDIS_URL": redis_url}
    main = nest()
    with process([shutil.which("node") or "node", str(main)], folder, port, environ=environ) as server:
        yield publication.running(port, lambda: [server.pid])


NEST = Contender(
    name="NestJS, ioredis, RxJS",
    start=start,
    can=frozenset({"idle", "broadcast", "publish", "batch", "paced"}),
    versions=lambda: npm_versions("@nestjs/core", "@nestjs/platform-express", "ioredis", "rxjs"),
    command="NODE_ENV=production PORT=… REDIS_URL=… node bench/peers/nestjs/dist/main.js",
)
