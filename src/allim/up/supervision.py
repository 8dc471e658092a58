"""supervisord: its configuration, and the process that runs it. It starts, restarts and stops all others."""

import ctypes
import math
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path

from allim.up.layout import LOOPBACK, Layout, address, named_replicas, write_private
from allim.up.nginx import nginx_command, write_nginx

STOP_MARGIN_S = 20  # for a replica's work under way and its last frames, after the drain
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def write_files(
    folder: Path,
    layout: Layout,
    drain_s: float,
    *,
    redis: str | None,
    nginx: str,
    origins: Sequence[str] = (),
    trusted: Sequence[str] = (),
) -> None:
    """Lay out the folder: `supervisord.conf`, `redis/` and `nginx/`."""
    (folder / "redis").mkdir(mode=0o700)  # its working folder, in which it writes nothing
    servers = [address(LOOPBACK, port) for port in layout.replica_ports]
    listen = address(layout.host, layout.port)
    write_nginx(folder / "nginx", listen=listen, servers=servers, origins=origins, trusted=trusted)
    write_private(folder / "supervisord.conf", supervisord_conf(folder, layout, drain_s, redis=redis, nginx=nginx))


def supervisord_conf(folder: Path, layout: Layout, drain_s: float, *, redis: str | None, nginx: str) -> str:
    """supervisord's configuration. It starts by rising priority and stops by falling priority.

    The replicas form one group, so that they drain at the same time and not one after the other.
    """
    root = {"user": "root"} if os.geteuid() == 0 else {}  # without it, supervisord warns at each start
    sections = {
        "supervisord": {
            "nodaemon": "true",
            "logfile": "/dev/null",
            "logfile_maxbytes": "0",
            "loglevel": "warn",  # logs a replica that died, but no start and stop
            "pidfile": str(folder / "supervisord.pid").replace("%", "%%"),
            **root,
        }
    }
    if redis:
        command = [redis, "--port", "0", "--unixsocket", str(layout.redis_socket), "--unixsocketperm", "700"]
        command += ["--dir", str(folder / "redis")]
        command += ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction", "--loglevel", "warning"]
        sections["program:redis"] = {**_program(command, stop_within_s=5), "priority": "10"}
    command = nginx_command(nginx, folder / "nginx")
    # QUIT lets requests under way end; by then the replicas, and with them all streams, are gone.
    sections["program:nginx"] = {**_program(command, stop_within_s=5), "stopsignal": "QUIT", "priority": "20"}
    for name, port in named_replicas(layout.replica_ports):
        command = [sys.executable, "-m", "allim", "serve", "--host", LOOPBACK, "--port", str(port)]
        sections[f"program:{name}"] = {
            **_program(command, stop_within_s=math.ceil(drain_s) + STOP_MARGIN_S),
            "environment": f'ALLIM_SERVER_ID="{name}"',
        }
    names = ",".join(name for name, _ in named_replicas(layout.replica_ports))
    sections["group:replicas"] = {"programs": names, "priority": "30"}
    return "\n".join(
        f"[{title}]\n" + "".join(f"{key}={value}\n" for key, value in section.items())
        for title, section in sections.items()
    )


def _program(command: Sequence[str], *, stop_within_s: int) -> dict[str, str]:
    return {
        "command": " ".join(_escape(shlex.quote(word)) for word in command),
        "autorestart": "true",
        "startsecs": "1",
        "startretries": "60",  # each waits a second longer than the one before: half an hour
        "stopwaitsecs": str(stop_within_s),
        "killasgroup": "true",  # nginx's workers do not outlive a killed master
        "stdout_logfile": "/dev/fd/1",
        "stdout_logfile_maxbytes": "0",  # it is a pipe, which cannot be rotated
        "redirect_stderr": "true",
    }


def _escape(text: str) -> str:
    """Escape text for supervisord, which expands `%` and takes ` #` and ` ;` for comments, also inside quotes."""
    text = text.replace("%", "%%")
    return re.sub(r"[#;]", lambda found: f"'\"{found[0]}\"'", text) if text.startswith("'") else text


def end_session(session: int) -> None:
    """Kill processes that supervisord left in its session: normally none, and never the caller."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        left = [pid for pid in processes_in_session(session) if pid != os.getpid()]
        if not left:
            return
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def processes_in_session(session: int) -> Iterator[int]:
    """Yield the living processes of a session, from /proc."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # After the name, which may hold anything and ends with `)`: state, parent, group, session (proc(5)).
            state, _, _, its_session = stat.read_text(errors="replace").rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                yield int(stat.parent.name)


def supervise(folder: Path, parent: int) -> None:
    """Run supervisord. If `run` is killed, stop all in order and remove the folder."""
    from supervisor import supervisord  # only this process needs it

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        # When `run` is killed, standard output is closed; supervisor would report that to stderr and fail there.
        with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
            if os.getppid() == parent:  # else it died before the signal was set
                supervisord.main(["-c", str(folder / "supervisord.conf")])
    finally:
        end_session(os.getsid(0))
        shutil.rmtree(folder, ignore_errors=True)
