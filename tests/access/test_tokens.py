import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import OctKey, RSAKey
from joserfc.util import urlsafe_b64decode, urlsafe_b64encode

from allim.access.issuers import Issuer, JwksKeys
from allim.access.jwks import Jwks
from allim.access.tokens import Tokens
from allim.errors import Invalid, Unauthenticated, Unavailable
from allim.identity import Identity
from tests.access.issuers import SIGNING_KEYS, URL, Clock, KeyServer, ec_key, ed_key, jwk, jwk_set, refused, rsa_key
from tests.access.issuers import signed as signed_by

pytestmark = pytest.mark.anyio

SECRET = "0123456789abcdef0123456789abcdef"
OTHER = SECRET[::-1]
NOW = 1_700_000_000.0
DAY = 86400
NAME = "https://issuer.test"
GOOD = {"sub": "u1", "exp": NOW + 60}
THEIRS = {**GOOD, "iss": NAME, "aud": "allim"}

tokens = Tokens([SECRET], lifetime_s=3600, now=lambda: NOW)


def key_of(secret: str) -> OctKey:
    return OctKey.import_key(secret)


def signed(claims: dict[str, Any], secret: str = SECRET, **header: Any) -> str:
    """As a service does that holds the secret."""
    return signed_by("HS256", key_of(secret), claims, **header)


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def opened(token: str, index: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(urlsafe_b64decode(token.split(".")[index].encode()))
    return found


@asynccontextmanager
async def with_issuer(server: KeyServer, now: float = NOW) -> AsyncIterator[Tokens]:
    async with server.client() as client:
        verifier = Tokens(
            [SECRET], 3600, issuers=[Issuer(NAME, JwksKeys(Jwks(URL, client)), "allim")], now=lambda: now
        )
        yield verifier
        await verifier.close()


def publishing() -> KeyServer:
    return KeyServer(jwk_set(jwk(rsa_key(), "RS256"), jwk(ec_key(), "ES256"), jwk(ed_key(), "EdDSA")))


async def assert_refused(verifier: Tokens, token: str) -> None:
    """It is refused in the words that tell nothing."""
    with pytest.raises(Unauthenticated, match=r"^The token is not valid; sign in again\.$"):
        await verifier.verify(token)


# Tokens of our own --------------------------------------------------------------------------------------------------


async def test_an_issued_token_says_who_and_since_and_until_when() -> None:
    identity = await tokens.verify(tokens.issue("u1"))

    assert identity == Identity("u1", identity.session, NOW + 3600, (), "user", NOW)
    assert len(identity.session) >= 16


async def test_each_session_is_another_unless_it_is_named() -> None:
    first, second, named = tokens.issue("u1"), tokens.issue("u1"), tokens.issue("u1", session="s1")

    assert (await tokens.verify(first)).session != (await tokens.verify(second)).session
    assert (await tokens.verify(named)).session == "s1"


async def test_role_and_topics_are_written_only_where_they_say_something() -> None:
    plain = tokens.issue("u1", session="s1")
    rich = tokens.issue("u1", session="s1", role="operator", topics=["news", "room:*"])

    assert set(opened(plain)) == {"iss", "sub", "sid", "iat", "exp", "auth_time"}
    assert await tokens.verify(rich) == Identity("u1", "s1", NOW + 3600, ("news", "room:*"), "operator", NOW)


async def test_moments_within_one_second_can_be_told_apart() -> None:
    first, second = (Tokens([SECRET], 3600, now=lambda at=at: at) for at in (NOW + 0.1234, NOW + 0.1244))  # type: ignore[misc]

    assert opened(first.issue("u1"))["iat"] == NOW + 0.123
    assert opened(second.issue("u1"))["iat"] == NOW + 0.124
    assert opened(first.issue("u1"))["exp"] == NOW + 3600.123


def test_no_token_outlives_its_sign_in_by_more_than_a_session_may_last() -> None:
    short = Tokens([SECRET], 3600, max_s=DAY, now=lambda: NOW)

    assert opened(short.issue("u1", auth_time=NOW - 60))["exp"] == NOW + 3600
    assert opened(short.issue("u1", auth_time=NOW - DAY + 60))["exp"] == NOW + 60
    with pytest.raises(Unauthenticated, match="as long as it may"):
        short.issue("u1", auth_time=NOW - DAY)


async def test_a_token_is_verified_without_giving_way_to_anybody() -> None:
    verifying = tokens.verify(tokens.issue("u1"))

    with pytest.raises(StopIteration) as ended:
        verifying.send(None)
    assert ended.value.value.subject == "u1"


# Keys ---------------------------------------------------------------------------------------------------------------


async def test_tokens_of_an_old_key_stay_good_and_the_first_key_signs() -> None:
    old, rotating = tokens, Tokens([OTHER, SECRET], 3600, now=lambda: NOW)

    assert (await rotating.verify(old.issue("u1"))).subject == "u1"
    assert (await rotating.verify(signed(GOOD))).subject == "u1"
    assert (await rotating.verify(signed(GOOD, OTHER))).subject == "u1"
    assert (await Tokens([OTHER], 3600, now=lambda: NOW).verify(rotating.issue("u1"))).subject == "u1"
    await assert_refused(old, rotating.issue("u1"))


async def test_a_token_that_names_its_key_is_tried_against_that_key_alone() -> None:
    rotating = Tokens([OTHER, SECRET], 3600, now=lambda: NOW)
    kid = opened(tokens.issue("u1"), 0)["kid"]

    assert (await rotating.verify(signed(GOOD, SECRET, kid=kid))).subject == "u1"
    await assert_refused(rotating, signed(GOOD, OTHER, kid=kid))
    await assert_refused(rotating, signed(GOOD, SECRET, kid="unknown"))
    await assert_refused(rotating, signed(GOOD, SECRET, kid=""))


def test_the_name_of_a_key_does_not_tell_the_key() -> None:
    ours, others = (opened(Tokens([secret], 60).issue("u1"), 0)["kid"] for secret in (SECRET, OTHER))

    assert ours != others
    assert len(ours) == 16
    assert ours not in SECRET


@pytest.mark.parametrize("secrets", [[], ["short"], [SECRET, "short"], [SECRET, SECRET], SECRET])
def test_short_double_and_missing_keys_are_refused_without_repeating_them(secrets: list[str]) -> None:
    with pytest.raises(ValueError, match="secret key") as refusal:
        Tokens(secrets, 60)

    assert not any(secret in str(refusal.value) for secret in secrets if len(secret) > 1)


# Tokens of services that hold the secret ----------------------------------------------------------------------------


async def test_a_service_may_name_topics_role_and_audience() -> None:
    token = signed(
        {**GOOD, "sid": "s1", "topics": ["news", "room:7", "room:*"], "role": "operator", "aud": ["x", "allim"]}
    )

    assert await tokens.verify(token) == Identity("u1", "s1", NOW + 60, ("news", "room:7", "room:*"), "operator")


async def test_a_token_names_the_last_kick_and_may_then_be_issued_by_a_clock_that_is_ahead() -> None:
    ahead = Tokens([SECRET], 3600, now=lambda: NOW + 3600)

    token = ahead.issue("u1", after_kick=NOW - 5.25)

    assert (await tokens.verify(token)).after_kick == NOW - 5.25
    assert (await tokens.verify(ahead.renew(token, after_kick=NOW - 2))).after_kick == NOW - 2
    assert (await tokens.verify(signed(GOOD))).after_kick is None
    with pytest.raises(Unauthenticated):
        await tokens.verify(ahead.issue("u1"))


@pytest.mark.parametrize("times", [{"exp": NOW - 1}, {"nbf": NOW + 9999}, {"iat": NOW + 9999}])
async def test_a_signature_is_verified_whatever_the_times_say(times: dict[str, float]) -> None:
    token = signed({**GOOD, "sid": "s1", **times})

    assert (await tokens.verify_signature(token)).session == "s1"
    with pytest.raises(Unauthenticated):
        await tokens.verify(token)
    with pytest.raises(Unauthenticated):
        await tokens.verify_signature(signed({**GOOD, **times}, "z" * 32))


async def test_a_service_may_say_more_than_we_understand() -> None:
    token = signed(
        {**GOOD, "iss": "billing", "email": "a@b", "iat": NOW + 300, "nbf": NOW + 300}, typ="at+jwt", odd="yes"
    )

    assert (await tokens.verify(token)).issued_at == NOW + 300


async def test_a_token_without_session_is_a_session_of_its_own() -> None:
    token, same, other = signed(GOOD), signed(GOOD), signed({**GOOD, "jti": "2"})

    session = (await tokens.verify(token)).session
    assert session.startswith("t.")
    assert len(session) == 24
    assert (await tokens.verify(same)).session == session
    assert (await tokens.verify(other)).session != session


ODD_CLAIMS: dict[str, list[object]] = {
    "exp": [None, True, str(NOW + 60), float("nan"), float("inf"), 10**400, [NOW + 60]],
    "sub": ["", 7.5, None, True, "u1\n", "a\0b", "a\x9fb", "x" * 256, 10**255, ["u1"]],
    "sid": ["", 7.5, None, True, "a\tb"],
    "nbf": [NOW + 301, True, None, str(NOW), float("nan"), 10**400],
    "kick": [True, str(NOW), float("nan"), 10**400],
    "iat": [NOW + 301, True, None, str(NOW), float("nan"), float("-inf"), 10**400],
    "topics": ["news", ["*"], ["News"], ["room:*x"], [7], ["news"] * 257],
    "aud": ["", "allims", None, [], ["x"], [["allim"]], {"allim": 1}, 7],
}


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "u1"},
        {"exp": NOW + 60},
        *({**GOOD, name: value} for name, values in ODD_CLAIMS.items() for value in values),
    ],
)
async def test_claims_that_are_missing_or_odd_are_refused(claims: dict[str, Any]) -> None:
    await assert_refused(tokens, signed(claims))


