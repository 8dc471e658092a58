"""The description against a real replica: schemathesis calls every operation, rightly and wrongly, and no answer
contradicts the description."""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
from harness.replicas import PUBLISH_KEY, SECRET, Replica, replica
from starlette.routing import compile_path

from allim.access.tokens import Tokens
from allim.identity import OPERATOR

# The example in the description, so that signing in by it succeeds.
ADA = {"email": "ada@example.org", "name": "Ada", "password": "correct horse battery"}
SETTINGS: dict[str, Any] = {
    "user_calls_per_min": 10_000_000,
    "address_calls_per_min": 10_000_000,
    "sign_in_tries_per_min": 100_000,
    "publish_events_per_s": 10_000_000,
    "log_level": "debug",  # with the lines of accepted publishes
}
ENDING = ["signOut", "kickUser", "changePassword", "deleteAccount"]
"""What ends sessions, or makes the example's password wrong, is called last, each with an account of its own."""

CONFIG = """
seed = 1
request-timeout = 10
max-stream-events = 1

[generation]
database = "none"
deterministic = true
max-examples = {examples}

[auth.openapi]
session.api_key = "{token}"
token.bearer = "{token}"
publishKey.bearer = "{publish_key}"

[checks.negative_data_rejection]
expected-statuses = ["401", "403", "404", "405", "409", "413", "415", "422", "429", "503"]

# The rules of emails, names, cursors and tickets are more than a schema can tell.
[[operations]]
include-operation-id = ["register", "snapshots", "keys", "events"]
checks.positive_data_acceptance.enabled = false
"""


def test_no_answer_contradicts_the_description(tmp_path: Path) -> None:
    with replica(**SETTINGS) as served:
        fuzz(served, registered(served, ADA), tmp_path, *(f"--exclude-operation-id={name}" for name in ENDING))
        for number, name in enumerate(ENDING):
            account = registered(served, {**ADA, "email": f"ada-{number}@example.org"})
            fuzz(served, account, tmp_path, f"--include-operation-id={name}")
        end_a_session(served)

        assert "Traceback" not in served.log.read_text()
        assert [operation for operation in described(served) if operation not in succeeded(served)] == []


def registered(served: Replica, account: dict[str, str]) -> str:
    """The ID of a new account."""
    return str(httpx.post(f"{served.url}/api/accounts", json=account).json()["account"]["id"])


def end_a_session(served: Replica) -> None:
    """As no generated call does: it takes the ID of a session that is there."""
    with httpx.Client(base_url=served.url) as client:
        client.post("/api/session", json={"email": ADA["email"], "password": ADA["password"]})
        path = "/api/accounts/me/sessions"
        [own] = [item["id"] for item in client.get(path).json()["items"] if item["current"]]
        assert client.delete(f"{path}/{own}").status_code == 204


def fuzz(served: Replica, operator: str, folder: Path, *options: str, examples: int = 10) -> None:
    """Call what the options choose, in a new session."""
    token = Tokens([SECRET], 3600).issue(operator, role=OPERATOR)
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG.format(examples=examples, token=token, publish_key=PUBLISH_KEY))
    program = Path(sys.executable).with_name("st")
    command: list[str | Path] = [
        program,
        "--config-file",
        config,
        "run",
        f"{served.url}/api/openapi.json",
        "--no-color",
        *options,
    ]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def described(served: Replica) -> Iterable[tuple[str, str]]:
    """Method and path of every operation that has its answers in the log."""
    for path, methods in httpx.get(f"{served.url}/api/openapi.json").json()["paths"].items():
        if path.startswith("/api/") and "{name}" not in path:  # a provider's need a provider
            yield from ((method.upper(), path) for method in methods)


def succeeded(served: Replica) -> set[tuple[str, str]]:
    """Those that were answered with success at least once."""
    lines = [json.loads(line) for line in served.log.read_text().splitlines() if line.startswith("{")]
    calls = {(line["method"], line["path"]) for line in lines if line.get("status", 500) < 300}
    forms = {path: compile_path(path)[0] for _, path in described(served)}
    return {(method, form) for method, path in calls for form, regex in forms.items() if regex.match(path)}
