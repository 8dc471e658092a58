"""docker-compose.yml as it runs on a Docker engine: the commands an operator types, and what Compose answers."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.leaks import PUBLISH_KEY, SECRET
from harness.replicas import ROOT
from harness.servers import lasting_port

WITHIN_S = 300.0  # for one command; images are built in one

KEEP_SECRET = f"umask 077; printf %s '{SECRET}' > /data/secret_key"


@dataclass
class Stack:
    """One deployment. `environ` is what would stand in its `.env`."""

    project: str
    network: str
    environ: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=lasting_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def gateway(self) -> str:
        """The address by which nginx sees this machine."""
        return f"{self.network}.129"

    def compose(self, *words: str, check: bool = True) -> str:
        """`docker compose …` at the top of the repository; what it printed on standard output."""
        return self.run("docker", "compose", *words, check=check)

    def run(self, *words: str, cwd: Path = ROOT, check: bool = True) -> str:
        done = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **self.variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=WITHIN_S,
        )
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stderr[-3000:]}{done.stdout[-1000:]}"
        return done.stdout + ("" if check else done.stderr)

    @property
    def variables(self) -> dict[str, str]:
        return {
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_FILE": str(ROOT / "docker-compose.yml"),
            "COMPOSE_PROGRESS": "quiet",
            "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",  # or each build makes another image, and `up` other containers
            "PORT": str(self.port),
            "NETWORK": self.network,
            "ALLIM_PUBLISH_KEYS": f"tests:{PUBLISH_KEY}",
            **self.environ,
        }

    def ids(self, service: str) -> list[str]:
        """The running containers of a service."""
        return self.compose("ps", "--quiet", service).split()

    def inspect(self, container: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.run("docker", "inspect", container))[0]
        return answer

    def address(self, container: str, network: str) -> str:
        networks = self.inspect(container)["NetworkSettings"]["Networks"]
        return str(networks[f"{self.project}_{network}"]["IPAddress"])

    def python(self, network: str, program: str) -> str:
        """Run a program in a container of its own in one of the deployment's networks."""
        words = ["docker", "run", "--rm", "--log-driver", "json-file", "--network", f"{self.project}_{network}"]
        return self.run(*words, "allim", "python", "-c", program)

    def logged(self, request_id: str) -> dict[str, Any] | None:
        """What a replica logged of this request."""
        lines = self.compose("logs", "--no-log-prefix", "--no-color", "app").splitlines()
        found = [line for line in lines if request_id in line and '"event": "request"' in line]
        return json.loads(found[0]) if found else None

    def down(self) -> None:
        self.compose("--profile", "tls", "down", "--volumes", "--timeout", "0", "--remove-orphans")


@contextmanager
def started(stack: Stack) -> Iterator[Stack]:
    """A deployment that is up, with the secret key of the tests in its volume, and removed at the end."""
    stack.down()
    try:
        for service in ("nginx", "app"):
            stack.compose("build", "--quiet", service)
        stack.compose("run", "--rm", "--no-deps", "--no-TTY", "secret", "sh", "-c", KEEP_SECRET)
        stack.compose("up", "--detach", "--wait")
        yield stack
    finally:
        stack.down()


def changed(stack: Stack, **environ: str) -> Mapping[str, str]:
    """Change the deployment's `.env`."""
    stack.environ.update(environ)
    return stack.environ