@pytest.mark.parametrize("late_s", [0, 1])
async def test_an_expired_token_is_refused_and_named(late_s: float) -> None:
    with pytest.raises(Unauthenticated, match=r"^The token has expired; sign in again\.$"):
        await tokens.verify(signed({**GOOD, "exp": NOW - late_s}))


HEAD, BODY, SIGNATURE = signed(GOOD).split(".")
NO_ALGORITHMS: list[object] = ["none", "None", "NONE", "nOnE", "", "hs256", "HS256 ", "RS256", "Ed25519", None, 7, {}]


@pytest.mark.parametrize(
    "token",
    [
        f"{HEAD}.{part({**GOOD, 'sub': 'admin'})}.{SIGNATURE}",
        f"{HEAD}.{BODY}.{SIGNATURE[:-2]}{'AA' if SIGNATURE[-2:] != 'AA' else 'BA'}",
        f"{HEAD}.{BODY}.{SIGNATURE}=",
        f"{HEAD}.{BODY}.",
        f"{HEAD}.{BODY}",
        f"{HEAD}.{part([1])}.{SIGNATURE}",
        *(f"{part({'alg': alg})}.{BODY}.{end}" for alg in NO_ALGORITHMS for end in ("", SIGNATURE)),
        *(f"{part(header)}.{BODY}.{SIGNATURE}" for header in ({}, [], "alg", ["alg"], 7, None, {"alg": ["HS256"]})),
        *(signed_by(alg, key_of(SECRET), GOOD) for alg in ("HS384", "HS512")),
        signed(GOOD, OTHER),
        signed(GOOD, crit=["cty"], cty="JWT"),
        f"{part({'alg': 'HS256', 'crit': ['b64'], 'b64': False})}.{BODY}.{SIGNATURE}",
        f"{part({'alg': 'HS256', 'kid': 7})}.{BODY}.{SIGNATURE}",
        signed({**GOOD, "pad": "x" * 9000}),
        "",
        "a.b.c",
        "....",
        "ü",
        "\ud800",
        base64.urlsafe_b64encode(b"[" * 5000).decode() + ".a.b",
    ],
)
async def test_tampered_and_foreign_tokens_are_refused(token: str) -> None:
    await assert_refused(tokens, token)
    async with with_issuer(KeyServer(refused)) as with_outsider:  # who is not asked about any of them
        await assert_refused(with_outsider, token)


