"""`allim up --replicas N`: Redis, N replicas and nginx on one port, on this machine, without Docker.

Three generations of processes. The one the user started (`run`) starts supervisord in a session of its own, so
that Ctrl-C reaches only `run`; supervisord starts, restarts and stops the rest in order. Stopping: first the
replicas, all at once, because their last words to each stream (`stream.close`) travel through nginx; then
nginx; then Redis.

Everything that is written lives in one private folder that is removed at the end. Secrets travel in the
environment only, never in a file or on a command line.

Knows no HTTP beyond "is it ready", and nothing of what a replica does.
"""

import asyncio
import ctypes
import http.client
import json
import math
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NamedTuple
from urllib.parse import quote, urlsplit, urlunsplit

import click

from allim import data_folder
from allim.alone import alone
from allim.settings import SettingsError, load_settings, own_secret

LOOPBACK = "127.0.0.1"
READY_WITHIN_S = 30.0
NGINX_FILES = 65_536  # open files wanted per nginx worker: two per stream
MOST_SOCKET_BYTES = 100  # of a socket's path; the kernel takes 107 (unix(7))
STOP_MARGIN_S = 20  # for a replica's work in hand and its goodbyes, after the drain
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class StartError(Exception):
    """Why it cannot start, in one line for the person at the terminal. Shape: `advice` is what to do, in another."""

    def __init__(self, detail: str, advice: str = "") -> None:
        super().__init__(detail)
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Layout:
    """Who listens where. `redis_socket` is that of the Redis to start, None where the user brought one along."""

    host: str
    port: int
    replica_ports: tuple[int, ...]
    redis_socket: Path | None
    redis_url: str

    def summary(self) -> str:
        """The block printed when all is ready; the form `name  address` is relied on by tests."""
        lines = [f"page       {_url(self.host, self.port)}/"]
        lines += [f"{name:<9}  {_url(LOOPBACK, port)}" for name, port in _named(self.replica_ports)]
        return "\n".join([*lines, f"redis      {without_password(self.redis_url)}", "Ctrl-C to stop"])


def run(replicas: int, host: str, port: int, environ: Mapping[str, str]) -> int:
    """Run until a signal says otherwise; return the exit code.

    SIGINT, SIGTERM and SIGHUP drain and stop everything and return 0; a second SIGINT ends everything at
    once. 1: it could not start, or supervisord was taken away. Call it on the main thread.
    """
    from allim.preflight import check  # supervisord, which runs this module too, has no use for its weight

    try:
        redis_url = environ.get("ALLIM_REDIS_URL")
        redis = None if redis_url else find_program("redis-server", environ)
        nginx = find_program("nginx", environ)
        layout = make_layout(replicas, host, port, redis_url, Path(environ.get("ALLIM_DATA_DIR") or "data"))
        shared = replica_environ(layout, environ)
        settings = load_settings(shared)  # a wrong value is told here, once, and not by every replica
        if settings.durability != "memory" and redis is not None:
            raise StartError(
                f"ALLIM_DURABILITY is {settings.durability}, and the Redis started here keeps nothing",
                "name a Redis of your own in ALLIM_REDIS_URL, or unset ALLIM_DURABILITY",
            )
        if open_folder := data_folder.tighten(settings.data_dir):
            click.echo(f"allim up: {open_folder}", err=True)
        asyncio.run(check(settings, redis=redis is None))
        drain_s = settings.drain_s
        # Two with a Redis each would have no events in common, on one database.
        own = nullcontext() if redis is None else alone(settings.data_dir)
        with own, _Stop(drain_s) as stop, private_folder() as folder:
            front = {"origins": settings.cors_origins, "trusted": proxies_in_front(environ, shared)}
            write_files(folder, layout, drain_s, redis=redis, nginx=nginx, **front)
            check_nginx(nginx, folder / "nginx")
            return _supervised(folder, layout, shared, stop)
    except (StartError, SettingsError) as why:
        click.echo(f"allim up: {why}", err=True)
        if why.advice:
            click.echo(f"     → {why.advice}", err=True)
        return 1


# -- Before anything runs ---------------------------------------------------------------------------------


