"""Every route refuses what is malformed, through nginx, in one form that names the field."""

from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from harness.cluster import Cluster
from harness.replicas import PUBLISH_KEY, token

ACCOUNTS = "/api/accounts"
ME = "/api/accounts/me"
SNAPSHOTS = "/api/accounts/me/snapshots"
SESSION = "/api/session"
PUBLISH = "/api/publish"
EVENTS = "/events"

USER = "user"
SERVICE = "service"
GOOD = {"email": "a@example.org", "name": "A", "password": "long enough"}
EVENT = {"topic": "user:1", "type": "t", "data": 1}


def ask(
    system: Cluster, method: str, path: str, auth: str | None, body: object, headers: Mapping[str, str]
) -> httpx.Response:
    known = {USER: f"Bearer {token('42')}", SERVICE: f"Bearer {PUBLISH_KEY}"}
    authorization = {"authorization": known.get(auth, auth)} if auth else {}
    content = {"content": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
    kind = {"content-type": "application/json"} if isinstance(body, bytes) else {}
    sent: dict[str, Any] = {"headers": {**authorization, **kind, **headers}, **content}
    return httpx.request(method, system.url + path, timeout=60, **sent)


def expect_problem(answer: httpx.Response, status: int, fields: set[str]) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].split(";")[0] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert {error["field"] for error in problem.get("errors", [])} == fields


@pytest.mark.parametrize(
    ("method", "path", "auth", "body", "fields"),
    [
        ("POST", ACCOUNTS, None, {}, {"email", "name", "password"}),
        ("POST", ACCOUNTS, None, {**GOOD, "email": "nobody"}, {"email"}),
        ("POST", ACCOUNTS, None, {**GOOD, "password": "short"}, {"password"}),
        ("POST", ACCOUNTS, None, {**GOOD, "name": 7}, {"name"}),
        ("POST", ACCOUNTS, None, {**GOOD, "admin": True}, {"admin"}),
        ("POST", ACCOUNTS, None, b"{", {"body"}),
        ("POST", ACCOUNTS, None, b"", {"body"}),
        ("POST", ACCOUNTS, None, b'{"email":"\xff"}', {"body"}),
        ("POST", SESSION, None, {"email": "a@example.org"}, {"password"}),
        ("POST", SESSION, None, [], {"body"}),
        ("POST", SNAPSHOTS, USER, {"when": "now"}, {"when"}),
        ("GET", f"{SNAPSHOTS}?limit=0", USER, None, {"limit"}),
        ("GET", f"{SNAPSHOTS}?limit=1&limit=2", USER, None, {"limit"}),
        ("GET", f"{SNAPSHOTS}?cursor=x", USER, None, {"cursor"}),
        ("GET", f"{SNAPSHOTS}?page=1", USER, None, {"page"}),
        ("POST", PUBLISH, SERVICE, {}, {"topic", "type", "data"}),
        ("POST", PUBLISH, SERVICE, {**EVENT, "topic": "No Topic"}, {"topic"}),
        ("POST", PUBLISH, SERVICE, {**EVENT, "type": "stream.open"}, {"type"}),
        ("POST", PUBLISH, SERVICE, {**EVENT, "when": 1}, {"when"}),
        ("POST", PUBLISH, SERVICE, [EVENT, {**EVENT, "type": "No"}], {"[1].type"}),
        ("POST", PUBLISH, SERVICE, [EVENT, EVENT, {}], {"[2].topic", "[2].type", "[2].data"}),
        ("POST", PUBLISH, SERVICE, [], {"body"}),
        ("POST", PUBLISH, SERVICE, [EVENT] * 1001, {"body"}),
        ("POST", PUBLISH, SERVICE, "event", {"body"}),
        ("GET", f"{EVENTS}?topics=No%20Topic", USER, None, {"topics"}),
        ("GET", f"{EVENTS}?topics=" + ",".join(f"a:{n}" for n in range(101)), USER, None, {"topics"}),
    ],
)
def test_a_malformed_request_is_told_its_field(
    system: Cluster, method: str, path: str, auth: str | None, body: object, fields: set[str]
) -> None:
    expect_problem(ask(system, method, path, auth, body, {}), 422, fields)


def test_a_malformed_idempotency_key_is_named(system: Cluster) -> None:
    answer = ask(system, "POST", PUBLISH, SERVICE, EVENT, {"idempotency-key": "with space"})

    expect_problem(answer, 422, {"Idempotency-Key"})