@pytest.mark.parametrize("payload", [b"[1]", b'"u1"', b"{", b"\xff", b"[" * 5000, b""])
async def test_what_is_signed_must_be_claims(payload: bytes) -> None:
    await assert_refused(tokens, jws.serialize_compact({"alg": "HS256"}, payload, key_of(SECRET)))


# With the header as we write it -------------------------------------------------------------------------------------

WRITTEN = jws.extract_compact(tokens.issue("u1").encode()).protected
TWO = {"sub": "u1", "exp": NOW + 60, "sid": "s1", "aud": "allim"}


def as_written(payload: object) -> str:
    bytes_ = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return jws.serialize_compact(WRITTEN, bytes_, key_of(SECRET))


def altered(token: str) -> list[str]:
    """Another character at each place, one more, one less."""
    other = [token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :] for at in range(len(token))]
    return [*other, token[:-1], *(token + more for more in ("A", "=", "\n", ".", "ü")), " " + token, "." + token]


@pytest.mark.parametrize(
    "token",
    [
        *(as_written(claims) for claims in (TWO, GOOD, {**TWO, "exp": NOW})),
        *(as_written({**TWO, **odd}) for odd in ({"aud": "them"}, {"sub": 7}, {"exp": 10**400}, {"exp": True})),
        *(as_written({**TWO, "iss": name}) for name in (NAME, "https://other.test")),
        *(
            as_written(payload)
            for payload in ([1], b"{", b"\xff", b"[" * 5000, b"", json.dumps(TWO).encode("utf-16"))
        ),
        *(as_written({**TWO, "pad": "x" * length}) for length in (5900, 6100)),
        f"{as_written(TWO).rpartition('.')[0]}.{as_written(GOOD).rpartition('.')[2]}",
        *altered(as_written(TWO)),
    ],
)
async def test_a_token_with_our_header_is_judged_like_any_other(token: str) -> None:
    async def outcome(verifier: Tokens) -> Identity | str:
        try:
            return await verifier.verify(token)
        except Unauthenticated as error:
            return error.detail

    async with with_issuer(KeyServer(refused)) as short, with_issuer(KeyServer(refused)) as long:
        long._written.clear()
        assert await outcome(short) == await outcome(long)


