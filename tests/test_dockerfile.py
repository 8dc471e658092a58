"""The Dockerfile, as far as it can be read without Docker."""

import re
import subprocess
import sys

from harness.replicas import ROOT

TEXT = (ROOT / "Dockerfile").read_text()


def test_no_image_is_unhealthy_because_redis_is_away() -> None:
    """Orchestrators restart what is unhealthy, so the check asks whether the process itself answers."""
    asked = re.findall(r"HEALTHCHECK.*\\\n.*http://127\.0\.0\.1:8000(/\w+)", TEXT)

    assert asked == ["/healthz", "/healthz"]


def test_packages_have_the_versions_that_the_tests_pass_with() -> None:
    (install,) = [line for line in TEXT.splitlines() if "pip install" in line and "-r " in line]

    assert "--constraint constraints.txt" in install


def test_the_image_has_every_extra() -> None:
    script = re.search(r"python -c \"(import tomllib;.*?)\"\s*>", TEXT.replace("\\\n", ""), re.DOTALL)
    assert script
    command = [sys.executable, "-c", script[1]]
    installed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()

    names = {re.split(r"[\[<>=]", line)[0] for line in installed}
    assert {"argon2-cffi", "asyncpg", "jsonschema-rs", "pyyaml", "sqlalchemy", "starlette", "supervisor"} <= names
    assert not {"allim", "pytest"} & names
