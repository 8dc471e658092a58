"""Beside an application with its own users: two replicas over Redis take its tokens, read its cookie, and ask it for
topics.
"""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from harness.replicas import SECRET, Reader, Replica, bearer, replica, token
from harness.servers import Redis
from harness.waiting import until_sync
from joserfc import jwt
from joserfc.errors import BadSignatureError
from joserfc.jwk import OctKey

from allim.identity import user_topic
from tests.access.issuers import ec_key, signed
from tests.access.shop import SECRET as WEBHOOK_SECRET
from tests.access.shop import Shop, shop

pytestmark = pytest.mark.anyio

SHOP_SECRET = "the key of the shop, with which allim verifies"
SHOP_KEY = OctKey.import_key(SHOP_SECRET.encode())
IDP_PEM = ec_key("idp").as_pem(private=False).decode()
ISSUERS = [
    {"issuer": "https://shop.test", "secret": SHOP_SECRET, "audience": "shop"},
    {
        "issuer": "https://idp.test/",
        "publicKey": IDP_PEM,
        "audience": "allim",
        "claims": {"role": "realm_access.roles"},
    },
]
MIN = "auth0|min/+= 김@shop.test"


def of_shop(subject: object, **claims: Any) -> str:
    said = {"iss": "https://shop.test", "aud": "shop", "sub": subject, "iat": time.time(), "exp": time.time() + 3600}
    return signed("HS256", SHOP_KEY, {**said, **claims})


def of_idp(subject: str, *roles: str) -> str:
    said = {"iss": "https://idp.test/", "aud": "allim", "sub": subject, "exp": time.time() + 3600}
    return signed("ES256", ec_key("idp"), {**said, "realm_access": {"roles": roles}})


@pytest.fixture(scope="module")
def app() -> Iterator[Shop]:
    with shop() as running:
        running.rooms = {"room:1": {MIN}}
        running.ttl_s = 0
        yield running


@pytest.fixture(scope="module")
def replicas(app: Shop, redis: Redis) -> Iterator[list[Replica]]:
    settings: dict[str, Any] = {
        "redis_url": redis.url,
        "redis_prefix": "beside",
        "issuers": json.dumps(ISSUERS),
        "cookie_name": "shop_session",
        "authorize_url": app.url,
        "authorize_secret": WEBHOOK_SECRET,
        "accounts_registration": "closed",
    }
    with ExitStack() as stack:
        yield [stack.enter_context(replica(**settings)) for _ in range(2)]


def answer_of(server: Replica, who: str, **query: str) -> httpx.Response:
    """What a stream would be answered."""
    return httpx.head(f"{server.url}/events", params=query, headers=bearer(who))


async def test_the_browsers_own_cookie_opens_a_stream_of_any_subject_and_a_kick_ends_it(
    replicas: list[Replica],
) -> None:
    here, there = replicas
    async with await Reader.open(here.url, "", cookie=f"theme=dark; shop_session={of_shop(MIN)}") as stream:
        assert (await stream.next("stream.open")).data["user"] == MIN
        assert there.publish((user_topic(MIN), "orders.shipped", {"n": 1})).status_code == 202
        assert (await stream.next("orders.shipped")).data == {"n": 1}

        path = f"{there.url}/api/users/{quote(MIN, safe='')}/streams"
        assert httpx.delete(path, headers=bearer(of_shop("42", role="operator"))).status_code == 403
        assert httpx.delete(path, headers=bearer(of_idp("boss", "operator"))).status_code == 204
        assert (await stream.next("stream.close")).data["reason"] == "kicked"


async def test_an_integer_is_the_user_of_its_digits(replicas: list[Replica]) -> None:
    async with await Reader.open(replicas[0].url, of_shop(42)) as stream:
        await stream.next("stream.open")
        replicas[1].publish(("user:42", "orders.shipped", None))
        await stream.next("orders.shipped")