async def test_of_the_altered_none_is_good() -> None:
    assert as_written(TWO).partition(".")[0] in tokens._written
    for token in altered(as_written(TWO)):
        await assert_refused(tokens, token)


# Renewal ------------------------------------------------------------------------------------------------------------


def renewing(clock: Clock, max_s: int = 30 * DAY) -> Tokens:
    return Tokens([OTHER, SECRET], 3600, max_s=max_s, now=clock)


async def test_a_renewed_token_is_of_the_same_session_and_lasts_anew() -> None:
    clock = Clock(NOW)
    ours = renewing(clock)
    token = ours.issue("u1", session="s1", role="operator", topics=["news"])

    clock.at = NOW + 3000.25
    renewed = ours.renew(token)

    assert await ours.verify(renewed) == Identity("u1", "s1", NOW + 6600.25, ("news",), "operator", NOW + 3000.25)
    assert opened(renewed)["auth_time"] == NOW


def test_a_session_is_renewed_until_it_has_lasted_as_long_as_it_may() -> None:
    clock = Clock(NOW)
    ours = renewing(clock, max_s=9000)
    token = ours.issue("u1")

    ends = []
    for age_s in (3000, 6000, 8999):
        clock.at = NOW + age_s
        token = ours.renew(token)
        ends.append(opened(token)["exp"] - NOW)

    assert ends == [6600, 9000, 9000]
    clock.at = NOW + 9000
    with pytest.raises(Unauthenticated, match="expired"):
        ours.renew(token)
    for started in ({"iat": NOW}, {"auth_time": NOW}, {"iat": NOW + 8000, "auth_time": NOW}):
        with pytest.raises(Unauthenticated, match="as long as it may"):
            ours.renew(signed({"sub": "u1", "exp": NOW + DAY, **started}))


@pytest.mark.parametrize(
    ("age_s", "max_s", "due"),
    [
        (0, 30 * DAY, False),
        (1799, 30 * DAY, False),
        (1801, 30 * DAY, True),
        (3599, 30 * DAY, True),
        (3599, 3600, False),  # it has lasted as long as it may
        (3599, 3650, True),
    ],
)
async def test_a_renewal_is_due_in_the_second_half_of_a_token_that_gains_by_it(
    age_s: float, max_s: int, due: bool
) -> None:
    clock = Clock(NOW)
    ours = renewing(clock, max_s=max_s)
    token = ours.issue("u1")
    clock.at += age_s

    life = ours.life(token, await ours.verify(token))

    assert (life.lifetime_s, life.renewal_due) == (3600, due)
    assert life.expires_in_s == pytest.approx(3600 - age_s)


async def test_a_token_of_five_minutes_is_to_be_renewed_after_half_of_them() -> None:
    clock = Clock(NOW)
    ours = renewing(clock)
    token = signed({**GOOD, "iat": NOW, "exp": NOW + 300})
    clock.at += 151

    assert ours.life(token, await ours.verify(token)) == (149, 300, True)


