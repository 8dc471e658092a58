"""What the peers need, installed when it is missing: a Python environment of their own, npm and Debian packages.

The first two stand in `bench/.peers` and `bench/peers/nestjs`. Which registries serve pip, npm and apt is their own
configuration, not the project's.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from bench.peers.processes import ROOT, output

PEERS = Path(__file__).parent
PYTHON_FOLDER = ROOT / "bench/.peers/python"
NEST = PEERS / "nestjs"


def python() -> str:
    """The interpreter of the Python peers."""
    requirements = PEERS / "requirements.txt"
    stamp = PYTHON_FOLDER / ".ready"
    interpreter = str(PYTHON_FOLDER / "bin/python")
    if not _up_to_date(stamp, [requirements]):
        _run(sys.executable, "-m", "venv", "--clear", str(PYTHON_FOLDER))
        _run(interpreter, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(requirements))
        stamp.touch()
    return interpreter


def nest() -> Path:
    """The compiled NestJS application.

    Raises: CalledProcessError when Node is missing or too old.
    """
    main = NEST / "dist/main.js"
    if not _up_to_date(main, [NEST / name for name in ("main.ts", "package-lock.json", "tsconfig.json")]):
        _run(str(ROOT / "make/node"))
        _run("npm", "ci", "--no-audit", "--no-fund", "--loglevel=error", cwd=NEST)
        _run("npm", "run", "--silent", "build", cwd=NEST)
        main.touch()
    return main


def debian(*packages: str) -> None:
    """Have these packages.

    Raises: CalledProcessError when one is missing and cannot be installed; what to do is printed.
    """
    _run(str(ROOT / "make/install"), *packages)


@cache
def python_versions(*names: str) -> str:
    """`litestar 2.25.0, uvicorn 0.54.0, Python 3.11.7`."""
    versions = "import sys, importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    return f"{output(python(), '-c', versions, *names)}, {output(python(), '--version')}"


@cache
def npm_versions(*names: str) -> str:
    """`@nestjs/core 12.5.1, ioredis 6.0.0, Node v20.20.2`."""
    nest()
    about = [json.loads((NEST / "node_modules" / name / "package.json").read_text()) for name in names]
    found = [f"{package['name']} {package['version']}" for package in about]
    return ", ".join([*found, f"Node {output('node', '--version')}"])


def program(name: str) -> str:
    """Debian keeps servers where a user's PATH does not look."""
    return shutil.which(name) or f"/usr/sbin/{name}"


def _up_to_date(made: Path, sources: Sequence[Path]) -> bool:
    return made.exists() and all(made.stat().st_mtime >= source.stat().st_mtime for source in sources)


def _run(*command: str, cwd: Path = ROOT) -> None:
    subprocess.run(command, cwd=cwd, check=True, stdout=sys.stderr)
