"""What a log line holds of a value that is long."""

import json
import subprocess
import sys

_LOG = """
import logging
from allim.telemetry import configure_logging
configure_logging("r")
logging.getLogger("uvicorn.error").error("Traceback\\n" + "  File\\n" * 1000 + "TheError: what is wrong")
"""


def test_of_a_long_traceback_the_end_stays_which_says_what_is_wrong() -> None:
    done = subprocess.run([sys.executable, "-c", _LOG], capture_output=True, text=True, timeout=50, check=True)

    (line,) = done.stderr.splitlines()
    event = json.loads(line)["event"]
    assert event.startswith("Traceback")
    assert event.endswith("TheError: what is wrong")
    assert len(event) < 1500
