"""The soak in small: nothing is left of streams that have gone. `make soak` is the whole of it."""

import subprocess
import sys

from harness.replicas import ROOT


def test_nothing_is_left_of_streams_that_have_gone() -> None:
    command = [sys.executable, "-m", "bench.soak", "--quick"]

    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "\nflat\n" in result.stdout
