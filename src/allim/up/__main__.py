"""The process that `run` starts in a session of its own: supervisord. Arguments: folder, process ID of `run`."""

import sys
from pathlib import Path

from allim.up.supervision import supervise

if __name__ == "__main__":
    supervise(Path(sys.argv[1]), int(sys.argv[2]))
