"""ALLIM_ISSUERS: which tokens of an application or an identity provider are taken, and by which keys."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import OctKey
from structlog.testing import capture_logs

from allim.access.claims import value_at
from allim.access.issuers import Issuer, JwksKeys, read_issuers
from allim.access.jwks import Jwks
from allim.access.tokens import Tokens
from allim.errors import Invalid, Unauthenticated
from allim.hub import check_topic
from allim.identity import Identity
from tests.access.issuers import URL, KeyServer, ec_key, ed_key, jwk, jwk_set, rsa_key, signed

pytestmark = pytest.mark.anyio

OURS = "0123456789abcdef0123456789abcdef"
SHOP_KEY, FEED_KEY = "shop-" + "s" * 32, "feed-" + "f" * 32
NOW = 1_700_000_000.0
SHOP = {"issuer": "https://shop.test", "secret": SHOP_KEY}
GOOD = {"sub": "u1", "exp": NOW + 60}


def tokens_with(*entries: dict[str, Any], named_only: bool = True) -> Tokens:
    issuers = read_issuers(json.dumps(entries)) if entries else []
    return Tokens([OURS], 3600, issuers=issuers, named_only=named_only, now=lambda: NOW)


def by(secret: str, claims: dict[str, Any], **header: Any) -> str:
    return signed("HS256", OctKey.import_key(secret.encode()), claims, **header)


def of_shop(**claims: Any) -> str:
    return by(SHOP_KEY, {**GOOD, "iss": "https://shop.test", **claims})


async def refused(tokens: Tokens, token: str) -> str:
    """Return why the token is refused; the answer itself says nothing."""
    with pytest.raises(Unauthenticated, match=r"^The token is not valid; sign in again\.$") as refusal:
        await tokens.verify(token)
    return refusal.value.reason


# Which issuer judges ------------------------------------------------------------------------------------------------


async def test_each_issuer_is_taken_by_its_own_key_and_by_no_other() -> None:
    tokens = tokens_with(SHOP, {"issuer": "feed", "secret": FEED_KEY})

    assert await tokens.verify(of_shop(sid="s1")) == Identity("u1", "s1", NOW + 60, issuer="https://shop.test")
    assert (await tokens.verify(by(FEED_KEY, {**GOOD, "iss": "feed"}))).issuer == "feed"
    assert await refused(tokens, by(FEED_KEY, {**GOOD, "iss": "https://shop.test"})) == "signature"
    assert await refused(tokens, by(OURS, {**GOOD, "iss": "https://shop.test"})) == "signature"
    assert await refused(tokens, by(SHOP_KEY, {**GOOD, "iss": "allim"})) == "signature"
    assert await refused(tokens, by(SHOP_KEY, {**GOOD, "iss": "https://shop.test/"})) == "issuer"
    assert await refused(tokens, by(OURS, {**GOOD, "iss": "else"})) == "issuer"
    assert await refused(tokens, by(OURS, {**GOOD, "iss": ["https://shop.test"]})) == "issuer"


async def test_two_issuers_with_one_key_are_told_apart_by_their_names_and_audiences() -> None:
    tokens = tokens_with(
        {"issuer": "a", "secret": SHOP_KEY, "audience": "x"},
        {"issuer": "b", "secret": SHOP_KEY, "audience": "y", "claims": {"subject": "uid"}},
    )

    assert (await tokens.verify(by(SHOP_KEY, {**GOOD, "iss": "a", "aud": "x"}))).subject == "u1"
    assert (await tokens.verify(by(SHOP_KEY, {**GOOD, "iss": "b", "aud": ["y"], "uid": 7}))).subject == "7"
    assert await refused(tokens, by(SHOP_KEY, {**GOOD, "iss": "a", "aud": "y"})) == "audience"
    assert await refused(tokens, by(SHOP_KEY, {**GOOD, "iss": "b", "aud": "y"})) == "claim_sub"


async def test_a_token_without_an_issuer_goes_to_the_entry_that_says_so() -> None:
    tokens = tokens_with({"issuer": None, "secret": SHOP_KEY}, {"issuer": "feed", "secret": FEED_KEY})

    assert (await tokens.verify(by(SHOP_KEY, GOOD))).issuer == ""
    assert (await tokens.verify(by(SHOP_KEY, {**GOOD, "iss": None}))).subject == "u1"
    assert await refused(tokens, by(FEED_KEY, GOOD)) == "signature"
    assert await refused(tokens, by(OURS, GOOD)) == "signature"


async def test_a_session_from_before_tokens_named_allim_is_good_until_it_expires_and_is_renewed() -> None:
    tokens = tokens_with({"issuer": None, "secret": SHOP_KEY}, SHOP)
    head = json.loads(base64.urlsafe_b64decode(tokens.issue("u1").partition(".")[0] + "=="))
    old = by(OURS, {**GOOD, "sid": "s1", "iat": NOW, "auth_time": NOW}, kid=head["kid"])

    assert await tokens.verify(old) == Identity("u1", "s1", NOW + 60, issued_at=NOW)
    assert (await tokens.verify(tokens.renew(old))).session == "s1"
    assert await refused(tokens, by(SHOP_KEY, GOOD, kid=head["kid"])) == "signature"


async def test_a_token_that_allim_signs_names_allim_and_is_good_at_no_issuer_of_the_list() -> None:
    tokens = tokens_with(SHOP)
    claims = json.loads(base64.urlsafe_b64decode(tokens.issue("u1").split(".")[1] + "=="))

    assert claims["iss"] == "allim"
    assert (await tokens.verify(tokens.issue("u1"))).issuer == "allim"
    [shop] = read_issuers(json.dumps([{**SHOP, "issuer": "allim"}]))
    with pytest.raises(ValueError, match="must not be allim"):
        Tokens([OURS], 60, issuers=[shop])


async def test_only_what_allim_signed_is_renewed() -> None:
    tokens = tokens_with(SHOP)
    token = of_shop(iat=NOW - 3600)

    assert not tokens.life(token, await tokens.verify(token)).renewal_due
    with pytest.raises(Invalid, match="its issuer"):
        tokens.renew(token)


async def test_until_a_list_is_given_a_service_may_share_the_key_and_is_warned_of_once() -> None:
    sharing = tokens_with(named_only=False)

    with capture_logs() as logs:
        assert (await sharing.verify(by(OURS, {**GOOD, "iss": "billing", "role": "editor"}))).role == "user"
        assert (await sharing.verify(by(OURS, GOOD))).subject == "u1"
        await sharing.verify(sharing.issue("u1"))

    assert [line["issuer"] for line in logs] == ["billing"]
    assert await refused(sharing, signed("ES256", ec_key(), {**GOOD, "iss": "billing"})) == "issuer"


# Keys and algorithms ------------------------------------------------------------------------------------------------

PUBLIC_PEM = {
    key: pem.as_pem(private=False).decode() for key, pem in (("rsa", rsa_key()), ("ec", ec_key()), ("ed", ed_key()))
}
PEM_ISSUER = {"issuer": "idp", "publicKey": PUBLIC_PEM["rsa"], "audience": "allim"}
OF_IDP = {**GOOD, "iss": "idp", "aud": "allim"}


@pytest.mark.parametrize(
    ("pem", "alg", "key"),
    [("rsa", "RS256", rsa_key()), ("ec", "ES256", ec_key()), ("ed", "EdDSA", ed_key())],
    ids=["RS256", "ES256", "EdDSA"],
)
async def test_a_public_key_verifies_the_algorithm_of_its_kind_alone(pem: str, alg: str, key: Any) -> None:
    tokens = tokens_with({**PEM_ISSUER, "publicKey": PUBLIC_PEM[pem]})

    assert (await tokens.verify(signed(alg, key, OF_IDP, kid="whatever"))).subject == "u1"
    other = signed("ES256", ec_key(), OF_IDP) if alg != "ES256" else signed("RS256", rsa_key(), OF_IDP)
    assert await refused(tokens, other) == "algorithm"


async def test_several_public_keys_in_one_text_are_all_good() -> None:
    tokens = tokens_with({**PEM_ISSUER, "publicKey": f"old\n{PUBLIC_PEM['rsa']}\n{PUBLIC_PEM['ec']}"})

    assert (await tokens.verify(signed("RS256", rsa_key(), OF_IDP))).subject == "u1"
    assert (await tokens.verify(signed("ES256", ec_key(), OF_IDP))).subject == "u1"
    assert await refused(tokens, signed("RS256", rsa_key("stranger"), OF_IDP)) == "signature"


@pytest.mark.parametrize("pem", [PUBLIC_PEM["rsa"], PUBLIC_PEM["rsa"].strip(), PUBLIC_PEM["rsa"].replace("\n", "")])
async def test_the_text_of_a_public_key_is_no_secret(pem: str) -> None:
    """Algorithm confusion: HS256 with the public key as the secret, which is known to everybody."""
    tokens = tokens_with(PEM_ISSUER)
    key = OctKey(pem.encode(), pem.encode())  # not by `import_key`, which refuses it

    assert await refused(tokens, signed("HS256", key, OF_IDP)) == "algorithm"


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "HS384", "RS256", ""])
async def test_no_other_algorithm_stands_for_a_secret(alg: str) -> None:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    body = part({**GOOD, "iss": "https://shop.test"})
    for signature in ("", of_shop().rpartition(".")[2]):
        assert await refused(tokens_with(SHOP), f"{part({'alg': alg})}.{body}.{signature}") in (
            "algorithm",
            "malformed",
        )


async def test_a_new_secret_is_taken_beside_the_old_one_and_a_kid_says_nothing_of_secrets() -> None:
    tokens = tokens_with({"issuer": "s", "secrets": [SHOP_KEY, FEED_KEY]})

    for secret in (SHOP_KEY, FEED_KEY):
        assert (await tokens.verify(by(secret, {**GOOD, "iss": "s"}, kid="2026-11"))).subject == "u1"
    assert await refused(tokens, by(OURS, {**GOOD, "iss": "s"})) == "signature"


@pytest.fixture
async def from_jwks() -> AsyncIterator[Tokens]:
    async with KeyServer(jwk_set(jwk(rsa_key(), "k1"), jwk(ec_key(), "k2"))).client() as client:
        issuer = Issuer("idp", JwksKeys(Jwks(URL, client)), "allim")
        tokens = Tokens([OURS], 3600, issuers=[issuer], named_only=True, now=lambda: NOW)
        yield tokens
        await tokens.close()


async def test_of_a_published_set_the_kid_names_the_key(from_jwks: Tokens) -> None:
    assert (await from_jwks.verify(signed("RS256", rsa_key(), OF_IDP, kid="k1"))).issuer == "idp"
    assert (await from_jwks.verify(signed("ES256", ec_key(), OF_IDP))).subject == "u1"  # its only key for it
    assert await refused(from_jwks, signed("RS256", rsa_key(), OF_IDP, kid="k2")) == "key"
    assert await refused(from_jwks, signed("RS256", rsa_key("stranger"), OF_IDP, kid="k1")) == "signature"
    assert await refused(from_jwks, by(SHOP_KEY, OF_IDP, kid="k1")) == "algorithm"


async def test_an_audience_is_demanded_where_one_is_named_and_refused_where_none_is() -> None:
    tokens = tokens_with(SHOP, PEM_ISSUER)

    assert await refused(tokens, of_shop(aud="shop")) == "audience"
    for audience in ({}, {"aud": "else"}, {"aud": ["else"]}, {"aud": None}):
        claims = {**{name: value for name, value in OF_IDP.items() if name != "aud"}, **audience}
        assert await refused(tokens, signed("RS256", rsa_key(), claims)) == "audience"


# Claims -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sub", "subject", "topic"),
    [
        ("auth0|5f7c8ec7c33c6c004bbafe82", "auth0|5f7c8ec7c33c6c004bbafe82", "user:auth0%7C5f7c8ec7c33c6c004bbafe82"),
        ("jiwoo@example.org", "jiwoo@example.org", "user:jiwoo%40example.org"),
        ("urn:app:42", "urn:app:42", "user:urn%3Aapp%3A42"),
        ("q83v/+8=", "q83v/+8=", "user:q83v%2F%2B8%3D"),
        ("first last", "first last", "user:first%20last"),
        ("김지우", "김지우", "user:%EA%B9%80%EC%A7%80%EC%9A%B0"),
        ("100%", "100%", "user:100%25"),
        ("*", "*", "user:%2A"),
        (42, "42", "user:42"),
        (0, "0", "user:0"),
        (-7, "-7", "user:-7"),
        (10**30, "1" + "0" * 30, "user:1" + "0" * 30),
        ("x" * 255, "x" * 255, "user:" + "x" * 255),
        ("🦉" * 255, "🦉" * 255, "user:" + "%F0%9F%A6%89" * 255),
    ],
)
async def test_any_subject_of_a_real_issuer_is_a_user_with_a_topic(sub: object, subject: str, topic: str) -> None:
    identity = await tokens_with(SHOP).verify(of_shop(sub=sub))

    assert identity.subject == subject
    assert identity.own_topics()[0] == check_topic(topic)
    assert identity.may_read(topic)


@pytest.mark.parametrize("sub", ["", "x" * 256, "a\nb", "a\0", "\x7f", "\x85", True, None, 4.2, [], {}, 10**300])
async def test_what_names_no_user_is_refused(sub: object) -> None:
    assert await refused(tokens_with(SHOP), of_shop(sub=sub)) == "claim_sub"


CLAIMS = {
    "subject": "user.id",
    "topics": "https://shop.test/topics",
    "role": "realm_access.roles",
}


async def test_claims_are_found_under_the_names_that_the_entry_gives() -> None:
    tokens = tokens_with({**SHOP, "claims": CLAIMS, "operatorRole": "allim-operator"})
    said = {
        "user": {"id": 42},
        "https://shop.test/topics": ["news", "room:*"],
        "realm_access": {"roles": ["offline_access", "allim-operator"]},
        "sub": ["no subject"],
        "topics": "no topics",
        "role": "operator",
    }

    identity = await tokens.verify(of_shop(**said))

    assert (identity.subject, identity.topics, identity.role) == ("42", ("news", "room:*"), "operator")
    assert (await tokens.verify(of_shop(user={"id": 42}))).topics == ()
    assert await refused(tokens, of_shop(user="42")) == "claim_sub"


@pytest.mark.parametrize("role", ["editor", "operator", ["operator"], 7, None, {"a": 1}, [["operator"]]])
async def test_a_foreign_role_refuses_nothing_and_gives_nothing_unless_it_is_named(role: object) -> None:
    named = tokens_with({**SHOP, "claims": {"role": "role"}})

    assert (await tokens_with(SHOP).verify(of_shop(role=role))).role == "user"
    expected = "operator" if role in ("operator", ["operator"]) else "user"
    assert (await named.verify(of_shop(role=role))).role == expected


async def test_a_claim_without_a_name_makes_no_operator_where_no_role_is_read() -> None:
    assert (await tokens_with(SHOP).verify(of_shop(**{"": "operator"}))).role == "user"


def test_a_claim_whose_name_has_dots_comes_before_a_path() -> None:
    assert value_at({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert value_at({"a": {"b": {"c": 3}}}, "a.b.c") == 3
    assert value_at({"a": [1]}, "a.0") is None


async def test_leeway_is_the_issuers_and_prolongs_its_tokens() -> None:
    tokens = tokens_with({**SHOP, "leewayS": 30}, {"issuer": "feed", "secret": FEED_KEY})

    assert (await tokens.verify(of_shop(exp=NOW - 29))).expires_at == NOW + 1
    with pytest.raises(Unauthenticated, match="expired"):
        await tokens.verify(of_shop(exp=NOW - 30))
    with pytest.raises(Unauthenticated, match="expired"):
        await tokens.verify(by(FEED_KEY, {**GOOD, "iss": "feed", "exp": NOW}))


async def test_a_kick_that_an_issuer_writes_has_another_meaning() -> None:
    assert (await tokens_with(SHOP).verify(of_shop(kick=NOW))).after_kick is None


# The list as it is written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ([{"issuer": "a", "secret": "hush" * 7}], "[0].secret: must have at least 32 characters"),
        ([SHOP, {"issuer": "b", "secrets": ["s" * 32, "hush"]}], "[1].secrets[1]: must have at least 32 characters"),
        ([{"issuer": "a"}], "[0]: must have one of secret, secrets, secretFile, jwksUrl, publicKey, publicKeyFile"),
        ([{**SHOP, "jwksUrl": URL}], "[0]: must have one of "),
        ([{"secret": SHOP_KEY}], "[0].issuer: Field required"),
        ([{**SHOP, "jwks_uri": URL}], "[0].jwks_uri: Extra inputs are not permitted"),
        ([{**SHOP, "claims": {"sub": "x"}}], "[0].claims.sub: Extra inputs"),
        ([{**SHOP, "leewayS": 301}], "[0].leewayS: "),
        ([{"issuer": "a", "jwksUrl": "ftp://x"}], "[0].jwksUrl: must be an http:// or https:// address"),
        ([{"issuer": "a", "publicKey": "hush"}], "[0].publicKey: must hold public keys in PEM"),
        (
            [{"issuer": "a", "publicKey": ec_key().as_pem(private=True).decode()}],
            "[0].publicKey: must hold public keys",
        ),
        (
            [{"issuer": "a", "publicKey": rsa_key("weak", 1024).as_pem(private=False).decode()}],
            "[0].publicKey: must be an",
        ),
        (
            [{"issuer": "a", "publicKey": ec_key("", "P-384").as_pem(private=False).decode()}],
            "[0].publicKey: must be an",
        ),
        ([{"issuer": "a", "secretFile": "/none"}], "[0].secretFile: No such file or directory: /none"),
        ({"issuer": "a"}, "must be a JSON list of issuers"),
        ("hush", "must be a JSON list of issuers"),
    ],
)
def test_a_fault_is_told_in_one_line_that_names_the_member_and_no_secret(entries: object, fault: str) -> None:
    text = json.dumps(entries) if not isinstance(entries, str) else f"[{entries}"

    with pytest.raises(ValueError, match=r"\S") as refusal:
        read_issuers(text)

    assert fault in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "hush" not in str(refusal.value)


def test_no_two_entries_have_one_issuer_and_none_has_the_key_of_allim() -> None:
    with pytest.raises(ValueError, match="must be another"):
        tokens_with(SHOP, {**SHOP, "secret": FEED_KEY})
    with pytest.raises(ValueError, match="allim's own ALLIM_SECRET_KEY") as refusal:
        tokens_with({"issuer": "a", "secrets": [SHOP_KEY, OURS]})

    assert OURS not in str(refusal.value)


async def test_a_file_holds_the_list_and_names_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "shop.key").write_text(SHOP_KEY + "\n")
    (tmp_path / "idp.pem").write_text(PUBLIC_PEM["ec"])
    entries = [
        {"issuer": "https://shop.test", "secretFile": "shop.key"},
        {"issuer": "idp", "publicKeyFile": "idp.pem", "audience": "allim"},
    ]
    (tmp_path / "issuers.json").write_text(json.dumps(entries))

    tokens = Tokens([OURS], 60, issuers=read_issuers(str(tmp_path / "issuers.json")), now=lambda: NOW)

    assert (await tokens.verify(of_shop())).subject == "u1"
    assert (await tokens.verify(signed("ES256", ec_key(), OF_IDP))).subject == "u1"
    (tmp_path / "shop.key").write_text("short")
    with pytest.raises(ValueError, match=r"\[0\]\.secretFile: must have at least 32"):
        read_issuers(str(tmp_path / "issuers.json"))
    with pytest.raises(ValueError, match="No such file"):
        read_issuers(str(tmp_path / "none.json"))


def test_replicas_compare_entries_by_what_they_say_and_tell_no_secret() -> None:
    one, same, other, leeway = (
        read_issuers(json.dumps([entry]))[0].described()
        for entry in (
            SHOP,
            {**SHOP, "secrets": [SHOP_KEY], "secret": None},
            {**SHOP, "secret": FEED_KEY},
            {**SHOP, "leewayS": 1},
        )
    )

    assert one == same
    assert len({one, other, leeway}) == 3
    assert SHOP_KEY not in one