async def test_a_token_of_a_service_is_renewed_for_as_long_as_the_service_gave_it() -> None:
    clock = Clock(NOW + 200.123)
    ours = renewing(clock)

    first = ours.renew(signed({**GOOD, "iat": NOW, "exp": NOW + 300, "aud": ["allim"], "topics": ["news"]}))
    clock.at += 200
    second = ours.renew(first)

    assert (opened(first)["exp"], opened(second)["exp"]) == (NOW + 500.123, NOW + 700.123)
    assert opened(second)["auth_time"] == NOW
    assert opened(second)["aud"] == ["allim"]
    assert (await ours.verify(second)).topics == ("news",)
    assert opened(ours.renew(signed({**GOOD, "iat": NOW, "exp": NOW + DAY})))["exp"] == clock.at + 3600


async def test_a_renewed_token_stays_in_the_session_that_its_first_one_was_by_itself() -> None:
    ours = renewing(Clock(NOW))
    token = signed(GOOD)
    session = (await ours.verify(token)).session

    renewed = ours.renew(token)

    assert (await ours.verify(renewed)).session == (await ours.verify(ours.renew(renewed))).session == session
    assert (opened(renewed)["exp"], opened(renewed)["auth_time"]) == (NOW + 3600, NOW)  # it did not say since when


def test_what_is_not_valid_is_not_renewed() -> None:
    ours = renewing(Clock(NOW))

    for token in (
        "",
        signed(GOOD, "z" * 32),
        signed({**GOOD, "aud": "else"}),
        signed({**GOOD, "auth_time": "yesterday"}),
        signed_by("ES256", ec_key(), GOOD),
        f"{part({'alg': 'none'})}.{part(GOOD)}.",
    ):
        with pytest.raises(Unauthenticated, match="not valid"):
            ours.renew(token)
    with pytest.raises(Unauthenticated, match="sign in again"):
        ours.renew(signed({**GOOD, "iat": NOW + 60, "exp": NOW + 30}))  # of less than no time


async def test_a_sign_in_in_the_future_makes_no_session_last_longer() -> None:
    token = signed({**GOOD, "iat": NOW, "auth_time": NOW + 365 * DAY})

    assert opened(renewing(Clock(NOW)).renew(token))["auth_time"] == NOW


async def test_a_token_of_an_outside_issuer_is_renewed_by_that_issuer() -> None:
    async with with_issuer(publishing()) as ours:
        with pytest.raises(Invalid, match="its issuer") as refusal:
            ours.renew(signed_by("ES256", ec_key(), THEIRS, kid="ES256"))
        late = signed_by("ES256", ec_key(), {**THEIRS, "iat": NOW - DAY}, kid="ES256")
        assert not ours.life(late, await ours.verify(late)).renewal_due

    assert [field.field for field in refusal.value.fields] == ["token"]


# Tokens of an outside issuer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", SIGNING_KEYS)
async def test_a_token_of_the_outside_issuer_is_taken_by_any_of_three_algorithms(alg: str) -> None:
    claims = {
        **THEIRS,
        "sid": "s1",
        "aud": ["x", "allim"],
        "iat": NOW,
        "role": "operator",
        "topics": ["news"],
        "kick": 9,
    }
    token = signed_by(alg, SIGNING_KEYS[alg](), claims, kid=alg, x5t="ignored", odd="ignored")

    async with with_issuer(publishing()) as verifier:
        assert await verifier.verify(token) == Identity("u1", "s1", NOW + 60, ("news",), "operator", NOW, issuer=NAME)
    await assert_refused(tokens, token)  # where no issuer is known


async def test_a_key_without_a_name_serves_a_token_without_one() -> None:
    async with with_issuer(KeyServer(jwk_set(jwk(ec_key())))) as verifier:
        assert (await verifier.verify(signed_by("ES256", ec_key(), THEIRS))).subject == "u1"
        await assert_refused(verifier, signed_by("ES256", ec_key(), THEIRS, kid="k1"))


PEM = rsa_key().as_pem(private=False)


