"""Paths that mean one thing to nginx and another to a replica: neither gives what its own name would not."""

import pytest
from harness.replicas import token

from tests.hostile.conftest import Target
from tests.hostile.texts import BYTES
from tests.hostile.wire import request, say

ROUTES = {b"me": b"/api/accounts/me", b"events": b"/events", b"metrics": b"/metrics", b"publish": b"/api/publish"}


def tricks(path: bytes) -> list[bytes]:
    last = path.rpartition(b"/")[2]
    parent = path.removesuffix(last)
    return [
        b"/" + path,
        b"//" + path + b"//",
        path.replace(b"/", b"//"),
        path + b"/",
        path + b"/.",
        path + b"/..",
        path + b"/../" + last,
        path + b"%2f..%2f" + last,
        b"/x/.." + path,
        b"/assets/.." + path,
        b"/assets/..%2f.." + path,
        b"/x/%2e%2e" + path,
        b"/x%2f%2e%2e%2f" + path[1:],
        b"/%2e" + path,
        b"/." + path,
        parent + b"%%%02x" % last[0] + last[1:],
        parent + b"%%25%02x" % last[0] + last[1:],
        path.upper(),
        path.title(),
        path + b"%00",
        path + b"%00.css",
        path + b"%0a",
        path + b"%20",
        path + b"%23",
        path + b"%3f",
        path + b"%3Ftopics=a",
        path + b";a=b",
        path + b";/../x",
        path + b".json",
        path + b"%5c..%5c",
        path.replace(b"/", b"\\"),
        path.replace(b"/", b"%5c"),
        b"\\.." + path,
        path.replace(b"/", b"%2f"),
        path.replace(b"/", b"%252f"),
        path.replace(b"/", b"\xc0\xaf"),
        path.replace(b"/", b"%c0%af"),
        path + b"#/../../x",
        b"http://allim.test" + path,
        b"http://other.example" + path,
        b"http://allim.test:80@other.example" + path,
        b"http:" + path,
        b"http://" + path,
        b"//other.example" + path,
        b"x" + path,
        b"?" + path,
        b"*",
        b"*" + path,
        path + b"%",
        path + b"%zz",
        path + b"%u0041",
        *(path + b"/" + raw.replace(b" ", b"").replace(b"\r", b"").replace(b"\n", b"") for raw in BYTES.values()),
        path + b"/" + b"a" * 7000,
        path + b"/" + b"../" * 500,
        path + b"?" + b"a" * 9000,
        path + "/\u202e\u2028\x85".encode(),
    ]


@pytest.mark.parametrize("name", ROUTES)
def test_without_a_token_no_spelling_of_a_path_gives_more(either: Target, name: bytes) -> None:
    for trick in tricks(ROUTES[name]):
        for method in ("GET", "POST"):
            for answer in say(either.port, request(method, trick)).answers:
                assert answer.status < 500, trick
                assert b"stream.open" not in answer.body, trick
                assert b'"email"' not in answer.body, trick
                redirected = 300 <= answer.status < 400
                assert not redirected or _leads_here(answer.headers["location"]), (trick, answer)
                if answer.status == 200:  # the page, and what is open for all
                    assert answer.headers["content-type"].startswith(("text/html", "text/plain")), trick


def _leads_here(location: str) -> bool:
    return location.startswith(("http://allim.test/", "/")) and not location.startswith("//")


def test_metrics_are_not_there_for_others_however_they_are_spelled(front: Target) -> None:
    assert say(front.port, request("GET", "/metrics")).only.status == 404
    for trick in tricks(b"/metrics"):
        for answer in say(front.port, request("GET", trick)).answers:
            assert b"allim_" not in answer.body, trick


@pytest.mark.parametrize("name", [b"me", b"events"])
def test_with_a_token_every_spelling_gives_ones_own_or_nothing(either: Target, name: bytes) -> None:
    auth = {"Authorization": f"Bearer {token('paths')}"}
    for trick in tricks(ROUTES[name]):
        for answer in say(either.port, request("GET", trick, auth), quiet_s=0.05).answers:
            assert answer.status in {200, 307, 400, 404, 405, 414, 422, 431}, (trick, answer)


@pytest.mark.parametrize(
    "path",
    [b"/assets/../../pyproject.toml", b"/assets/..%2f..%2fpyproject.toml", b"/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
     b"/assets/..%5c..%5cpyproject.toml", b"/assets//etc/passwd", b"/assets/%2fetc%2fpasswd", b"/assets/", b"/assets",
     b"/assets/.", b"/assets/%00", b"/assets/" + b"a" * 300, b"/assets/index.html%00.js"],
)  # fmt: skip
def test_no_file_but_the_pages_own_is_served(either: Target, path: bytes) -> None:
    for answer in say(either.port, request("GET", path)).answers:
        assert answer.status in {307, 400, 404, 405}, answer
        assert b"root:" not in answer.body
        assert b"[project]" not in answer.body


@pytest.mark.parametrize(
    "id_", [b"%00", b"%0d%0aa", b"*", b"..", b"%2e%2e", b"a%2fb", b"' OR 1=1", b"%ff", b"x" * 3000]
)
def test_a_strange_id_is_not_found(either: Target, id_: bytes) -> None:
    auth = {"Authorization": f"Bearer {token('paths')}"}
    path = b"/api/accounts/me/snapshots/" + id_.replace(b" ", b"%20")
    (answer,) = say(either.port, request("GET", path, auth)).answers

    assert answer.status in {400, 404}