def test_a_sign_out_ends_a_session_of_the_application_on_every_replica(replicas: list[Replica]) -> None:
    session, other = of_shop("left", sid="s/1"), of_shop("left", sid="s/2")
    assert httpx.delete(f"{replicas[0].url}/api/session", headers=bearer(session)).status_code == 204

    refused, good = [httpx.get(f"{replicas[1].url}/api/session", headers=bearer(who)) for who in (session, other)]

    assert (refused.status_code, refused.json()["code"]) == (401, "signed_out")
    assert (good.status_code, good.json()["user"]) == (200, "left")


def test_keys_are_apart(replicas: list[Replica]) -> None:
    """A stranger with a token of allim is a stranger at the shop, and the shop alone renews its tokens."""
    server = replicas[0]
    with pytest.raises(BadSignatureError):
        jwt.decode(token("stranger"), SHOP_KEY, algorithms=["HS256"])
    forged = [
        signed(
            "HS256", OctKey.import_key(SECRET), {"iss": "https://shop.test", "aud": "shop", "sub": "1", "exp": 4e9}
        ),
        signed("HS256", SHOP_KEY, {"iss": "allim", "sub": "1", "exp": 4e9}),
        signed(
            "HS256", OctKey(IDP_PEM.encode(), IDP_PEM.encode()), {"iss": "https://idp.test/", "sub": "1", "exp": 4e9}
        ),
        signed("HS256", SHOP_KEY, {"iss": "https://else.test", "sub": "1", "exp": 4e9}),
    ]

    assert [answer_of(server, who).status_code for who in forged] == [401] * 4
    assert answer_of(server, token("mine")).status_code == 200
    renewal = httpx.post(f"{server.url}/api/session/renew", headers=bearer(of_shop("42")))
    assert (renewal.status_code, renewal.json()["errors"][0]["field"]) == (422, "token")
    assert httpx.get(f"{server.url}/api/session", headers=bearer(of_shop("42"))).json()["renewalDue"] is False


def test_where_registration_is_closed_no_account_is_made(replicas: list[Replica]) -> None:
    new = {"email": "min@example.org", "name": "Min", "password": "a good password"}

    answer = httpx.post(f"{replicas[0].url}/api/accounts", json=new)

    assert (answer.status_code, answer.json()["code"]) == (403, "registration_closed")
    assert httpx.get(f"{replicas[0].url}/api/session/providers").json()["registration"] == "closed"


async def test_the_application_decides_on_topics_each_time_anew(replicas: list[Replica], app: Shop) -> None:
    here, there = replicas
    async with await Reader.open(here.url, of_shop(MIN), query="?topics=room:1") as stream:
        await stream.next("stream.open")
        there.publish(("room:1", "chat.said", {"n": 1}))
        await stream.next("chat.said")
    member, stranger = of_shop(MIN), of_shop("42")

    assert app.asked[-1] == {"subject": MIN, "topics": ["room:1"]}
    assert answer_of(there, stranger, topics="room:1").status_code == 403
    assert answer_of(there, member, topics="room:1,room:2").status_code == 403
    ticket = httpx.post(f"{here.url}/api/tickets", json={"topics": ["room:1"]}, headers=bearer(member)).json()[
        "ticket"
    ]
    assert httpx.head(f"{there.url}/events", params={"ticket": ticket}).status_code == 200
    app.rooms["room:1"].clear()
    assert httpx.head(f"{there.url}/events", params={"ticket": ticket}).status_code == 403
    app.rooms["room:1"].add(MIN)


def test_while_the_application_does_not_answer_its_topics_are_503_and_all_else_goes_on(
    replicas: list[Replica], app: Shop
) -> None:
    server, member = replicas[0], of_shop(MIN)
    before = server.metric("allim_authorize_total", outcome="timeout")
    app.go_on.clear()
    try:
        answer = httpx.get(f"{server.url}/events", params={"topics": "room:1"}, headers=bearer(member), timeout=30)
        assert answer_of(server, member).status_code == 200
    finally:
        app.go_on.set()

    assert (answer.status_code, answer.json()["code"]) == (503, "authorize_unavailable")
    assert answer.json()["retryable"] is True
    assert int(answer.headers["retry-after"]) >= 1
    assert server.metric("allim_authorize_total", outcome="timeout") == before + 1
    until_sync(lambda: answer_of(server, member, topics="room:1").status_code == 200, what="the shop's topics")
