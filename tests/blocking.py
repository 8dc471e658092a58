"""Runs a command of allim in a process that cannot import some packages, as where they are not installed."""

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping

from harness.replicas import ROOT, SECRET

_BLOCK = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


def run_without(
    blocked: Iterable[str], program: str, environ: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a Python program in which these top-level packages are missing."""
    return subprocess.run(
        [sys.executable, "-c", _BLOCK.format(blocked=set(blocked)) + program],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": "src", "ALLIM_SECRET_KEY": SECRET, **(environ or {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
