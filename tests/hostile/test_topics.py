"""Topics that mean something to a pattern, a path or a key: they are refused, and nothing else is found in Redis."""

import re
import time
from urllib.parse import quote, quote_from_bytes

import pytest
from harness.replicas import PUBLISH_KEY, SECRET, token_for_topics
from joserfc import jwt
from joserfc.jwk import OctKey

from tests.hostile.conftest import PREFIX, Target
from tests.hostile.test_frames import event, publish
from tests.hostile.texts import BYTES, HALF_PAIRS, TEXTS
from tests.hostile.wire import Said, request, say

TOPIC = re.compile(r"[a-z][a-z0-9_-]{0,63}(:([A-Za-z0-9._~-]|%[0-9A-F]{2}){1,1020})?")
KEY = re.compile(rf"{PREFIX}:\{{0\}}:[a-z_]+(:[A-Za-z0-9._~:%-]+)?")
GRANTED = ("news:*", "exact")

STRANGE = [
    *TEXTS.values(),
    "user:*", "user:?", "user:[a-z]", "user:{42}", "{0}", "*", "news:*", "news:**", "news:", ":", "a:b:c", "A:b",
    "news:a b", "news:%2a", "news:..", "news:../x", "news:a\n", "news:١٢", "news:é", "user:４２", "system\0",
    "system ", "x" * 65, "news:" + "x" * 1021, "allim:{0}:clock", "__keyspace@0__:*",
]  # fmt: skip


def ask(target: Target, query: bytes, *topics: str) -> Said:
    who = token_for_topics("topics", *(topics or GRANTED))
    return say(target.port, request("GET", b"/events?" + query, {"Authorization": f"Bearer {who}"}))


@pytest.mark.parametrize("topic", STRANGE)
def test_a_topic_in_the_query_is_granted_or_refused(either: Target, topic: str) -> None:
    answers = ask(either, b"topics=" + quote(topic, safe="").encode()).answers

    asked = [part for part in topic.split(",") if part]
    if not all(TOPIC.fullmatch(part) for part in asked):
        (answer,) = answers
        assert answer.status in {414, 422}
        assert answer.status == 414 or answer.headers["content-type"].startswith("application/problem+json")
        assert len(answer.body) < 1000, "what was sent is not repeated"
    elif all(part.startswith("news:") or part == "exact" for part in asked):
        assert [answer.status for answer in answers] == [200]
    else:
        assert [answer.status for answer in answers] == [403]


@pytest.mark.parametrize("raw", BYTES.values(), ids=BYTES)
def test_bytes_that_are_no_text_are_no_topic(either: Target, raw: bytes) -> None:
    for query in (raw, quote_from_bytes(raw, safe=b"").encode()):
        said = ask(either, b"topics=news:" + query)

        assert all(answer.status in {400, 422} for answer in said.answers), said
        assert said.answers or said.closed


@pytest.mark.parametrize(
    "query",
    [b"topics", b"topics=", b"topics=,,,", b"topics=&topics=&topics=", b"", b"&&&", b"topics=news:a&topics=news:a"],
)
def test_nothing_asked_is_nothing_added(either: Target, query: bytes) -> None:
    (answer,) = ask(either, query).answers

    assert answer.status == 200


@pytest.mark.parametrize(
    "query", [b"Topics=a", b"topics%5b%5d=a", b"topics%00=a", b"topic=a", b"=a", b"Ticket=a", b"a" * 3000]
)
def test_another_name_is_ignored(either: Target, query: bytes) -> None:
    (answer,) = ask(either, query).answers

    assert answer.status == 200
    assert len(answer.body) < 1000


def test_an_escaped_name_is_that_name(either: Target) -> None:
    (answer,) = ask(either, b"%74opics=*").answers

    assert answer.status == 422
    assert len(answer.body) < 1000


def test_ten_thousand_topics_are_refused_at_once(either: Target) -> None:
    query = b"topics=" + b",".join(b"news:%d" % number for number in range(10_000))
    began = time.monotonic()

    answers = ask(either, query).answers

    assert [answer.status for answer in answers if answer.status not in {400, 414, 422, 431}] == []
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "grant", ["*", "*:*", "news*", "news:*:*", "news:a*", "ne?s:*", "[a-z]:*", "", "user:\n*", "{0}:*"]
)
def test_a_grant_that_is_a_pattern_is_no_grant(either: Target, grant: str) -> None:
    claims = {"sub": "topics", "exp": int(time.time()) + 60, "topics": [grant]}
    who = jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET))

    said = say(either.port, request("GET", "/events", {"Authorization": f"Bearer {who}"}))

    assert said.only.status == 401


@pytest.mark.parametrize(
    ("grant", "topic"), [("news:*", "newsy:a"), ("news:*", "news"), ("exact", "exact:a"), ("a-b", "a_b")]
)
def test_a_grant_grants_no_neighbour(either: Target, grant: str, topic: str) -> None:
    assert ask(either, b"topics=" + topic.encode(), grant).only.status == 403


def test_redis_knows_no_name_that_a_stranger_chose(over_redis: Target) -> None:
    assert over_redis.redis is not None
    for number, text in enumerate([*STRANGE, *HALF_PAIRS.values()]):
        for topic in (text, f"news:{text}"):
            assert publish(over_redis, event(1, topic=topic)).status_code in (
                {202} if TOPIC.fullmatch(topic) else {422}
            )
        key = {"Authorization": f"Bearer {PUBLISH_KEY}", "Content-Type": "application/json"}
        key["Idempotency-Key"] = f"{{1}}:*:{number}"
        say(over_redis.port, request("POST", "/api/publish", key, b'{"topic":"news:a","type":"t","data":1}'))
        ask(over_redis, b"topics=" + quote(text.encode("utf-8", "surrogatepass")).encode())

    with over_redis.redis.client() as client:
        names = [name.decode() for name in client.scan_iter(f"{PREFIX}:*", count=1000)]
        channels = [name.decode() for name in client.pubsub_channels(f"{PREFIX}:*")]
        patterns = client.pubsub_numpat()

    assert len(names) > len(STRANGE)
    assert [name for name in names + channels if not KEY.fullmatch(name)] == []
    assert patterns == 0
    keys = [name for name in names if ":key:" in name]
    assert keys
    assert all(re.fullmatch(r"[0-9a-f]{64}", name.rpartition(":")[2]) for name in keys)
