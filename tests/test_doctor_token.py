"""`allim doctor --token`: what a token says, what the server takes, and which check fails."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness.replicas import SECRET, token
from harness.servers import Redis, free_port
from joserfc.jwk import OctKey

from allim.access.tokens import Tokens
from allim.brokers.redis import RedisLedger
from allim.doctor import Finding, examine
from allim.http.refused import REASONS
from tests.access.issuers import ec_key, signed
from tests.access.shop import SECRET as WEBHOOK_SECRET
from tests.access.shop import shop
from tests.http.test_refused import TOKENS, by_us

pytestmark = pytest.mark.anyio


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"ALLIM_DATA_DIR": str(tmp_path), "ALLIM_SECRET_KEY": SECRET}


async def explained(environ: dict[str, str], text: str) -> dict[str, Finding]:
    findings = await examine(environ, None, text)
    return {
        finding.subject.removeprefix("token "): finding
        for finding in findings
        if finding.subject.startswith("token ")
    }


async def test_a_good_token_is_told_with_what_it_may(environ: dict[str, str]) -> None:
    found = await explained(environ, token("42", topics=["news:*"]))

    assert all(finding.ok for finding in found.values())
    assert found["check"].detail.startswith("good for 60 min; reads user:42, system, news:*; role user")
    assert 'sub "42"' in found["says"].detail
    assert "alg HS256" in found["says"].detail
    assert found["server"].detail.startswith("takes HS256 by 1 secret key(s) of allim itself; ")
    assert "see --url" in found["session"].detail


@pytest.mark.parametrize("reason", TOKENS)
async def test_the_check_that_fails_is_named_with_what_to_do(environ: dict[str, str], reason: str) -> None:
    found = await explained(environ, TOKENS[reason])

    assert (found["check"].ok, found["check"].detail) == (False, f"{reason}: {REASONS[reason]}")
    assert found["check"].advice
    assert TOKENS[reason] not in str(found)


async def test_times_are_told_as_people_read_them(environ: dict[str, str]) -> None:
    found = await explained(environ, by_us({"exp": time.time() - 7300, "iat": time.time() + 900}))

    assert " UTC (2 h ago)" in found["says"].detail
    assert " UTC (in 15 min)" in found["says"].detail


async def test_a_token_of_an_outside_issuer_needs_the_issuer(environ: dict[str, str]) -> None:
    claims = {"sub": "42", "exp": time.time() + 60, "iss": "https://issuer.test/", "aud": "allim"}
    theirs = signed("ES256", ec_key(), claims)
    keys = f"http://127.0.0.1:{free_port()}/keys"
    issuer = {"ALLIM_JWT_ISSUER": "https://issuer.test", "ALLIM_JWT_JWKS_URL": keys}

    unset = (await explained(environ, theirs))["check"]
    slash = (await explained({**environ, **issuer}, theirs))["check"]
    unread = (await explained({**environ, **issuer, "ALLIM_JWT_ISSUER": "https://issuer.test/"}, theirs))["check"]

    assert unset.detail == f"issuer: {REASONS['issuer']}"
    assert unset.advice.startswith("list the issuer in ALLIM_ISSUERS, ")
    assert (slash.ok, slash.detail) == (False, f"issuer: {REASONS['issuer']}")
    assert "slash" in slash.advice
    assert unread.detail.startswith(f"The keys of the token's issuer cannot be read. {keys}: ")


SHOP_KEY = "the key of the shop, 0123456789abcdef"
SHOP = {"issuer": "https://shop.test", "secret": SHOP_KEY, "audience": "shop", "claims": {"subject": "user.id"}}
OF_SHOP = {"iss": "https://shop.test", "aud": "shop", "exp": 4e9, "user": {"id": 42}}


@pytest.mark.parametrize(
    ("claims", "key", "told"),
    [
        (OF_SHOP, SHOP_KEY, "good for "),
        (OF_SHOP, SECRET, "signature: "),
        ({**OF_SHOP, "iss": "https://shop.test/"}, SHOP_KEY, "issuer: "),
        ({**OF_SHOP, "aud": "web"}, SHOP_KEY, "audience: "),
        ({**OF_SHOP, "user": 42}, SHOP_KEY, "claim_sub: "),
        ({**OF_SHOP, "exp": 1}, SHOP_KEY, "expired: "),
    ],
    ids=["good", "signature", "issuer", "audience", "claim_sub", "expired"],
)
async def test_a_token_of_a_listed_issuer_is_judged_by_its_entry_alone(
    environ: dict[str, str], claims: dict[str, object], key: str, told: str
) -> None:
    environ["ALLIM_ISSUERS"] = json.dumps([SHOP])

    found = await explained(environ, signed("HS256", OctKey.import_key(key.encode()), claims))

    assert found["check"].detail.startswith(told)
    assert found["check"].ok is (told == "good for ")
    assert SHOP_KEY not in str(found)
    if claims["iss"] == SHOP["issuer"]:
        assert "takes HS256 of https://shop.test; aud shop; subject in user.id: " in found["server"].detail
    else:
        assert found["server"].detail.startswith("takes tokens of allim, https://shop.test; ")


async def test_a_fault_of_the_list_is_a_finding_of_the_settings(environ: dict[str, str]) -> None:
    environ["ALLIM_ISSUERS"] = json.dumps([{**SHOP, "secret": SECRET}])
    [own] = await examine(environ, None)
    environ["ALLIM_ISSUERS"] = json.dumps([{**SHOP, "secret": "short"}])
    [short] = await examine(environ, None)

    assert (own.ok, short.ok) == (False, False)
    assert own.detail.startswith("ALLIM_ISSUERS: a secret is allim's own ALLIM_SECRET_KEY")
    assert short.detail == "ALLIM_ISSUERS: [0].secret: must have at least 32 characters"


async def test_the_application_that_decides_on_topics_is_asked_and_its_fault_is_named(
    environ: dict[str, str],
) -> None:
    async def asked() -> Finding:
        return next(finding for finding in await examine(environ, None) if finding.subject == "authorize")

    with shop() as app:
        environ |= {"ALLIM_AUTHORIZE_URL": app.url, "ALLIM_AUTHORIZE_SECRET": WEBHOOK_SECRET}
        good = await asked()
        app.secret = "another" * 10
        unsigned = await asked()
    down = await asked()

    assert good.ok
    assert good.detail.startswith("answers in ")
    assert (unsigned.ok, down.ok) == (False, False)
    assert unsigned.detail.endswith(" HTTP status 401")
    assert "ALLIM_AUTHORIZE_SECRET" in unsigned.advice
    assert "cannot be reached" in down.detail


async def test_an_ended_session_is_told_where_replicas_remember_it(environ: dict[str, str], redis: Redis) -> None:
    environ = {**environ, "ALLIM_REDIS_URL": redis.url, "ALLIM_REDIS_PREFIX": "doctor-token"}
    kept, left = token("kept"), token("left")
    ledger = RedisLedger(redis.url, "test", prefix="doctor-token")
    await ledger.sign_out(await Tokens([SECRET], 60).verify(left), 60)
    await ledger.close()

    good, ended = [(await explained(environ, text))["session"] for text in (kept, left)]

    assert (good.ok, good.detail) == (True, "not ended")
    assert (ended.ok, ended.detail) == (False, f"signed_out: {REASONS['signed_out']}")


async def test_a_key_that_the_server_does_not_have_is_told_by_its_name(environ: dict[str, str]) -> None:
    other = signed("HS256", OctKey.import_key(SECRET[::-1]), {"sub": "1", "exp": time.time() + 60}, kid="feed")

    found = await explained(environ, other)

    assert "kid feed" in found["says"].detail
    assert "ALLIM_OLD_SECRET_KEYS" in found["check"].advice


def test_the_token_may_come_by_standard_input_or_in_a_file(environ: dict[str, str], tmp_path: Path) -> None:
    """So that nobody reads it in the list of processes."""
    command = [sys.executable, "-m", "allim", "doctor", "--token-file"]
    (tmp_path / "token").write_text(TOKENS["audience"] + "\n")

    by_input = subprocess.run([*command, "-"], env=environ, input=token(), capture_output=True, text=True, timeout=50)
    by_file = subprocess.run(
        [*command, str(tmp_path / "token")], env=environ, capture_output=True, text=True, timeout=50
    )

    assert by_input.returncode == 0, by_input.stdout
    assert "ok   token check: good for " in by_input.stdout
    assert by_file.returncode == 1
    assert f"FAIL token check: audience: {REASONS['audience']}\n     → " in by_file.stdout
