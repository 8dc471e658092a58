"""Clients that are refused and come back all the same use up no limits of others."""

import httpx
import pytest
from harness.replicas import Replica, bearer, publish, replica, token

from allim.access.publishers import new_secret
from allim.access.rates import Policy

CALLS = Policy("address", 6, 60)
SIGN_IN = {"email": "ada@example.org", "password": "long enough"}


def sign_in(running: Replica) -> int:
    return httpx.post(f"{running.url}/api/session", json=SIGN_IN).status_code


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/events", "/events?topics=news:a", "/api/accounts/me"])
def test_pages_that_come_back_after_a_sign_out_use_up_no_sign_in(method: str, path: str) -> None:
    with replica(address_calls_per_min=CALLS.limit) as running:
        forgotten = bearer(token("forgotten"))
        assert httpx.delete(f"{running.url}/api/session", headers=forgotten).status_code == 204

        answers = [httpx.request(method, running.url + path, headers=forgotten) for _ in range(CALLS.limit + 2)]

        assert [answer.status_code for answer in answers] == [401] * CALLS.limit + [429] * 2
        assert answers[0].headers["ratelimit-policy"] == '"ended";q=6;w=60'
        assert running.metric("allim_refusals_total", limit="ended") == 2
        assert sign_in(running) == 401


def test_services_with_wrong_keys_use_up_no_sign_in() -> None:
    with replica(address_calls_per_min=CALLS.limit) as running:
        event = {"topic": "news", "type": "t", "data": 1}

        keys = [bearer(new_secret()) for _ in range(CALLS.limit + 2)]
        statuses = [publish(running.url, event, **key).status_code for key in keys]

        assert statuses == [401] * CALLS.limit + [429] * 2
        assert sign_in(running) == 401