def find_program(name: str, environ: Mapping[str, str]) -> str:
    """The path of an installed program, also where PATH leaves out the sbin folders (Debian users).

    Raises: StartError when it is not installed.
    """
    path = os.pathsep.join([environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    if found := shutil.which(name, path=path):
        return found
    raise StartError(f"{name} is not installed", "on Debian: apt-get install redis-server nginx-light")


def make_layout(replicas: int, host: str, port: int, redis_url: str | None, data_dir: Path) -> Layout:
    """Choose every port; a Redis is started only where the user brought none along. It has no password: it listens on
    a socket in the data folder alone, which nobody else may look into.

    Raises: StartError when nginx could not listen on `host` and `port`, or Redis not in the data folder.
    """
    if replicas < 1:
        raise StartError("--replicas must be at least 1")
    if why := why_not_free(host, port):
        raise StartError(
            f"cannot listen on {_address(host, port)}: {why}",
            "choose another with --port, or end the process that has it",
        )
    replica_ports = choose_ports(range(port + 1, port + 1 + replicas))
    if redis_url:
        return Layout(host, port, replica_ports, None, redis_url)
    redis_socket = data_dir.absolute() / "redis.sock"
    if len(os.fsencode(redis_socket)) > MOST_SOCKET_BYTES:
        raise StartError(
            f"ALLIM_DATA_DIR: {redis_socket} is longer than {MOST_SOCKET_BYTES} bytes, too long for a socket",
            "name a folder with a shorter path",
        )
    return Layout(host, port, replica_ports, redis_socket, f"unix://{quote(str(redis_socket))}")


def choose_ports(wanted: Iterable[int]) -> tuple[int, ...]:
    """For each wanted loopback port: that one if it is free, else any free one. No port twice."""
    chosen: list[int] = []
    avoid = {*wanted}
    for port in wanted:
        choice = port
        while choice == 0 or why_not_free(LOOPBACK, choice):
            choice = _any_free_port()
            if choice in avoid:
                choice = 0
        avoid.add(choice)
        chosen.append(choice)
    return tuple(chosen)


def why_not_free(host: str, port: int) -> str | None:
    """What the system says against listening there; None if nothing."""
    if not 1 <= port <= 65_535:
        return "there is no such port"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def replica_environ(layout: Layout, environ: Mapping[str, str]) -> dict[str, str]:
    """What replicas share. supervisord passes its own environment on, so no secret is written down."""
    file, data_dir = environ.get("ALLIM_SECRET_KEY_FILE"), Path(environ.get("ALLIM_DATA_DIR") or "data")
    secret = own_secret(environ.get("ALLIM_SECRET_KEY", ""), Path(file) if file else None, data_dir)
    return {
        "PYTHONUNBUFFERED": "1",
        **environ,
        "ALLIM_REDIS_URL": layout.redis_url,
        "ALLIM_SECRET_KEY": secret,
        "ALLIM_TRUSTED_PROXIES": LOOPBACK,
    }


def proxies_in_front(environ: Mapping[str, str], shared: Mapping[str, str]) -> tuple[str, ...]:
    """Return the proxies whose word nginx believes: those that the user set. The default names nginx itself.

    Raises: SettingsError for a value that is no address or network.
    """
    given = environ.get("ALLIM_TRUSTED_PROXIES")
    return load_settings({**shared, "ALLIM_TRUSTED_PROXIES": given}).trusted_proxies if given else ()


# -- The private folder and its files ---------------------------------------------------------------------


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder nobody else can look into, gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="allim-up-"))
    if os.geteuid() == 0:
        folder.chmod(0o711)  # started by root, nginx's workers run as nobody and have to reach nginx/body
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    servers = [_address(LOOPBACK, port) for port in layout.replica_ports]
    listen = _address(layout.host, layout.port)
    write_nginx(folder / "nginx", listen=listen, servers=servers, origins=origins, trusted=trusted)
    _write(folder / "supervisord.conf", supervisord_conf(folder, layout, drain_s, redis=redis, nginx=nginx))


def write_nginx(
    folder: Path, *, listen: str, servers: Sequence[str], origins: Sequence[str] = (), trusted: Sequence[str] = ()
) -> None:
    """A folder for `nginx -p`: its configuration, and room for its pid and temporary files."""
    folder.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700)  # as `private_folder`
    template = nginx_template().read_text()
    _write(
        folder / "nginx.conf", nginx_conf(template, listen=listen, servers=servers, origins=origins, trusted=trusted)
    )


def _write(path: Path, text: str) -> None:
    """Write a file that other users may not read."""
    path.touch(0o600)
    path.write_text(text)