@pytest.mark.parametrize(
    "token",
    [
        signed_by("ES256", ec_key("stranger"), THEIRS, kid="ES256"),
        signed_by("RS256", rsa_key("stranger"), THEIRS, kid="RS256"),
        signed_by("EdDSA", ed_key("stranger"), THEIRS, kid="EdDSA"),
        signed_by("ES256", ec_key(), THEIRS, kid="unknown"),
        signed_by("ES256", ec_key(), THEIRS, kid="RS256"),
        signed_by("RS256", rsa_key(), THEIRS, kid="ES256"),
        signed_by("RS384", rsa_key(), THEIRS, kid="RS256"),
        signed_by("PS256", rsa_key(), THEIRS, kid="RS256"),
        signed_by("Ed25519", ed_key(), THEIRS, kid="EdDSA"),
        # A public key is known to everybody, also as a secret for HS256.
        signed_by("HS256", OctKey(PEM, PEM), THEIRS),
        signed_by("HS256", OctKey(PEM, PEM), THEIRS, kid="RS256"),
        # Our secret signs nothing in the issuer's name.
        signed_by("HS256", key_of(SECRET), THEIRS),
        *(f"{part({'alg': alg, 'kid': 'ES256'})}.{part(THEIRS)}." for alg in ("none", "None", "NONE", "ES256")),
        *(
            signed_by("ES256", ec_key(), claims, kid="ES256")
            for claims in (
                {**THEIRS, "iss": None},
                {**THEIRS, "iss": [NAME]},
                {**THEIRS, "iss": NAME + "/"},
                {**THEIRS, "aud": None},
                {**THEIRS, "aud": "else"},
                {**THEIRS, "aud": ["else"]},
                {**THEIRS, "exp": None},
                {**THEIRS, "nbf": NOW + 301},
                {**THEIRS, "iat": NOW + 301},
                *({name: THEIRS[name] for name in THEIRS if name != missing} for missing in THEIRS),
            )
        ),
        signed_by("ES256", ec_key(), THEIRS, kid="ES256", crit=["cty"], cty="JWT"),
    ],
)
async def test_an_outside_token_with_anything_wrong_is_refused(token: str) -> None:
    async with with_issuer(publishing()) as verifier:
        await assert_refused(verifier, token)


async def test_an_outside_token_that_has_expired_is_named() -> None:
    async with with_issuer(publishing(), now=NOW + 60) as verifier:
        with pytest.raises(Unauthenticated, match="expired"):
            await verifier.verify(signed_by("ES256", ec_key(), THEIRS, kid="ES256"))


@pytest.mark.parametrize(
    ("key", "members"),
    [(rsa_key(), {"use": "enc"}), (rsa_key(), {"alg": "RS512"}), (rsa_key("weak", 1024), {})],
    ids=["use", "alg", "weak"],
)
async def test_a_key_that_is_not_for_such_signatures_verifies_none(key: RSAKey, members: dict[str, str]) -> None:
    server = KeyServer(jwk_set(jwk(key, "k", **members), jwk(ec_key(), "ES256")))

    async with with_issuer(server) as verifier:
        await assert_refused(verifier, signed_by("RS256", key, THEIRS, kid="k"))


async def test_a_signature_that_anybody_can_turn_into_another_makes_no_other_session() -> None:
    token = signed_by("ES256", ec_key(), THEIRS, kid="ES256")
    head, body, signature = token.split(".")
    raw = urlsafe_b64decode(signature.encode())
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    turned = raw[:32] + (order - int.from_bytes(raw[32:])).to_bytes(32)
    twin = f"{head}.{body}.{urlsafe_b64encode(turned).decode()}"

    async with with_issuer(publishing()) as verifier:
        assert (await verifier.verify(twin)).session == (await verifier.verify(token)).session


async def test_where_the_issuers_keys_cannot_be_read_nobody_is_called_a_stranger() -> None:
    async with with_issuer(KeyServer(refused)) as verifier:
        with pytest.raises(Unavailable):
            await verifier.verify(signed_by("ES256", ec_key(), THEIRS, kid="ES256"))
        await assert_refused(verifier, f"{part({'alg': 'none'})}.{part(THEIRS)}.")  # whatever its keys are
        assert (await verifier.verify(verifier.issue("u1"))).subject == "u1"


async def test_only_tokens_in_the_issuers_name_have_its_keys_fetched() -> None:
    server = publishing()

    async with with_issuer(server) as verifier:
        await assert_refused(verifier, signed_by("ES256", ec_key(), {**THEIRS, "iss": "else"}, kid="ES256"))
        assert not server.requests
        await asyncio.gather(
            *(verifier.verify(signed_by("ES256", ec_key(), THEIRS, kid="ES256")) for _ in range(100))
        )

    assert len(server.requests) == 1
