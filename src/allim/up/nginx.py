"""nginx's configuration, filled in from the template, and its command."""

import os
import re
import resource
import subprocess
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path

from allim.up.layout import StartError, write_private

NGINX_FILES = 65_536  # open files wanted per nginx worker: two per stream


def write_nginx(
    folder: Path, *, listen: str, servers: Sequence[str], origins: Sequence[str] = (), trusted: Sequence[str] = ()
) -> None:
    """Make a folder for `nginx -p`, with its configuration and space for its pid and temporary files."""
    folder.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700)  # as `private_folder`
    template = nginx_template().read_text()
    write_private(
        folder / "nginx.conf", nginx_conf(template, listen=listen, servers=servers, origins=origins, trusted=trusted)
    )


def nginx_template() -> Path:
    """Return the path of the template: `nginx/` is inside the package in a wheel, and at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
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
    """Return the command that runs nginx over a folder of `write_nginx`, in the foreground.

    `-e` is needed because the built-in path of the error log may belong to root.
    """
    return [nginx, "-e", "stderr", "-p", str(folder), "-c", "nginx.conf"]


def check_nginx(nginx: str, folder: Path) -> None:
    """Let nginx test its configuration.

    Raises: StartError with nginx's own message.
    """
    answer = subprocess.run([*nginx_command(nginx, folder), "-tq"], capture_output=True, text=True, check=False)
    if answer.returncode:
        lines = answer.stderr.strip().splitlines() or ["no reason given"]
        raise StartError(f"nginx refuses its configuration: {lines[0]}")


def _allowed_files() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return NGINX_FILES if hard == resource.RLIM_INFINITY else min(NGINX_FILES, hard)
