"""The addresses of Redis, replicas and nginx, their environment, and the private folder with their files."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from allim.settings import load_settings, own_secret

LOOPBACK = "127.0.0.1"
MOST_SOCKET_BYTES = 100  # of a socket's path; the kernel takes 107 (unix(7))


class StartError(Exception):
    """The system cannot start. Shape: one line with the reason; `advice` is a second line with a remedy."""

    def __init__(self, detail: str, advice: str = "") -> None:
        super().__init__(detail)
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Layout:
    """The addresses of all parts.

    Shape: `redis_socket` is the socket of the Redis to start, None if the user gave a Redis.
    """

    host: str
    port: int
    replica_ports: tuple[int, ...]
    redis_socket: Path | None
    redis_url: str

    def summary(self) -> str:
        """Return the lines that are printed when all is ready; tests rely on the form `name  address`."""
        lines = [f"page       {url_of(self.host, self.port)}/"]
        lines += [f"{name:<9}  {url_of(LOOPBACK, port)}" for name, port in named_replicas(self.replica_ports)]
        return "\n".join([*lines, f"redis      {without_password(self.redis_url)}", "Ctrl-C to stop"])


def find_program(name: str, environ: Mapping[str, str]) -> str:
    """Return the path of an installed program, also if PATH lacks the sbin folders, as for users of Debian.

    Raises: StartError when it is not installed.
    """
    path = os.pathsep.join([environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    if found := shutil.which(name, path=path):
        return found
    raise StartError(f"{name} is not installed", "on Debian: apt-get install redis-server nginx-light")


def make_layout(replicas: int, host: str, port: int, redis_url: str | None, data_dir: Path) -> Layout:
    """Choose every port. A Redis is started only if the user gave none. It has no password: it listens only on a
    socket in the data folder, which no other user may open.

    Raises: StartError when nginx could not listen on `host` and `port`, or Redis not in the data folder.
    """
    if replicas < 1:
        raise StartError("--replicas must be at least 1")
    if why := why_not_free(host, port):
        raise StartError(
            f"cannot listen on {address(host, port)}: {why}",
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
    """Return a port for each wanted loopback port: the same if it is free, else another. No port is used twice."""
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
    """Return the system's reason against listening there, or None."""
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


def _any_free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def replica_environ(layout: Layout, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the replicas. supervisord passes its own on, so no secret is written to a file."""
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
    """Return the proxies that nginx trusts: those that the user set. The default of the setting is nginx itself.

    Raises: SettingsError for a value that is no address or network.
    """
    given = environ.get("ALLIM_TRUSTED_PROXIES")
    return load_settings({**shared, "ALLIM_TRUSTED_PROXIES": given}).trusted_proxies if given else ()


@contextmanager
def private_folder() -> Iterator[Path]:
    """Make a folder that other users cannot read, and remove it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="allim-up-"))
    if os.geteuid() == 0:
        folder.chmod(0o711)  # started by root, nginx's workers run as nobody and have to reach nginx/body
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_private(path: Path, text: str) -> None:
    """Write a file that other users may not read."""
    path.touch(0o600)
    path.write_text(text)


def without_password(url: str) -> str:
    """Return the URL without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user = parts.username or ""
    return urlunsplit(parts._replace(netloc=f"{user}:***@{parts.netloc.rpartition('@')[2]}"))


def named_replicas(ports: Sequence[int]) -> Iterator[tuple[str, int]]:
    for number, port in enumerate(ports, start=1):
        yield f"replica-{number}", port


def address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url_of(host: str, port: int) -> str:
    return f"http://{address(reachable(host), port)}"


def reachable(host: str) -> str:
    """Return an address to connect to: "all addresses" is only one to listen on."""
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)
