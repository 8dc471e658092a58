"""Pushpin (Rust and C++), the open part of Fastly Fanout: a proxy that holds streams for whoever stands behind it.

Behind it stands an nginx that names the channels of each stream and says nothing else. Pushpin has no history of its
own and no Redis: publishers tell each instance. They do so on a port of their own; here their requests come in
through its proxy, which says nothing of what a publish costs, so only streams are compared. It is four processes.
In its favour: no sign-in, no log, no keep-alive frames, its limit of 2,500 messages/s lifted, the origin not counted.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from harness.servers import lasting_port

from bench.contender import Contender, Running
from bench.peers import requests
from bench.peers.environments import debian, program
from bench.peers.nginx import FOLDERS, nginx
from bench.peers.processes import children, output, process

CONFIGURATION = """\
[global]
include=/usr/lib/pushpin/internal.conf
libdir=/usr/lib/pushpin
rundir={folder}
ipc_prefix=
port_offset=0

[runner]
services=condure,zurl,pushpin-proxy,pushpin-handler
http_port=127.0.0.1:{port}
logdir={folder}
log_level=1
client_buffer_size=8192
client_maxconn=20000

[proxy]
routesfile={folder}/routes
updates_check=off
# Debian's default is a zurl of the whole machine.
zurl_out_specs=ipc://{folder}/zurl-in
zurl_out_stream_specs=ipc://{folder}/zurl-in-stream
zurl_in_specs=ipc://{folder}/zurl-out

[handler]
push_in_spec=ipc://{folder}/push
push_in_sub_specs=ipc://{folder}/push-sub
push_in_http_addr=127.0.0.1
push_in_http_port={control_port}
push_in_http_max_body_size=1000000
command_spec=ipc://{folder}/command
stats_spec=ipc://{folder}/stats
message_rate=1000000
message_hwm=1000000
"""
ORIGIN = """\
daemon off;
pid nginx.pid;
worker_processes 1;
error_log stderr error;
events {{
    worker_connections 4096;
}}
http {{
    access_log off;
    {folders}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location ~ ^/events/([0-9]+)$ {{
            default_type text/event-stream;
            add_header Grip-Hold stream;
            add_header Grip-Channel "user:$1, everyone";
            return 200 "";
        }}
    }}
}}
"""


@contextmanager
def start(folder: Path, redis_url: str) -> Iterator[Running]:
    """It needs no Redis."""
    debian("nginx-light", "pushpin")
    port, control_port, origin_port = lasting_port(), lasting_port(), lasting_port()
    configuration = CONFIGURATION.format(folder=folder, port=port, control_port=control_port)
    (folder / "pushpin.conf").write_text(configuration)
    (folder / "routes").write_text(f"*,path_beg=/publish/ 127.0.0.1:{control_port}\n* 127.0.0.1:{origin_port}\n")
    (folder / "origin").mkdir()
    origin = ORIGIN.format(port=origin_port, folders=FOLDERS)

    def stream(user: int) -> bytes:
        return requests.get(port, f"/events/{user}")

    def publish(user: str | int | None, events: Sequence[object]) -> bytes:
        channel = "everyone" if user is None else f"user:{user}"
        frames = [f"event: bench\ndata: {requests.compact(event).decode()}\n\n" for event in events]
        items = [{"channel": channel, "formats": {"http-stream": {"content": frame}}} for frame in frames]
        return requests.post(port, "/publish/", requests.compact({"items": items}))

    def ready() -> bool:
        """Its parts find each other one by one, so both ways through them are tried."""
        return requests.accepted(port, publish("probe", [{}])) and requests.accepted(port, stream(0))

    with (
        nginx(folder / "origin", origin_port, origin),
        process(
            [program("pushpin"), "--config", str(folder / "pushpin.conf")],
            folder,
            port,
            ready=ready,
        ) as runner,
    ):
        yield Running(port, lambda: children(runner.pid), stream, publish, 200)


@cache
def versions() -> str:
    debian("nginx-light", "pushpin")
    return output(program("pushpin"), "--version")


PUSHPIN = Contender(
    "Pushpin",
    start,
    frozenset({"idle", "broadcast"}),
    versions,
    "pushpin --config pushpin.conf (bench/peers/pushpin.py)",
)