@pytest.mark.parametrize("path", [ACCOUNTS, SESSION, SNAPSHOTS, PUBLISH])
def test_a_body_that_is_not_json_is_refused_by_its_content_type(system: Cluster, path: str) -> None:
    auth = {SNAPSHOTS: USER, PUBLISH: SERVICE}.get(path)

    expect_problem(ask(system, "POST", path, auth, b"a=b", {"content-type": "text/plain"}), 415, {"Content-Type"})


@pytest.mark.parametrize(
    ("path", "auth", "body", "fields"),
    [
        (ACCOUNTS, None, b" " * (16 * 1024 + 1), {"body"}),
        (SESSION, None, b" " * (16 * 1024 + 1), {"body"}),
        (SNAPSHOTS, USER, b" " * 1025, {"body"}),
        (PUBLISH, SERVICE, b" " * (2 * 1024 * 1024 + 1), {"body"}),
        (PUBLISH, SERVICE, b" " * (3 * 1024 * 1024 + 1), set()),  # nginx's own limit; it knows no fields
        (PUBLISH, SERVICE, {**EVENT, "data": "x" * 65_536}, {"data"}),
        (PUBLISH, SERVICE, [EVENT, {**EVENT, "data": "x" * 65_536}], {"[1].data"}),
    ],
    ids=["accounts", "session", "snapshots", "publish", "nginx", "event", "event in a batch"],
)
def test_what_is_too_large_is_413(
    system: Cluster, path: str, auth: str | None, body: object, fields: set[str]
) -> None:
    expect_problem(ask(system, "POST", path, auth, body, {}), 413, fields)


@pytest.mark.parametrize("auth", [None, "Bearer nonsense", f"Bearer {PUBLISH_KEY}"], ids=["none", "bad", "key"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ME), ("GET", SNAPSHOTS), ("POST", SNAPSHOTS), ("GET", f"{SNAPSHOTS}/x"), ("GET", EVENTS)],
)
def test_nobody_is_asked_to_sign_in(system: Cluster, method: str, path: str, auth: str | None) -> None:
    answer = ask(system, method, path, auth, None, {})

    expect_problem(answer, 401, set())
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("auth", [None, "Bearer wrong", USER])
def test_a_publisher_without_a_key_is_refused(system: Cluster, auth: str | None) -> None:
    expect_problem(ask(system, "POST", PUBLISH, auth, EVENT, {}), 401, set())


@pytest.mark.parametrize("topic", ["user:43", "nothing:1", "nothing"])
def test_a_topic_that_is_unknown_or_somebody_elses_is_forbidden(system: Cluster, topic: str) -> None:
    expect_problem(ask(system, "GET", f"{EVENTS}?topics={topic}", USER, None, {}), 403, {"topics"})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{SNAPSHOTS}/nothing"),
        ("GET", f"{SNAPSHOTS}/%20"),
        ("GET", ME),  # a token of another service, without an account here
        ("POST", SNAPSHOTS),
        ("GET", "/nothing"),
        ("GET", "/api/nothing"),
        ("GET", "/events/nothing"),
    ],
)
def test_what_is_not_there_is_404(system: Cluster, method: str, path: str) -> None:
    expect_problem(ask(system, method, path, USER, None, {}), 404, set())


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", ACCOUNTS, {"POST"}),
        ("POST", ME, {"GET", "HEAD"}),
        ("PUT", SESSION, {"GET", "HEAD", "POST", "DELETE"}),
        ("DELETE", SNAPSHOTS, {"GET", "HEAD", "POST"}),
        ("PUT", f"{SNAPSHOTS}/x", {"GET", "HEAD"}),
        ("GET", PUBLISH, {"POST"}),
        ("POST", EVENTS, {"GET", "HEAD"}),
        ("POST", "/healthz", {"GET", "HEAD"}),
        ("POST", "/readyz", {"GET", "HEAD"}),
    ],
)
def test_a_wrong_method_is_405_and_told_the_right_ones(
    system: Cluster, method: str, path: str, allowed: set[str]
) -> None:
    answer = ask(system, method, path, USER, None, {})

    expect_problem(answer, 405, set())
    assert set(answer.headers["allow"].split(", ")) == allowed


def test_a_taken_email_is_a_conflict_that_names_it(system: Cluster) -> None:
    taken = {**GOOD, "email": "taken@example.org"}
    assert ask(system, "POST", ACCOUNTS, None, taken, {}).status_code == 201

    expect_problem(ask(system, "POST", ACCOUNTS, None, {**taken, "email": "TAKEN@example.org"}, {}), 409, {"email"})
