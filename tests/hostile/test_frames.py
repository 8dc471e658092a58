"""Whatever is published, a strict reader hears exactly that, as one event, wherever the bytes are cut."""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from harness.replicas import PUBLISH_KEY, token
from harness.sse_parser import Heard, Strict
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hostile.conftest import Target
from tests.hostile.texts import HALF_PAIRS, TEXTS, written
from tests.hostile.wire import connected, request

TOPIC = "user:frames"
LAST = "frames.last"
TYPE = re.compile(r"[a-z][a-z0-9_.-]{0,127}")
MEMBERS = st.text(max_size=20)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(list(TEXTS.values())),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(MEMBERS | st.sampled_from(["", "\u2028"]), inner, max_size=4)
    ),
    max_leaves=12,
)
EVENTS = st.lists(st.tuples(st.from_regex(r"\Aframes\.[a-z0-9_.-]{1,20}\Z"), VALUES), min_size=1, max_size=8)


def publish(target: Target, body: object) -> httpx.Response:
    headers = {"authorization": f"Bearer {PUBLISH_KEY}", "content-type": "application/json"}
    return target.http.post(f"{target.url}/api/publish", content=written(body), headers=headers)


def event(data: object, type_: str = "frames.one", topic: str = TOPIC) -> dict[str, object]:
    return {"topic": topic, "type": type_, "data": data}


@contextmanager
def stream(target: Target, who: str = "frames") -> Iterator[socket.socket]:
    """An open stream, whose response head and first frame have been read."""
    with connected(target.port) as connection:
        connection.sendall(request("GET", "/events", {"Authorization": f"Bearer {token(who)}"}))
        head = read_to(connection, b"\r\n\r\n", b"\n\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        yield connection


def read_to(connection: socket.socket, *marks: bytes) -> bytes:
    """The bytes up to and with the last mark, each looked for behind the one before."""
    raw = b""
    while True:
        at = 0
        for mark in marks:
            found = raw.find(mark, at)
            if found < 0:
                break
            at = found + len(mark)
        else:
            return raw
        chunk = connection.recv(65536)
        assert chunk, f"the stream has ended: {raw[-500:]!r}"
        raw += chunk


def wire_of(target: Target, connection: socket.socket, *events: dict[str, object]) -> tuple[list[str], bytes]:
    """Publish these and a last one; their positions, and all bytes of the stream up to the last one's end."""
    answer = publish(target, [*events, event(None, LAST)])
    assert answer.status_code == 202, answer.text
    ids = answer.json()["ids"]
    return ids[:-1], read_to(connection, f"id: {ids[-1]}\n".encode(), b"\n\n")


def domain_events(heard: list[Heard]) -> list[Heard]:
    return [one for one in heard if one.type not in {"heartbeat", LAST}]


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    ends = [*sorted(place % (len(raw) + 1) for place in places), len(raw)]
    return [raw[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@pytest.fixture
def published(alone: Target) -> Iterator[tuple[Target, socket.socket]]:
    with stream(alone) as connection:
        yield alone, connection


def test_any_json_arrives_as_it_was_sent_wherever_the_bytes_are_cut(published: tuple[Target, socket.socket]) -> None:
    target, connection = published

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(EVENTS, st.lists(st.integers(0, 1 << 20), max_size=40))
    def holds(events: list[tuple[str, Any]], places: list[int]) -> None:
        ids, raw = wire_of(target, connection, *(event(data, type_) for type_, data in events))

        heard = domain_events(Strict().take(cut(raw, places)))

        assert [(one.type, one.id) for one in heard] == [
            (type_, id_) for (type_, _), id_ in zip(events, ids, strict=True)
        ]
        assert [_same(one.data) for one in heard] == [_same(json.dumps(data)) for _, data in events]

    holds()


def _same(text: str) -> str:
    """One form for what is the same JSON value, with `1`, `1.0` and `true` apart."""
    return json.dumps(json.loads(text), sort_keys=True)


@pytest.mark.parametrize("text", [*TEXTS.values(), "x" * 60_000], ids=[*TEXTS, "60 kB"])
def test_a_text_that_looks_like_a_frame_stays_a_text(published: tuple[Target, socket.socket], text: str) -> None:
    target, connection = published
    ids, raw = wire_of(target, connection, event(text), event({text[:100]: [text]}))

    heard = domain_events(Strict().take([raw]))

    assert [(one.type, one.id) for one in heard] == [("frames.one", id_) for id_ in ids]
    assert [json.loads(one.data) for one in heard] == [text, {text[:100]: [text]}]


@pytest.mark.parametrize("text", [*TEXTS.values(), *HALF_PAIRS.values()], ids=[*TEXTS, *HALF_PAIRS])
def test_a_type_is_of_its_form_or_refused(published: tuple[Target, socket.socket], text: str) -> None:
    target, _ = published
    for type_ in (text, f"frames.{text}"):
        answer = publish(target, event(1, type_))

        if TYPE.fullmatch(type_):
            assert answer.status_code == 202
        else:
            assert answer.status_code == 422
            assert {error["field"] for error in answer.json()["errors"]} <= {"type", "body"}
            assert len(answer.content) < 1000, "what was sent is not repeated"


@pytest.mark.parametrize(
    "type_", ["stream.open", "stream.close", "stream.end", "heartbeat", "heartbeat.x", "stream."]
)
def test_nobody_speaks_in_the_streams_own_name(published: tuple[Target, socket.socket], type_: str) -> None:
    target, _ = published

    assert publish(target, event({"session": "", "reason": "kicked"}, type_)).status_code == 422


def test_an_event_does_not_reach_another_user(alone: Target) -> None:
    with stream(alone, "frames-other") as other, stream(alone) as own:
        wire_of(alone, own, event("for one alone"))
        answer = publish(alone, event("the other's", LAST, "user:frames-other"))

        raw = read_to(other, f"id: {answer.json()['id']}\n".encode(), b"\n\n")

    assert b"for one alone" not in raw
    assert [json.loads(one.data) for one in Strict().take([raw]) if one.type != "heartbeat"] == ["the other's"]
