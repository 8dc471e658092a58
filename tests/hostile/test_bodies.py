"""JSON that is strange, huge or a lie, in every field of every route that reads one."""

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from harness.replicas import PUBLISH_KEY, token

from tests.hostile.conftest import Target
from tests.hostile.texts import BYTES, HALF_PAIRS, TEXTS, written

ACCOUNT = {"email": "hostile@example.org", "name": "H", "password": "long enough"}
SESSION = {"email": "hostile@example.org", "password": "long enough"}
EVENT = {"topic": "hostile", "type": "t", "data": 1}
ROUTES: dict[str, dict[str, Any]] = {
    "/api/accounts": ACCOUNT,
    "/api/session": SESSION,
    "/api/publish": EVENT,
    "/api/accounts/me/snapshots": {},
}
FIELDS = [(path, field) for path, body in ROUTES.items() for field in body]
VALUES: dict[str, object] = {
    **TEXTS,
    **HALF_PAIRS,
    "1 MB": "x" * 1_000_000,
    "true": True,
    "null": None,
    "zero": 0,
    "beyond 64 bits": 2**64,
    "negative zero": -0.0,
    "tiny": 5e-324,
    "a list": [["a"]],
    "an object": {"$ne": None, "__class__": "x", "__proto__": {"admin": True}},
}
SOME = ["CRLF", "NUL", "LS", "bidi", "1 MB", "null", *HALF_PAIRS]  # each costs a hash
RAW = {
    "NaN": b'{"topic":"a","type":"t","data":NaN}',
    "Infinity": b'{"topic":"a","type":"t","data":[-Infinity]}',
    "beyond a double": b'{"topic":"a","type":"t","data":1e400}',
    "far beyond a double": b'{"topic":"a","type":"t","data":-1e999999999999}',
    "5000 digits": b'{"topic":"a","type":"t","data":%b}' % (b"9" * 5000),
    "100,000 digits": b'{"topic":"a","type":"t","data":%b}' % (b"9" * 100_000),
    "5000 digits behind the point": b'{"topic":"a","type":"t","data":1e%b}' % (b"9" * 5000),
    "10,000 lists": b'{"topic":"a","type":"t","data":%b}' % (b"[" * 10_000 + b"]" * 10_000),
    "10,000 objects": b'{"topic":"a","type":"t","data":%b1%b}' % (b'{"a":' * 10_000, b"}" * 10_000),
    "10,000 open lists": b"[" * 10_000,
    "65 levels": b"[" * 65 + b"]" * 65,
    "a name twice": b'{"topic":"a","topic":"user:1","type":"t","data":1}',
    "a name twice, escaped": b'{"topic":"a","\\u0074opic":"user:1","type":"t","data":1}',
    "a name twice, inside": b'{"topic":"a","type":"t","data":{"a":1,"a":2}}',
    "another case": b'{"Topic":"a","type":"t","data":1}',
    "a BOM": b'\xef\xbb\xbf{"topic":"a","type":"t","data":1}',
    "UTF-16": '{"topic":"a","type":"t","data":1}'.encode("utf-16"),
    "a comment": b'{"topic":"a","type":"t","data":1}//',
    "a comma too many": b'{"topic":"a","type":"t","data":1,}',
    "two values": b'{"topic":"a","type":"t","data":1}{"topic":"a","type":"t","data":1}',
    "a raw line end": b'{"topic":"a","type":"t","data":"a\nb"}',
    "a raw NUL": b'{"topic":"a","type":"t","data":"a\0b"}',
    "single quotes": b"{'topic':'a','type':'t','data':1}",
    "plus": b'{"topic":"a","type":"t","data":+1}',
    "a zero before": b'{"topic":"a","type":"t","data":01}',
    "hexadecimal": b'{"topic":"a","type":"t","data":0x1}',
    "unicode digits": '{"topic":"a","type":"t","data":１}'.encode(),
    "a no-break space": '{\u00a0"topic":"a","type":"t","data":1}'.encode(),
    "nothing but spaces": b" \t\r\n" * 100,
    "a form": b"topic=a&type=t&data=1",
    "XML": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    **{f"bytes: {name}": b'{"topic":"a","type":"t","data":"%b"}' % raw for name, raw in BYTES.items()},
}
EXACT = {  # what is read, as the reader of the stream finds it
    "-0": 0,
    "-0.0": -0.0,
    "1E2": 100.0,
    "1e-400": 0.0,
    "123456789012345678901234567890": 123456789012345678901234567890,
    '"\\ud83d\\ude00"': "\U0001f600",
    '"\\u2028\\u0085\\u000d\\u0000"': "\u2028\x85\r\0",
    "[" * 62 + "]" * 62: json.loads("[" * 62 + "]" * 62),
}


