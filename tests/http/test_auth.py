import base64
import json
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey
from starlette.requests import Request
from starlette.responses import Response

from allim.errors import Forbidden, Unauthenticated
from allim.http.auth import PublishKeys, Tokens
from allim.identity import Identity

SECRET = "0123456789abcdef0123456789abcdef"
NOW = 1_700_000_000.0

tokens = Tokens(SECRET, lifetime_s=3600, now=lambda: NOW)


def signed(claims: dict[str, Any], secret: str = SECRET, algorithm: str = "HS256") -> str:
    key = OctKey.import_key(secret)
    return jwt.encode({"alg": algorithm}, claims, key, algorithms=[algorithm])


def request(scheme: str = "http", method: str = "GET", **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "scheme": scheme, "method": method, "path": "/", "query_string": b"", "headers": raw}
    return Request({**scope, "server": ("test", 80)})


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


GOOD = {"sub": "u1", "exp": NOW + 60}


def test_an_issued_token_says_who_and_until_when() -> None:
    identity = tokens.verify(tokens.issue("u1"))

    assert (identity.subject, identity.expires_at, identity.topics) == ("u1", NOW + 3600, ())
    assert len(identity.session) >= 16


def test_each_session_is_another() -> None:
    assert tokens.verify(tokens.issue("u1")).session != tokens.verify(tokens.issue("u1")).session


def test_a_service_may_issue_tokens_without_session_and_with_topics() -> None:
    token = signed({**GOOD, "topics": ["news", "room:7", "room:*"]})

    assert tokens.verify(token) == Identity("u1", "", NOW + 60, ("news", "room:7", "room:*"))


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "u1"},
        {"sub": "u1", "exp": None},
        {"sub": "u1", "exp": True},
        {"sub": "u1", "exp": str(NOW + 60)},
        {"exp": NOW + 60},
        {**GOOD, "sub": ""},
        {**GOOD, "sub": 7},
        {**GOOD, "sub": "a:b"},
        {**GOOD, "sub": "u1\n"},
        {**GOOD, "sub": "x" * 129},
        {**GOOD, "sid": ""},
        {**GOOD, "sid": 7},
        {**GOOD, "nbf": NOW + 5},
        {**GOOD, "topics": "news"},
        {**GOOD, "topics": ["*"]},
        {**GOOD, "topics": ["News"]},
        {**GOOD, "topics": ["room:*x"]},
        {**GOOD, "topics": [7]},
        {**GOOD, "topics": ["news"] * 257},
    ],
)
def test_claims_that_are_missing_or_odd_are_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated):
        tokens.verify(signed(claims))


@pytest.mark.parametrize("late_s", [0, 1])
def test_an_expired_token_is_refused_and_named(late_s: float) -> None:
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.verify(signed({**GOOD, "exp": NOW - late_s}))


def test_tampered_and_foreign_tokens_are_refused() -> None:
    head, body, signature = signed(GOOD).split(".")
    changed = part({**GOOD, "sub": "admin"})
    none = part({"alg": "none", "typ": "JWT"})
    other = signature[:-2] + ("AA" if signature[-2:] != "AA" else "BB")

    for token in (
        f"{head}.{changed}.{signature}",
        f"{head}.{body}.{other}",
        f"{head}.{body}.",
        f"{none}.{body}.",
        f"{none}.{body}.{signature}",
        signed(GOOD, secret=SECRET[::-1]),
        signed(GOOD, algorithm="HS512"),
        "",
        "a.b.c",
        "....",
        "ü",
        f"{head}.{part([1])}.{signature}",
        signed({**GOOD, "pad": "x" * 9000}),
    ):
        with pytest.raises(Unauthenticated):
            tokens.verify(token)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Tokens("short", 60)


def test_bearer_wins_over_the_cookie() -> None:
    cookie = f"allim_session={tokens.issue('cookie')}"

    assert tokens.identify(request(cookie=cookie)).subject == "cookie"
    both = request(cookie=cookie, authorization=f"bearer {tokens.issue('bearer')}")
    assert tokens.identify(both).subject == "bearer"
    with pytest.raises(Unauthenticated):
        tokens.identify(request(cookie=cookie, authorization="Bearer nonsense"))
    with pytest.raises(Unauthenticated):
        tokens.identify(request(cookie=cookie, authorization="Bearer"))
    assert tokens.identify(request(cookie=cookie, authorization="Basic eDp5")).subject == "cookie"


def test_nobody_is_refused() -> None:
    with pytest.raises(Unauthenticated, match="Sign in"):
        tokens.identify(request())


def test_another_sites_page_may_read_but_not_change_by_the_cookie() -> None:
    cookie, token = f"allim_session={tokens.issue('u1')}", tokens.issue("u1")

    with pytest.raises(Forbidden):
        tokens.identify(request(method="DELETE", cookie=cookie, sec_fetch_site="cross-site"))
    assert tokens.identify(request(method="DELETE", cookie=cookie, sec_fetch_site="same-origin")).subject == "u1"
    assert tokens.identify(request(method="GET", cookie=cookie, sec_fetch_site="cross-site")).subject == "u1"
    bearer = request(method="DELETE", authorization=f"Bearer {token}", sec_fetch_site="cross-site")
    assert tokens.identify(bearer).subject == "u1"


@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
def test_the_cookie_is_out_of_reach(scheme: str, secure: bool) -> None:
    kept, cleared = Response(), Response()

    tokens.set_cookie(request(scheme), kept, "token")
    tokens.clear_cookie(request(scheme), cleared)

    flags = {"HttpOnly", "Path=/", "SameSite=lax"} | ({"Secure"} if secure else set())
    assert set(kept.headers["set-cookie"].split("; ")) == flags | {"allim_session=token", "Max-Age=3600"}
    assert set(cleared.headers["set-cookie"].split("; ")) == flags | {'allim_session=""', "Max-Age=0"}


def test_publishers_are_known_by_their_keys() -> None:
    keys = PublishKeys(["billing:s3cret", "bare", "billing:next:with:colons"])

    assert keys.publisher_of(request(authorization="Bearer s3cret")) == "billing"
    assert keys.publisher_of(request(authorization="Bearer next:with:colons")) == "billing"
    bare = keys.publisher_of(request(authorization="Bearer bare"))
    assert len(bare) == 8
    assert bare != "bare"
    for wrong in ("Bearer", "Bearer ", "Bearer S3cret", "Bearer billing:s3cret", "Basic s3cret"):
        with pytest.raises(Unauthenticated):
            keys.publisher_of(request(authorization=wrong))
    with pytest.raises(Unauthenticated):
        keys.publisher_of(request(cookie="allim_session=s3cret"))


def test_without_keys_nobody_publishes() -> None:
    with pytest.raises(Unauthenticated):
        PublishKeys([]).publisher_of(request(authorization="Bearer x"))


@pytest.mark.parametrize("entries", [["name:"], [":secret"], [""], ["bad name:hunter2"], ["a:hunter2", "b:hunter2"]])
def test_odd_keys_are_refused_without_repeating_them(entries: list[str]) -> None:
    with pytest.raises(ValueError, match="publish key") as refusal:
        PublishKeys(entries)

    assert "hunter2" not in str(refusal.value)