def nginx_template() -> Path:
    """`nginx/` stands inside the package in a wheel, and at the top of a source checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package, package.parents[1]):
        template = folder / "nginx" / "nginx.conf.template"
        if template.is_file():
            return template
    raise StartError("nginx.conf.template is missing from this installation")


def nginx_conf(
    template: str, *, listen: str, servers: Sequence[str], origins: Sequence[str] = (), trusted: Sequence[str] = ()
) -> str:
    """Fill the template in. A line that names ALLIM_NGINX_SERVER is repeated for each server.

    Shape: `trusted` are addresses and networks of proxies in front of nginx.

    Raises: KeyError for an ALLIM_ name the template should not have.
    """
    values = {"LISTEN": listen, "FILES": str(_allowed_files()), "ORIGINS": ",".join(origins)}
    values["TRUSTED"] = " ".join(f"set_real_ip_from {ip_network(proxy, strict=False)};" for proxy in trusted)
    values |= {"RESOLVER": "", "CONNECT": "2s", "TLS": ""}  # for Compose
    lines: list[str] = []
    for line in template.splitlines():
        if line.lstrip().startswith("#"):
            lines.append(line)
            continue
        mark = "${ALLIM_NGINX_SERVER}"
        copies = [line.replace(mark, server) for server in servers] if mark in line else [line]
        lines += [re.sub(r"\$\{ALLIM_NGINX_(\w+)\}", lambda found: values[found[1]], copy) for copy in copies]
    return "\n".join(lines) + "\n"


def nginx_command(nginx: str, folder: Path) -> list[str]:
    """nginx over a folder of `write_nginx`, in the foreground; `-e` because the built-in log may be root's."""
    return [nginx, "-e", "stderr", "-p", str(folder), "-c", "nginx.conf"]


def check_nginx(nginx: str, folder: Path) -> None:
    """Raises: StartError with nginx's own words when it refuses its configuration."""
    answer = subprocess.run([*nginx_command(nginx, folder), "-tq"], capture_output=True, text=True, check=False)
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or ["no reason given"]
        raise StartError(f"nginx refuses its configuration: {lines[0]}")


def supervisord_conf(folder: Path, layout: Layout, drain_s: float, *, redis: str | None, nginx: str) -> str:
    """supervisord's configuration. It starts by rising priority and stops by falling priority.

    The replicas form one group, so that they drain at the same time and not one after the other.
    """
    root = {"user": "root"} if os.geteuid() == 0 else {}  # said openly, else it warns at each start
    sections = {
        "supervisord": {
            "nodaemon": "true",
            "logfile": "/dev/null",
            "logfile_maxbytes": "0",
            "loglevel": "warn",  # a replica that died is told; starting and stopping is not
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
    for name, port in _named(layout.replica_ports):
        command = [sys.executable, "-m", "allim", "serve", "--host", LOOPBACK, "--port", str(port)]
        sections[f"program:{name}"] = {
            **_program(command, stop_within_s=math.ceil(drain_s) + STOP_MARGIN_S),
            "environment": f'ALLIM_SERVER_ID="{name}"',
        }
    names = ",".join(name for name, _ in _named(layout.replica_ports))
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
    """supervisord expands `%` and takes ` #` and ` ;` for comments, also inside quotes; so part them."""
    text = text.replace("%", "%%")
    return re.sub(r"[#;]", lambda found: f"'\"{found[0]}\"'", text) if text.startswith("'") else text


# -- While it runs ----------------------------------------------------------------------------------------


def _supervised(folder: Path, layout: Layout, environ: Mapping[str, str], stop: "_Stop") -> int:
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "allim.up", str(folder), str(os.getpid())],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        umask=0o077,  # nobody else may read what any of them makes
    )
    assert supervisor.stdout is not None
    pump = threading.Thread(target=_pass_on, args=(supervisor.stdout,), name="output", daemon=True)
    try:
        pump.start()
        stop.watch(supervisor)
        missing = _wait_until_ready(supervisor, layout, stop)
        late = False
        if missing is not None and supervisor.poll() is None and not stop.asked:
            late = True
            click.echo(f"allim up: {missing.name} was not ready within {READY_WITHIN_S:.0f} s", err=True)
            click.echo(f"     → {missing.reason}", err=True)
            supervisor.terminate()
        elif missing is None:
            click.echo(layout.summary())
        supervisor.wait()
        if not (late or stop.asked):
            click.echo("allim up: supervisord ended unexpectedly; everything is stopped", err=True)
        return stop.exit_code()
    finally:
        supervisor.kill()  # has ended long ago, unless an error led here
        supervisor.wait()
        _end_session(supervisor.pid)
        pump.join(timeout=2)


