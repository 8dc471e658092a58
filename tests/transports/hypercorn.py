"""hypercorn, started like other servers: `--host` and `--port`. It has no workers, which would get no signal."""

import sys

from hypercorn.__main__ import main

_, _, host, _, port = sys.argv
GRACEFUL_S = "30"  # hypercorn cuts what has not ended after 3 s by default
sys.exit(
    main(["--bind", f"{host}:{port}", "--workers", "0", "--graceful-timeout", GRACEFUL_S, "allim.app:create_app()"])
)