@pytest.fixture
def post(either: Target) -> Callable[[str, bytes], httpx.Response]:
    """A body for a route, from one who may send one there."""

    def post(path: str, body: bytes) -> httpx.Response:
        known = {"/api/publish": PUBLISH_KEY, "/api/accounts/me/snapshots": token("nobody-here")}
        headers = {"content-type": "application/json"}
        if path in known:
            headers["authorization"] = f"Bearer {known[path]}"
        return either.http.post(either.url + path, content=body, headers=headers)

    return post


def expect_problem(answer: httpx.Response, *statuses: int) -> None:
    assert answer.status_code in statuses, answer.text[:300]
    assert answer.headers["content-type"].split(";")[0] == "application/problem+json"
    assert answer.json()["status"] == answer.status_code
    assert len(answer.content) < 2000, "what was sent is not repeated"


@pytest.mark.parametrize(("path", "field"), FIELDS, ids=[f"{path} {field}" for path, field in FIELDS])
def test_a_strange_value_is_taken_or_refused_by_its_field(
    post: Callable[[str, bytes], httpx.Response], path: str, field: str
) -> None:
    values = VALUES if path != "/api/session" else {name: VALUES[name] for name in SOME}
    for name, value in values.items():
        answer = post(path, written({**ROUTES[path], field: value}))

        if answer.status_code in {200, 201, 202}:
            assert field not in {"email", "topic", "type"} or _plain(str(value).strip()), name
            continue
        if answer.status_code == 409:  # the account of the value before
            continue
        expect_problem(answer, 401, 413, 422)
        named = {error["field"] for error in answer.json().get("errors", [])}
        assert named <= {field, "body", *([f"{field}.__proto__"] if isinstance(value, dict) else [])}, (name, named)
        assert field != "password" or not isinstance(value, str) or len(value) < 3 or value not in answer.text


def _plain(text: str) -> bool:
    return re.fullmatch(r"[\x21-\x7e]*", text) is not None


@pytest.mark.parametrize("path", ROUTES)
def test_a_strange_name_is_unknown(post: Callable[[str, bytes], httpx.Response], path: str) -> None:
    for text in [*TEXTS.values(), *HALF_PAIRS.values()]:
        answer = post(path, written({**ROUTES[path], text: 1}))

        expect_problem(answer, 401, 413, 422)
        if answer.status_code == 422:
            assert answer.json()["errors"], text


@pytest.mark.parametrize("path", ROUTES)
def test_what_is_not_quite_json_is_refused(post: Callable[[str, bytes], httpx.Response], path: str) -> None:
    for name, body in RAW.items():
        answer = post(path, body)

        assert answer.status_code in {401, 404, 413, 422}, (name, answer.text[:300])
        expect_problem(answer, answer.status_code)


@pytest.mark.parametrize("name", RAW)
def test_a_publisher_is_told_that_the_body_is_at_fault(
    post: Callable[[str, bytes], httpx.Response], name: str
) -> None:
    expect_problem(post("/api/publish", RAW[name]), 413, 422)


@pytest.mark.parametrize("data", EXACT)
def test_what_is_json_is_taken(post: Callable[[str, bytes], httpx.Response], data: str) -> None:
    assert post("/api/publish", b'{"topic":"a","type":"t","data":%b}' % data.encode()).status_code == 202


def test_a_deep_body_costs_no_time(post: Callable[[str, bytes], httpx.Response]) -> None:
    answer = post("/api/publish", b"[" * 2_000_000)

    expect_problem(answer, 422)
    assert answer.elapsed.total_seconds() < 2
