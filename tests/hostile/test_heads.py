"""Every header that is read, logged, passed on or answered, with everything a header must not hold."""

import re
import time

import pytest
from harness.replicas import PUBLISH_KEY, token

from tests.hostile.conftest import Target
from tests.hostile.texts import BYTES, TEXTS
from tests.hostile.wire import Answer, Said, request, say

ME = "/api/accounts/me"
EVENTS = "/events"
PUBLISH = "/api/publish"
EVENT = b'{"topic":"heads","type":"t","data":1}'

VALUES: dict[str, bytes] = {
    **{name: text.encode() for name, text in TEXTS.items()},
    **BYTES,
    "a folded line": b"a\r\n b",
    "4 kB": b"a" * 4000,
    "a tab": b"a\tb",
    "many commas": b"," * 500,
    "many equals": b"=;" * 500,
    "negative": b"-1",
    "an address": b"[::1%eth0]:99999",
    "half an address": b"[",
    "a URL": b"http://user:pass@evil.example:1/a?b#c",
    "null": b"null",
}
HEADERS = [
    "Host",
    "Origin",
    "Referer",
    "User-Agent",
    "Accept",
    "Accept-Encoding",
    "Authorization",
    "Cookie",
    "Content-Type",
    "Idempotency-Key",
    "Last-Event-ID",
    "X-Request-ID",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "Forwarded",
    "Sec-Fetch-Site",
    "If-None-Match",
    "If-Modified-Since",
    "Range",
    "Expect",
    "Upgrade",
]
KNOWN = re.compile(
    r"content-(type|length|encoding|range|security-policy)|date|server|connection|keep-alive|transfer-encoding"
    r"|x-(request-id|accel-buffering|content-type-options|frame-options)|cache-control|retry-after|www-authenticate"
    r"|allow|location|vary|etag|last-modified|accept-ranges|set-cookie|referrer-policy|permissions-policy"
    r"|access-control-[a-z-]+|ratelimit[a-z-]*|cross-origin-[a-z-]+|strict-transport-security"
)


@pytest.mark.parametrize("header", HEADERS)
def test_a_strange_header_injects_nothing_and_breaks_nothing(either: Target, header: str) -> None:
    for name, value in VALUES.items():
        asks = [
            request("GET", ME, {"Authorization": f"Bearer {token('heads')}", header: value}),
            request("GET", "/", {header: value}),
            request("POST", "/api/session", {"Content-Type": "application/json", header: value}, b'{"email":1}'),
        ]
        for answer in (answer for ask in asks for answer in say(either.port, ask, quiet_s=0.1).answers):
            assert answer.status < 500, (name, answer)
            assert not [known for known in answer.headers if not KNOWN.fullmatch(known)], name


@pytest.mark.parametrize("name", VALUES)
def test_a_request_id_is_kept_or_replaced(either: Target, name: str) -> None:
    said = say(either.port, request("GET", "/nothing", {"X-Request-ID": VALUES[name]}))

    for answer in said.answers:
        if answer.status == 404:
            assert re.fullmatch(r"[A-Za-z0-9._~-]{1,64}", answer.headers["x-request-id"])
            assert answer.headers["x-request-id"] in answer.body.decode()


@pytest.mark.parametrize("header", ["Authorization", "Cookie"])
@pytest.mark.parametrize("name", VALUES)
def test_a_strange_credential_is_none(either: Target, header: str, name: str) -> None:
    for before in (b"", b"Bearer ", b"allim_session=", b"allim_session=a; allim_session="):
        for target in (ME, EVENTS):
            said = say(either.port, request("GET", target, {header: before + VALUES[name]}))

            assert all(answer.status in {400, 401, 431} for answer in said.answers), said


@pytest.mark.parametrize("name", VALUES)
def test_a_strange_ticket_is_none_and_not_repeated(either: Target, name: str) -> None:
    ticket = b"".join(b"%%%02x" % byte for byte in VALUES[name])
    for query in (b"ticket=" + ticket, b"ticket=&ticket=" + ticket, b"ticket=a.b." + ticket):
        said = say(either.port, request("GET", b"/events?" + query))

        assert said.only.status in {400, 401, 414}
        assert len(said.only.body) < 600