class _Stop:
    """Turns signals into the end of supervisord, while it is entered."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)

    def __init__(self, drain_s: float) -> None:
        self.asked = False
        self.hurried = False
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._drain_s = drain_s

    def __enter__(self) -> "_Stop":
        # Under nohup SIGHUP is ignored, and stays so.
        caught = [number for number in self.SIGNALS if number != signal.SIGHUP or not _ignored(number)]
        self._before = {number: signal.signal(number, self._on_signal) for number in caught}
        return self

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def watch(self, supervisor: subprocess.Popen[bytes]) -> None:
        """From now on there is somebody to stop; at once if it was asked for before."""
        self._supervisor = supervisor
        if self.asked:
            supervisor.terminate()

    def exit_code(self) -> int:
        """130 is the shell's number for "ended by Ctrl-C"."""
        if self.hurried:
            return 130
        return 0 if self.asked else 1

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if not self.asked:
            self.asked = True
            signal.alarm(
                math.ceil(self._drain_s) + STOP_MARGIN_S + 20
            )  # past every stopwaitsecs: supervisord itself hangs
            _say_now("\nstopping: streams are drained first; Ctrl-C again ends everything at once\n")
            if self._supervisor:
                self._supervisor.terminate()
        elif number in (signal.SIGINT, signal.SIGALRM):
            self.hurried = True
            if self._supervisor:
                self._supervisor.kill()


class _Missing(NamedTuple):
    """A process that is not ready, and what it says."""

    name: str
    reason: str


def _wait_until_ready(supervisor: subprocess.Popen[bytes], layout: Layout, stop: _Stop) -> _Missing | None:
    """None once all answer that they are ready; else the first that does not."""
    waiting = [(name, LOOPBACK, port) for name, port in _named(layout.replica_ports)]
    waiting.append(("nginx", _reachable(layout.host), layout.port))
    deadline = time.monotonic() + READY_WITHIN_S
    reason = ""
    while waiting and time.monotonic() < deadline and supervisor.poll() is None and not stop.asked:
        if (reason := _why_not_ready(*waiting[0][1:])) == "":
            waiting.pop(0)
        else:
            time.sleep(0.1)
    return _Missing(waiting[0][0], reason) if waiting else None


def _why_not_ready(host: str, port: int) -> str:
    """What it says when asked for its readiness; "" when it is ready."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        if answer.status == 200:
            return ""
        checks = json.loads(answer.read()).get("checks", {})
        return "; ".join(f"{name}: {said}" for name, said in checks.items() if said != "ok")
    except OSError as error:
        return f"{_address(host, port)}: {(error.strerror or str(error)).lower()}; the log above may say more"
    except (http.client.HTTPException, ValueError, AttributeError):
        return f"{_address(host, port)}/readyz does not answer as a replica does"
    finally:
        connection.close()


def _pass_on(output: BinaryIO) -> None:
    """Copy what the processes say to our own output; read on when nobody listens, so that none blocks."""
    for line in output:
        with suppress(OSError, ValueError):
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


def _say_now(text: str) -> None:
    """Past Python's buffers, which a signal handler must not enter."""
    with suppress(OSError):
        os.write(1, text.encode())


def _end_session(session: int) -> None:
    """Kill what supervisord left behind in its session: normally nothing, and never the caller."""
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
    """The living processes of a session, from /proc."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # After the name, which may hold anything and ends with `)`: state, parent, group, session (proc(5)).
            state, _, _, its_session = stat.read_text(errors="replace").rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                yield int(stat.parent.name)


def supervise(folder: Path, parent: int) -> None:
    """Be supervisord. If `run` is killed, stop in order all the same and take the folder along."""
    from supervisor import supervisord  # only this process needs it

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        # When `run` is killed nobody reads our output any more; supervisor reports that to stderr and would
        # break on it.
        with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
            if os.getppid() == parent:  # else it died before we asked to be told
                supervisord.main(["-c", str(folder / "supervisord.conf")])
    finally:
        _end_session(os.getsid(0))
        shutil.rmtree(folder, ignore_errors=True)


# -- Small words ------------------------------------------------------------------------------------------


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user = parts.username or ""
    return urlunsplit(parts._replace(netloc=f"{user}:***@{parts.netloc.rpartition('@')[2]}"))


def _named(ports: Sequence[int]) -> Iterator[tuple[str, int]]:
    for number, port in enumerate(ports, start=1):
        yield f"replica-{number}", port


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _url(host: str, port: int) -> str:
    return f"http://{_address(_reachable(host), port)}"


def _reachable(host: str) -> str:
    """ "All addresses" is a place to listen, not one to connect to."""
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)


def _ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


def _allowed_files() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return NGINX_FILES if hard == resource.RLIM_INFINITY else min(NGINX_FILES, hard)


def _any_free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    supervise(Path(sys.argv[1]), int(sys.argv[2]))
