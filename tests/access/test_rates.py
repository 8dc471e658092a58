"""Rates: what is granted, what is told, and what happens while nobody answers."""

from collections.abc import Sequence

import pytest
from starlette.requests import HTTPConnection

from allim.access import rates
from allim.access.rates import Policy, Rates
from allim.brokers.memory import MemoryLedger
from allim.errors import TooMany
from allim.exchange import exchange_of
from allim.hub import Demand, Grant, Holder, SessionState
from tests.access.gates import AwayLedger, HangingLedger
from tests.access.issuers import Clock

pytestmark = pytest.mark.anyio

USER = Policy("user", 3, 60)
ADDRESS = Policy("address", 100, 10)


class Rationed:
    """Rates over one ledger, with its clock and what was refused."""

    def __init__(self, ledger: MemoryLedger | None = None) -> None:
        self.clock = Clock(1000.0)
        self.refused: list[str] = []
        self.rates = Rates(ledger or MemoryLedger(self.clock), MemoryLedger(self.clock), self.refused.append)

    async def charge(self, *wanted: tuple[Policy, str], cost: int = 1) -> dict[str, str]:
        """The headers of the answer, whether it is granted or not."""
        connection = HTTPConnection({"type": "http", "headers": []})
        try:
            await self.rates.charge(connection, *wanted, cost=cost)
        except TooMany as error:
            return {**extra_headers(connection), "retry-after": str(error.retry_after_s)}
        return extra_headers(connection)


def extra_headers(connection: HTTPConnection) -> dict[str, str]:
    headers: dict[str, str] = exchange_of(connection.scope).extra_headers
    return headers


async def test_what_is_left_is_told_in_every_answer() -> None:
    rationed = Rationed()

    told = [await rationed.charge((USER, "42")) for _ in range(3)]

    assert {headers["ratelimit-policy"] for headers in told} == {'"user";q=3;w=60'}
    assert [headers["ratelimit"] for headers in told] == [
        '"user";r=2;t=20', '"user";r=1;t=40', '"user";r=0;t=60',
    ]  # fmt: skip
    assert rationed.refused == []


async def test_one_too_many_is_refused_counted_and_told_when_to_come_back() -> None:
    rationed = Rationed()
    for _ in range(3):
        await rationed.charge((USER, "42"))
    rationed.clock.at += 0.5

    headers = await rationed.charge((USER, "42"))

    assert headers == {"ratelimit-policy": '"user";q=3;w=60', "ratelimit": '"user";r=0;t=60', "retry-after": "20"}
    assert rationed.refused == ["user"]
    assert "retry-after" not in await rationed.charge((USER, "43"))
    rationed.clock.at += 20
    assert "retry-after" not in await rationed.charge((USER, "42"))


async def test_of_several_limits_all_are_granted_or_none() -> None:
    rationed = Rationed()
    for _ in range(3):
        await rationed.charge((USER, "42"))

    headers = await rationed.charge((ADDRESS, "192.0.2.1"), (USER, "42"))

    assert headers["ratelimit-policy"] == '"address";q=100;w=10, "user";q=3;w=60'
    assert '"user";r=0;t=60' in headers["ratelimit"]
    assert rationed.refused == ["user"]
    assert (await rationed.charge((ADDRESS, "192.0.2.1")))["ratelimit"] == '"address";r=99;t=1'


async def test_whoever_is_over_several_waits_for_the_last() -> None:
    rationed = Rationed()
    slow, quick = Policy("slow", 1, 60), Policy("quick", 1, 10)
    await rationed.charge((slow, "x"), (quick, "x"))

    headers = await rationed.charge((slow, "x"), (quick, "x"))

    assert (headers["retry-after"], rationed.refused) == ("60", ["slow", "quick"])


async def test_the_wait_is_a_whole_second_at_least() -> None:
    rationed = Rationed()
    many = Policy("publish", 1000, 1)
    await rationed.charge((many, "x"), cost=1000)

    headers = await rationed.charge((many, "x"))

    assert headers["retry-after"] == "1"


async def test_a_cost_is_taken_at_once() -> None:
    rationed = Rationed()

    assert (await rationed.charge((ADDRESS, "x"), cost=60))["ratelimit"] == '"address";r=40;t=6'
    assert (await rationed.charge((ADDRESS, "x"), cost=60))["retry-after"] == "2"


@pytest.mark.parametrize("ledger", [AwayLedger, HangingLedger])
async def test_while_the_ledger_is_away_this_replica_counts(
    ledger: type[MemoryLedger], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "PATIENCE_S", 0.05)
    rationed = Rationed(ledger())

    told = [await rationed.charge((USER, "42")) for _ in range(4)]

    assert ["retry-after" in headers for headers in told] == [False, False, False, True]
    assert rationed.refused == ["user"]


class FullLedger(MemoryLedger):
    """A ledger whose store can be read and takes no write."""

    async def charge(self, demands: Sequence[Demand], holder: Holder | None = None) -> Grant:
        return Grant(SessionState.GOOD, ())


async def test_what_the_ledger_cannot_count_this_replica_counts() -> None:
    rationed = Rationed(FullLedger())

    told = [await rationed.charge((USER, "42")) for _ in range(4)]

    assert ["retry-after" in headers for headers in told] == [False, False, False, True]


async def test_other_headers_of_the_answer_stay() -> None:
    connection = HTTPConnection({"type": "http", "headers": []})
    exchange_of(connection.scope).extra_headers["x-request-id"] = "r1"

    await Rationed().rates.charge(connection, (USER, "42"))

    assert extra_headers(connection).keys() == {"x-request-id", "ratelimit", "ratelimit-policy"}
