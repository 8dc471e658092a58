"""nginx as people put it before allim, compressing what it passes on."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.servers import end, lasting_port
from harness.waiting import START_S, accepts, until_sync

# The second server asks the first for gzip, whatever its client asks for.
CONFIGURATION = """
daemon off;
pid nginx.pid;
error_log error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
    gzip on;
    gzip_types text/event-stream application/json application/problem+json;
    gzip_min_length 0;
    gzip_proxied any;
    proxy_http_version 1.1;
    proxy_buffering off;
    server {{
        listen 127.0.0.1:{compressing};
        location / {{ proxy_pass {url}; }}
    }}
    server {{
        listen 127.0.0.1:{insisting};
        location / {{ proxy_pass http://127.0.0.1:{compressing}; proxy_set_header Accept-Encoding gzip; }}
    }}
}}
"""


@contextmanager
def compressing_nginx(url: str) -> Iterator[tuple[str, str]]:
    """URLs of an nginx that compresses for those who ask, and of one that compresses always."""
    compressing, insisting = lasting_port(), lasting_port()
    with tempfile.TemporaryDirectory(prefix="allim-nginx-") as name:
        folder = Path(name)
        (folder / "nginx.conf").write_text(
            CONFIGURATION.format(compressing=compressing, insisting=insisting, url=url)
        )
        process = subprocess.Popen(
            ["nginx", "-p", str(folder), "-c", "nginx.conf", "-e", str(folder / "error.log")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until_sync(lambda: accepts(insisting), START_S, what="nginx")
            yield f"http://127.0.0.1:{compressing}", f"http://127.0.0.1:{insisting}"
        finally:
            end(process)
