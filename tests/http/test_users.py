"""An operator ends everything a user has open."""

from urllib.parse import quote

import pytest
from structlog.testing import capture_logs

from allim.brokers.memory import MemoryLedger
from allim.errors import Unavailable
from allim.http import users
from allim.identity import OPERATOR
from tests.access.gates import bearer, gate_of
from tests.http.apps import assert_problem, client_of

pytestmark = pytest.mark.anyio


class Hub:
    """Kicks, or is away."""

    def __init__(self) -> None:
        self.kicked: list[str] = []
        self.away = False

    async def kick(self, subject: str) -> None:
        if self.away:
            raise Unavailable("away")
        self.kicked.append(subject)


class Door:
    """The route over a hub that remembers whom it kicked."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.client = client_of(users.routes(gate_of(MemoryLedger()), self.hub.kick))


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.mark.parametrize(
    "user", ["42", "a.b_c~d-e", "x" * 255, "auth0|7", "a b", "é김", "q83v/+8=", "a/../b", "100%", "?#"]
)
async def test_an_operator_kicks_a_user_and_it_is_logged_who_did(door: Door, user: str) -> None:
    with capture_logs() as logs:
        path = f"/api/users/{quote(user, safe='')}/streams"
        answer = await door.client.delete(path, headers=bearer("op1", OPERATOR))

    assert (answer.status_code, answer.content) == (204, b"")
    assert door.hub.kicked == [user]
    assert {"user": user, "operator": "op1"}.items() <= logs[-1].items()


async def test_nobody_else_does(door: Door) -> None:
    assert_problem(await door.client.delete("/api/users/42/streams"), 401, "unauthenticated")
    for own in ("42", "7"):
        answer = await door.client.delete(f"/api/users/{own}/streams", headers=bearer("42"))
        assert_problem(answer, 403, "forbidden")

    assert door.hub.kicked == []


@pytest.mark.parametrize("user", ["x" * 256, "%0a", "a%0a", "%00", ""])
async def test_what_is_no_user_is_named(door: Door, user: str) -> None:
    answer = await door.client.delete(f"/api/users/{user}/streams", headers=bearer("op1", OPERATOR))

    assert_problem(answer, 404, "not_found")
    assert door.hub.kicked == []


async def test_a_kick_that_may_not_have_happened_is_503(door: Door) -> None:
    door.hub.away = True

    answer = await door.client.delete("/api/users/42/streams", headers=bearer("op1", OPERATOR))

    assert_problem(answer, 503, "unavailable")
    assert int(answer.headers["retry-after"]) > 0


async def test_only_deleting_is_known(door: Door) -> None:
    answer = await door.client.get("/api/users/42/streams", headers=bearer("op1", OPERATOR))

    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "DELETE"
