"""The look through logs finds every kind of secret, and logs hold none, also when something breaks."""

import subprocess
import sys
from pathlib import Path

import pytest
from harness import leaks
from harness.leaks import SECRET, Leak, inspect
from harness.replicas import replica, token

PLANTED = {
    "a token": f'{{"event":"asked","path":"/events","x":"{token()}"}}',
    "a cookie's value": '{"event":"asked","cookie":"theme=dark; allim_session=0a1b2c3d"}',
    "a bearer's credentials": '{"authorization":"Bearer 0a1b2c3d"}',
    "the secret key": f"settings: {SECRET}",
    "a publish key": '{"event":"made a key","key":"ak_0a1b2c3d4e5f"}',
    "a provider's word": '{"body":"grant=x&client_secret=0a1b2c3d"}',
    "a ticket": '{"path":"/events?topics=a&ticket=0a1b2c3d"}',
    "a password": '{"email":"ada@example.org","password":"correct horse battery"}',
    "a password's hash": "$argon2id$v=19$m=65536,t=3,p=4$",
}


@pytest.mark.parametrize("kind", leaks.KINDS)
def test_each_kind_of_secret_is_found_and_not_repeated(tmp_path: Path, kind: str) -> None:
    log = tmp_path / "replica.log"
    log.write_text(f'{{"event":"serving"}}\n{PLANTED[kind]}\n')

    with pytest.raises(Leak, match=f"replica.log holds {kind}: ") as raised:
        inspect(log)

    assert "0a1b2c3d" not in str(raised.value)
    assert SECRET not in str(raised.value)
    assert token().split(".")[0] not in str(raised.value)


def test_an_excerpt_hides_the_other_secrets_of_its_line(tmp_path: Path) -> None:
    log = tmp_path / "replica.log"
    log.write_text(f"ak_{'0a1b2c3d' * 9} then {token()}")

    with pytest.raises(Leak) as raised:
        inspect(log)

    assert "a token: [hidden] then eyJ0…" in str(raised.value)


def test_words_about_secrets_are_none(tmp_path: Path) -> None:
    log = tmp_path / "replica.log"
    log.write_text(
        '{"detail":"Send a publish key as `Authorization: Bearer <key>`.","cookie":"allim_session","ticket":null}\n'
        '{"event":"the bearer has no token","password":"must be a string","path":"/api/tickets"}\n'
        '{"client_id":"fastsse-0001","event":"eyJ is how a token begins"}\n'
    )
    before = len(leaks.inspected)

    inspect(log)

    assert len(leaks.inspected) == before + 1


def test_a_replicas_log_is_looked_through_when_it_ends() -> None:
    with pytest.raises(Leak, match="holds a token"), replica(drain_s=0) as running, running.log.open("a") as log:
        log.write(f"{token()}\n")

    assert leaks.inspected[-1] == running.log.name
    assert not running.log.exists()


BREAKS = """
import sys
import structlog
from allim.telemetry import configure_logging

configure_logging("r1", pretty=sys.argv[1] == "text")

def verify(credentials):
    claims = {"token": credentials}
    return 1 / 0 * len(claims)

try:
    verify(sys.argv[2])
except ZeroDivisionError:
    structlog.get_logger().exception("unexpected error")
    __import__("logging").getLogger("asyncio").exception("a library's")
"""


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_traceback_shows_no_variables(tmp_path: Path, log_format: str) -> None:
    log = tmp_path / f"{log_format}.log"
    with log.open("wb") as out:
        subprocess.run([sys.executable, "-c", BREAKS, log_format, token()], stderr=out, check=True)

    written = log.read_text()
    assert written.count("ZeroDivisionError") >= 2, "both errors are logged"
    assert "verify" in written, "with their frames"
    assert "credentials" not in written.replace("verify(credentials)", ""), "a frame's variables are not"
    inspect(log)
