"""nchan, C inside nginx: no application at all, publishers and streams meet in the web server.

Two ways to keep messages: in nginx's shared memory (one machine, gone with nginx), and in Redis, shared by several nginx;
the second does what allim does. Streams are multiplexed: a user's channel and everyone's. One worker process.
In its favour: no sign-in, no access log, no application behind it, no heartbeat (nchan's default).
"""

import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from bench.contender import Contender, Running
from bench.peers import wire
from bench.peers.environments import debian, program
from bench.peers.processes import children, output, process
from tests.servers import lasting_port

CONFIGURATION = """\
load_module {module};
daemon off;
pid nginx.pid;
worker_processes 1;
worker_rlimit_nofile 20000;
error_log stderr error;

events {{
    worker_connections 20000;
}}

http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path       unused;
    fastcgi_temp_path     unused;
    uwsgi_temp_path       unused;
    scgi_temp_path        unused;
    keepalive_requests 1000000;        # a publisher keeps its connection; the default closes it after 1,000
    nchan_shared_memory_size 512m;     # the default 128m cannot hold 256 messages for each of 10,000 users
    nchan_message_buffer_length 256;
    nchan_message_timeout 1h;
    {upstream}

    server {{
        listen 127.0.0.1:{port} backlog=4096;
        {store}

        location ~ ^/events/([0-9]+)$ {{
            nchan_subscriber eventsource;
            nchan_channel_id user:$1 everyone;
            nchan_subscriber_first_message newest;
        }}
        location ~ ^/publish/(.+)$ {{
            nchan_publisher;
            nchan_channel_id $1;
        }}
    }}
}}
"""


@contextmanager
def in_memory(folder: Path, redis_url: str) -> Iterator[Running]:
    """It needs no Redis."""
    with _nginx(folder, upstream="", store="") as running:
        yield running


@contextmanager
def in_redis(folder: Path, redis_url: str) -> Iterator[Running]:
    upstream = f"upstream redis {{ nchan_redis_server {redis_url}; }}"
    with _nginx(folder, upstream=upstream, store="nchan_redis_pass redis;") as running:
        yield running


@contextmanager
def _nginx(folder: Path, **parts: str) -> Iterator[Running]:
    debian("nginx-light", "libnginx-mod-nchan")
    port = lasting_port()
    (folder / "nginx.conf").write_text(CONFIGURATION.format(module=_module(), port=port, **parts))
    if os.geteuid() == 0:
        folder.chmod(0o711)  # the worker runs as nobody and has to reach its temporary files
    command = [program("nginx"), "-e", "stderr", "-p", str(folder), "-c", "nginx.conf"]

    def publish(user: str | int | None, events: Sequence[object]) -> bytes:
        [event] = events
        channel = "everyone" if user is None else f"user:{user}"
        return wire.post(port, f"/publish/{channel}", wire.compact(event), {"X-EventSource-Event": "bench"})

    with process(command, folder, port, ready=lambda: _stores(port)) as master:
        yield Running(
            port, lambda: children(master.pid), lambda user: wire.get(port, f"/events/{user}"), publish, (201, 202)
        )


def _stores(port: int) -> bool:
    """Whether a publish is taken; before it has reached its Redis it is not."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as probe:
        probe.sendall(wire.post(port, "/publish/probe", b"{}"))
        return probe.recv(64).startswith(b"HTTP/1.1 20")


def _module() -> Path:
    built = output(program("nginx"), "-V")
    folder = re.search(r"--modules-path=(\S+)", built)
    assert folder, built
    return Path(folder[1]) / "ngx_nchan_module.so"


@cache
def versions() -> str:
    debian("nginx-light", "libnginx-mod-nchan")
    nginx = output(program("nginx"), "-v").rpartition("/")[2]
    return f"nchan {output('dpkg-query', '-W', '-f', '${Version}', 'libnginx-mod-nchan')}, nginx {nginx}"


CAN = frozenset({"idle", "broadcast", "publish", "paced"})  # one message per request over HTTP

IN_MEMORY = Contender(
    name="nchan, its own memory", start=in_memory, can=CAN, versions=versions, command="nginx -p folder -c nginx.conf"
)
IN_REDIS = Contender(
    name="nchan over Redis", start=in_redis, can=CAN, versions=versions, command="nginx -p folder -c nginx.conf"
)
