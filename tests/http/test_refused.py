"""Why credentials are refused: by name, in the log and in a metric, and never in the answer."""

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from harness.replicas import SECRET, Replica, bearer, replica, ticket, token
from harness.waiting import until_sync
from joserfc.jwk import OctKey
from structlog.testing import capture_logs

from allim.access.tokens import Tokens
from allim.errors import Forbidden, Unauthenticated
from allim.http.refused import LOG_EVERY_S, REASONS, Refused
from tests.access.issuers import Clock, ec_key, signed

pytestmark = pytest.mark.anyio

OTHER = OctKey.import_key(SECRET[::-1])
OURS = OctKey.import_key(SECRET)
NOW = time.time()
GOOD = {"sub": "42", "exp": NOW + 86_400}  # the tests may run an hour after this line


def by_us(claims: dict[str, Any], **header: Any) -> str:
    return signed("HS256", OURS, {**GOOD, **claims}, **header)


TOKENS: dict[str, str] = {
    "too_long": by_us({"more": "x" * 8192}),
    "malformed": "garbage",
    "algorithm": signed("ES256", ec_key(), GOOD),
    "critical": by_us({}, crit=["b64"], b64=True),
    "key": signed("HS256", OTHER, GOOD, kid="0123456789abcdef"),
    "signature": signed("HS256", OTHER, GOOD),
    "issuer": signed("ES256", ec_key(), {**GOOD, "iss": "https://nobody.test"}),
    "audience": by_us({"aud": "another"}),
    "expired": by_us({"exp": NOW - 1}),
    "not_before": by_us({"nbf": NOW + 80_000}),
    "issued_at": by_us({"iat": NOW + 80_000}),
    "claim_sub": by_us({"sub": "a\nuser"}),
    "claim_sid": by_us({"sid": 7.5}),
    "claim_exp": by_us({"exp": "tomorrow"}),
    "claim_topics": by_us({"topics": "news"}),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Replica]:
    with replica() as running:
        yield running


def logged(server: Replica, reason: str) -> dict[str, Any]:
    """The line of this reason."""

    def line() -> dict[str, Any] | None:
        lines = [json.loads(line) for line in server.log.read_text().splitlines() if "credentials refused" in line]
        return next((line for line in lines if line["reason"] == reason), None)

    found = until_sync(line, what=f"the line of {reason}")
    assert found is not None
    return found


@pytest.mark.parametrize("reason", TOKENS)
def test_the_log_and_a_metric_name_the_reason_and_the_answer_does_not(server: Replica, reason: str) -> None:
    answer = httpx.get(f"{server.url}/api/accounts/me", headers=bearer(TOKENS[reason]))

    line = logged(server, reason)
    assert answer.status_code == 401
    expected = (
        "The token has expired; sign in again." if reason == "expired" else "The token is not valid; sign in again."
    )
    assert answer.json()["detail"] == expected
    assert line["why"] == REASONS[reason]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert server.metric("allim_credentials_refused_total", reason=reason) == 1


def test_a_stream_a_ticket_a_renewal_and_a_publish_key_are_told_of_as_well(server: Replica) -> None:
    used = ticket(server.url, token())
    with httpx.Client(base_url=server.url) as client:
        statuses = [
            client.get("/events", headers=bearer(by_us({"kick": "x"}))).status_code,
            client.get("/events", params={"ticket": "garbage"}).status_code,
            client.post("/api/session/renew", headers=bearer(by_us({"iat": "x"}))).status_code,
            client.post("/api/publish", headers=bearer("wrong"), json={}).status_code,
            client.post("/api/publish", json={}).status_code,
        ]
        for _ in range(2):
            with client.stream("GET", "/events", params={"ticket": used}) as response:
                statuses.append(response.status_code)
        leaving = token("43")
        client.delete("/api/session", headers=bearer(leaving))
        statuses.append(client.get("/events", headers=bearer(leaving)).status_code)

    assert statuses == [401, 401, 401, 401, 401, 200, 401, 401]
    for reason in (
        *("claim_kick", "ticket_invalid", "claim_iat", "publish_key", "no_publish_key", "ticket_used", "signed_out"),
    ):
        assert logged(server, reason)["why"]


async def test_a_flood_is_counted_and_logged_once_a_second_per_reason() -> None:
    counted: list[str] = []
    clock = Clock(0.0)
    refused = Refused(counted.append, clock)
    bad, late = (Unauthenticated("no", reason=reason) for reason in ("signature", "expired"))

    with capture_logs() as lines:
        for _ in range(1000):
            refused.note(bad)
        refused.note(late)
        refused.note(Unauthenticated("Sign in first."))
        refused.note(Forbidden("no"))
        clock.at += LOG_EVERY_S
        refused.note(bad)

    assert [(line["reason"], line["refusals"]) for line in lines] == [
        ("signature", 1),
        ("expired", 1),
        ("signature", 1000),
    ]
    assert len(counted) == 1002


async def test_every_reason_of_a_token_has_its_words() -> None:
    tokens = Tokens([SECRET], 3600)
    for reason, text in TOKENS.items():
        with pytest.raises(Unauthenticated) as caught:
            await tokens.verify(text)
        assert caught.value.reason == reason
        assert reason in REASONS
