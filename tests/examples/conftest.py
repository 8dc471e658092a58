"""The examples, started by the commands of their READMEs; the FastAPI shop in both of its forms."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness.cluster import Cluster, started
from harness.leaks import inspect
from harness.replicas import ROOT
from harness.servers import end, free_port
from harness.waiting import START_S, until_sync
from joserfc import jwt
from joserfc.jwk import OctKey

SOURCE = ROOT / "examples" / "fastapi-shop"
PROGRAMS = Path(sys.executable).parent
LAST = re.compile(
    r"^((?:\w+=\S* )*(?:\w+=\$\(.*\) )?)(?=(?:allim up|allim serve|uvicorn|nginx|python) )", re.MULTILINE
)


@dataclass
class Shop:
    """A running shop. `cluster` are the replicas beside it, None where allim is inside."""

    folder: Path
    url: str
    readme: str
    cluster: Cluster | None = None

    @property
    def notify(self) -> str:
        return f"{self.url}/notify"

    def sign_in(self, email: str, password: str) -> str:
        """Return the cookie of the session, as a request carries it."""
        answer = httpx.post(f"{self.url}/sign-in", json={"email": email, "password": password})
        assert answer.status_code == 200, answer.text
        return f"shop_session={answer.cookies['shop_session']}"

    def order(self, cookie: str) -> httpx.Response:
        return httpx.post(f"{self.url}/orders", headers={"cookie": cookie}, timeout=30)

    def token(self, subject: str, **claims: Any) -> str:
        """Return a token that the shop could have signed."""
        key = OctKey.import_key((self.folder / "shop.key").read_text().strip())
        said = {"iss": "https://shop.example.org", "sub": subject, "sid": "s1", "exp": 4102444800, **claims}
        return jwt.encode({"alg": "HS256"}, said, key)

    def run(self, command: str) -> str:
        return run(self.folder, command)


def environ(programs: Path) -> dict[str, str]:
    own = {
        name: value for name, value in os.environ.items() if not name.startswith("ALLIM_") and name != "PYTHONPATH"
    }
    return {**own, "PATH": f"{programs}:{own['PATH']}"}


def run(folder: Path, command: str, programs: Path = PROGRAMS) -> str:
    """Return the output of a command in this folder. `programs` is the folder that is searched first."""
    answer = subprocess.run(
        ["bash", "-ec", command], cwd=folder, env=environ(programs), capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def commands_under(readme: str, heading: str) -> list[str]:
    """Return the blocks of commands below a heading."""
    section = readme.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


def copied(folder: Path) -> Shop:
    """Copy the example, with free ports in the place of its own, and do what is done once."""
    ports = {port: str(free_port()) for port in ("8000", "8080", "9000")}
    for source in SOURCE.iterdir():
        if source.is_file():
            text = re.sub("8000|8080|9000", lambda match: ports[match[0]], source.read_text())
            (folder / source.name).write_text(text)
    readme = (folder / "README.md").read_text()
    shop = Shop(folder, f"http://127.0.0.1:{ports['8080']}", readme)
    once = re.search(r"^openssl .*$", readme, re.MULTILINE)
    assert once is not None
    shop.run(once[0])
    return shop


@contextmanager
def running(
    folder: Path, commands: str, name: str, programs: Path = PROGRAMS
) -> Iterator["tuple[subprocess.Popen[bytes], Path]"]:
    """A block of commands, of which the last goes on until it is ended."""
    output = folder / f"{name}.out"
    script, found = LAST.subn(r"\1exec ", commands)
    assert found == 1, commands
    command = ["bash", "-ec", script]
    with output.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=environ(programs), stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        yield process, output
    finally:
        end(process, timeout_s=40)
        inspect(output)


def until_it_answers(shop: Shop, *outputs: Path) -> None:
    def answers() -> bool:
        try:
            return all(httpx.get(f"{shop.url}{path}").status_code == 200 for path in ("/", "/notify/readyz"))
        except httpx.TransportError:
            return False

    until_sync(answers, START_S, what="the shop: " + "".join(output.read_text()[-2000:] for output in outputs))


@pytest.fixture(scope="session")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    shop = copied(tmp_path_factory.mktemp("sidecar"))
    allim, own, front = commands_under(shop.readme, "Sidecar")
    with ExitStack() as stack:
        process, output = stack.enter_context(running(shop.folder, allim, "allim"))
        shop.cluster = started(process, output, shop.folder / "data" / "allim.db")
        outputs = [
            stack.enter_context(running(shop.folder, own, "shop"))[1],
            stack.enter_context(running(shop.folder, front, "nginx"))[1],
        ]
        until_it_answers(shop, *outputs)
        yield shop


@pytest.fixture(scope="session")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    shop = copied(tmp_path_factory.mktemp("mounted"))
    [own] = commands_under(shop.readme, "Mounted")
    with running(shop.folder, own, "shop") as (_, output):
        until_it_answers(shop, output)
        yield shop


@pytest.fixture(params=["sidecar", "mounted"])
def shop(request: pytest.FixtureRequest) -> Shop:
    found: Shop = request.getfixturevalue(request.param)
    return found
