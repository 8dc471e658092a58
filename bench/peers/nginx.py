"""nginx over a configuration of its own, in a folder of its own, as whoever runs the bench."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.peers.environments import program
from bench.peers.processes import Process, process

# Directives of `http`. Relative to the folder, so that nothing of the machine's nginx is touched.
FOLDERS = """\
client_body_temp_path body;
    proxy_temp_path       unused;
    fastcgi_temp_path     unused;
    uwsgi_temp_path       unused;
    scgi_temp_path        unused;"""


@contextmanager
def nginx(folder: Path, port: int, configuration: str, ready: Callable[[], bool] | None = None) -> Iterator[Process]:
    """The master process."""
    (folder / "nginx.conf").write_text(configuration)
    if os.geteuid() == 0:
        folder.chmod(0o711)  # the workers run as nobody and have to reach their temporary files
    command = [program("nginx"), "-e", "stderr", "-p", str(folder), "-c", "nginx.conf"]
    with process(command, folder, port, ready=ready) as master:
        yield master
