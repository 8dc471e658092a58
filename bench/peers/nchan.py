"""nchan, C inside nginx: no application at all, publishers and streams meet in the web server.

Messages are kept in nginx's shared memory (one machine, gone with nginx) or in Redis, where several nginx share them;
only the second does what allim does. Streams are multiplexed: a user's channel and everyone's. nchan makes a channel
of its own of each such pair, so there is a third contender whose streams have nothing but everyone's channel: that is
nchan at its cheapest, and it reaches no single user. One worker process, which is what is measured.
In its favour: no sign-in, no access log, no application behind it, no heartbeat (nchan's default).
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from harness.servers import lasting_port

from bench.contender import Contender, Running
from bench.peers import requests
from bench.peers.environments import debian, program
from bench.peers.nginx import FOLDERS, nginx
from bench.peers.processes import children, output

MULTIPLEXED = "user:$1 everyone"
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
    {folders}
    keepalive_requests 1000000;        # a publisher keeps its connection; the default closes it after 1,000
    nchan_shared_memory_size 512m;     # the default 128m cannot hold 256 messages for each of 10,000 users
    nchan_message_buffer_length 256;
    nchan_message_timeout 1h;
    {upstream}

    server {{
        listen 127.0.0.1:{port} backlog=4096;

        location ~ ^/events/([0-9]+)$ {{
            nchan_subscriber eventsource;
            nchan_channel_id {channels};
            nchan_subscriber_first_message newest;
            {store}
        }}
        location ~ ^/publish/(.+)$ {{
            nchan_publisher;
            nchan_channel_id $1;
            {store}
        }}
    }}
}}
"""


@contextmanager
def in_memory(folder: Path, redis_url: str) -> Iterator[Running]:
    """It needs no Redis."""
    with _nginx(folder, MULTIPLEXED) as running:
        yield running


@contextmanager
def plain(folder: Path, redis_url: str) -> Iterator[Running]:
    """As `in_memory`, but a stream has one channel."""
    with _nginx(folder, "everyone") as running:
        yield running


@contextmanager
def in_redis(folder: Path, redis_url: str) -> Iterator[Running]:
    upstream = f"upstream redis {{ nchan_redis_server {redis_url}; }}"
    with _nginx(folder, MULTIPLEXED, upstream, "nchan_redis_pass redis;") as running:
        yield running


@contextmanager
def _nginx(folder: Path, channels: str, upstream: str = "", store: str = "") -> Iterator[Running]:
    debian("nginx-light", "libnginx-mod-nchan")
    port = lasting_port()
    configuration = CONFIGURATION.format(
        module=_module(), port=port, folders=FOLDERS, channels=channels, upstream=upstream, store=store
    )

    def stream(user: int) -> bytes:
        return requests.get(port, f"/events/{user}")

    def publish(user: str | int | None, events: Sequence[object]) -> bytes:
        [event] = events
        channel = "everyone" if user is None else f"user:{user}"
        return requests.post(port, f"/publish/{channel}", requests.compact(event), {"X-EventSource-Event": "bench"})

    def stores() -> bool:
        """Before it has reached its Redis, nchan refuses to publish."""
        return requests.accepted(port, publish("probe", [{}]))

    with nginx(folder, port, configuration, stores) as master:
        yield Running(port, lambda: children(master.pid), stream, publish, (201, 202))


def _module() -> Path:
    built = output(program("nginx"), "-V")
    folder = re.search(r"--modules-path=(\S+)", built)
    assert folder, built
    return Path(folder[1]) / "ngx_nchan_module.so"


@cache
def versions() -> str:
    debian("nginx-light", "libnginx-mod-nchan")
    server = output(program("nginx"), "-v").rpartition("/")[2]
    return f"nchan {output('dpkg-query', '-W', '-f', '${Version}', 'libnginx-mod-nchan')}, nginx {server}"


PUBLISHING = frozenset({"idle", "broadcast", "publish", "paced"})  # one message per request over HTTP
COMMAND = "nginx -p folder -c nginx.conf (bench/peers/nchan.py)"

IN_MEMORY = Contender("nchan, own memory", in_memory, PUBLISHING, versions, COMMAND)
IN_REDIS = Contender("nchan over Redis", in_redis, PUBLISHING, versions, COMMAND)
PLAIN = Contender("nchan, own memory, one channel", plain, frozenset({"idle", "broadcast"}), versions, COMMAND)