@pytest.mark.parametrize("name", VALUES)
def test_a_strange_idempotency_key_is_refused_or_a_key_like_any(either: Target, name: str) -> None:
    headers: dict[str, str | bytes] = {"Authorization": f"Bearer {PUBLISH_KEY}", "Content-Type": "application/json"}
    said = [
        say(either.port, request("POST", PUBLISH, {**headers, "Idempotency-Key": VALUES[name]}, EVENT))
        for _ in range(2)
    ]

    if re.fullmatch(rb"[\x21-\x7e]{1,256}", VALUES[name].strip(b" \t")):
        assert [one.only.status for one in said] == [202, 202]
        assert said[0].only.body == said[1].only.body
    elif b"\n" not in VALUES[name]:  # which nginx takes for the end of the line
        assert all(answer.status in {400, 422} for one in said for answer in one.answers)


@pytest.mark.parametrize("name", VALUES)
def test_a_strange_last_event_id_is_malformed_and_not_repeated(either: Target, name: str) -> None:
    headers: dict[str, str | bytes] = {"Authorization": f"Bearer {token('heads')}", "Last-Event-ID": VALUES[name]}
    said = say(either.port, request("GET", EVENTS, headers))

    for answer in said.answers:
        assert answer.status in {200, 400}
        opening = answer.body.partition(b"\n\n")[0]
        if answer.status == 200:
            assert opening.count(b"\n") == 3
            resume = b'"resume":"new"' if not VALUES[name].strip(b" \t") else b'"reason":"malformed"'
            assert resume in opening


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\r\n" * 100,
        b"\n\n\n",
        b"GET\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/0.9\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\rHost: a\r\r",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"\0" * 1000,
        bytes(range(256)) * 4,
        b"GET / HTTP/1.1\r\nHost: a\r\n: empty name\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nna me: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nna\0me: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x: y\r\n" * 1000 + b"\r\n",
        b"* * *\r\n\r\n",
    ],
)
def test_what_is_no_request_is_answered_or_closed(either: Target, head: bytes) -> None:
    said = say(either.port, head, end=True)

    assert said.closed or said.answers
    assert all(answer.status < 500 or answer.status == 505 for answer in said.answers)


@pytest.mark.parametrize(
    "head",
    [
        request("POST", b"/api/\xc3\xa9"),
        request("POST", "/api/session", {"A": b"a\x7fb"}),
        request("POST", "/api/session"),
    ],
    ids=["a path of other bytes", "a header of other bytes", "a body over the limit"],
)
def test_whoever_is_refused_reads_why_and_takes_no_replica_down(front: Target, head: bytes) -> None:
    body = b"x" * 1_500_000
    refused = head.replace(b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % len(body)) + body

    for _ in range(4):  # twice what would take both replicas out of nginx's list
        assert say(front.port, refused).only.status in {400, 413}
        assert say(front.port, request("GET", ME)).only.status == 401


def test_a_refusal_does_not_wait_for_who_sends_on(either: Target) -> None:
    began = time.monotonic()
    answer = _first(say(either.port, b"BREW / HTTP/1.1\r\n\r\n", quiet_s=8))

    assert answer.status == 400
    assert answer.headers.get("connection") == "close"
    assert time.monotonic() - began < 7


def _first(said: Said) -> Answer:
    return said.answers[0]


HOSTS: dict[str, bytes] = {
    "longer than a name may be": b"h" * 256,
    "as long as a head may be": b"h" * 7000,
    "with a path": b"a.example/b",
    "with a space": b"a b",
    "with a user": b"user@a.example",
    "an address that does not end": b"[::1",
    "not ASCII": b"\xe4.example",
}


@pytest.mark.parametrize("name", HOSTS)
def test_a_strange_host_is_a_bad_request_on_every_way(either: Target, name: str) -> None:
    publish: dict[str, str | bytes] = {"Authorization": f"Bearer {PUBLISH_KEY}", "Content-Type": "application/json"}
    asks = [
        request("GET", ME, {"Host": HOSTS[name]}),
        request("GET", "/api/session/providers/google", {"Host": HOSTS[name]}),
        request("GET", EVENTS, {"Authorization": f"Bearer {token('heads')}", "Host": HOSTS[name]}),
        request("POST", PUBLISH, {**publish, "Host": HOSTS[name]}, EVENT),
    ]
    for ask in asks:
        said = say(either.port, ask)

        assert [answer.status for answer in said.answers] == [400], said
        assert len(said.raw) < 1500
