"""`allim doctor --token`: what a token says, what the server takes, and which check fails."""

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
    assert "aud allim" in found["server"].detail
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

    assert unset.advice == "set ALLIM_JWT_ISSUER and ALLIM_JWT_JWKS_URL for this issuer"
    assert (slash.ok, slash.detail) == (False, f"issuer: {REASONS['issuer']}")
    assert "slash" in slash.advice
    assert unread.detail.startswith(f"The keys of the token's issuer cannot be read. {keys}: ")


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
