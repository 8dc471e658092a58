"""What every ledger promises, over memory and Redis."""

import asyncio
import time

import pytest

from allim.hub import Demand, Ledger, Quota, SessionState
from allim.identity import Identity, Ticket
from tests.contracts.conftest import MakeLedger

pytestmark = pytest.mark.anyio


@pytest.fixture
def ledger(make_ledger: MakeLedger) -> Ledger:
    return make_ledger()


def holder(subject: str = "42", session: str = "s1", issued_at: float | None = None) -> Identity:
    return Identity(subject, session, time.time() + 60, issued_at=time.time() if issued_at is None else issued_at)


async def state(ledger: Ledger, who: Identity) -> SessionState:
    return (await ledger.session_states([who]))[0]


async def admit(ledger: Ledger, who: Identity, stream: str, most: int = 2, keep_s: float = 60.0) -> list[str]:
    admission = await ledger.admit(who, stream, most, keep_s)
    assert admission.state is SessionState.GOOD
    return list(admission.displaced)


DEMAND = Demand("user:42", 2, 60)


async def test_a_stream_is_admitted_with_its_demands_or_neither(ledger: Ledger) -> None:
    who = holder()
    ticket = Ticket("with demands", 60)

    admission = await ledger.admit(who, "a", 1, 60, None, [DEMAND])
    assert [quota.remaining for quota in admission.quotas] == [1]
    greedy = await ledger.admit(who, "b", 1, 60, ticket, [DEMAND._replace(cost=2)])
    assert ([quota.granted for quota in greedy.quotas], list(greedy.displaced)) == ([False], [])
    assert (await ledger.charge([DEMAND])).granted
    assert not (await ledger.charge([DEMAND])).granted

    other = await ledger.admit(who, "c", 1, 60, ticket, [Demand("another", 2, 60)])
    assert (other.state, list(other.displaced)) == (SessionState.GOOD, ["a"])
    spent = await ledger.admit(who, "d", 1, 60, ticket, [Demand("another", 2, 60)])
    assert (spent.state, list(spent.quotas)) == (SessionState.SPENT, [])
    assert [quota.remaining for quota in (await ledger.charge([Demand("another", 2, 60)])).quotas] == [0]


async def test_a_signed_out_session_is_known_everywhere_and_no_other_ends(make_ledger: MakeLedger) -> None:
    here, there = make_ledger(), make_ledger()

    await here.sign_out(holder(), 60)

    found = await there.session_states([holder(), holder(session="s2"), holder(subject="43")])
    assert list(found) == [SessionState.SIGNED_OUT, SessionState.GOOD, SessionState.GOOD]
    assert (await there.admit(holder(), "a", 10, 60)).state is SessionState.SIGNED_OUT


async def test_a_kick_ends_what_was_issued_before_and_nothing_after(make_ledger: MakeLedger) -> None:
    here, there = make_ledger(), make_ledger()
    before = holder()

    moment = await here.kick("42", 60, time.time())

    assert abs(moment - time.time()) < 5
    after = holder(issued_at=moment + 0.001)
    found = await there.session_states([before, holder(issued_at=0), after, holder(subject="43", issued_at=0)])
    assert list(found) == [SessionState.KICKED, SessionState.KICKED, SessionState.GOOD, SessionState.GOOD]


async def test_a_kick_ends_tokens_that_name_an_earlier_one_whatever_any_clock_says(make_ledger: MakeLedger) -> None:
    here, there = make_ledger(), make_ledger()
    far = 90.0 * 86400
    tokens = [holder(issued_at=time.time() + wrong_s)._replace(after_kick=0.0) for wrong_s in (-far, 0, far)]
    assert await there.last_kick("42") == 0

    first = await here.kick("42", 60, time.time() + far)
    assert await there.last_kick("42") == first
    assert list(await there.session_states(tokens)) == [SessionState.KICKED] * 3
    again = [token._replace(after_kick=first) for token in tokens]
    assert list(await there.session_states(again)) == [SessionState.GOOD] * 3

    second = await there.kick("42", 60, time.time() - far)
    assert second > first
    assert list(await here.session_states(again)) == [SessionState.KICKED] * 3
    assert (
        list(await here.session_states([token._replace(after_kick=second) for token in tokens]))
        == [SessionState.GOOD] * 3
    )
    assert (await here.admit(again[2], "a", 10, 60)).state is SessionState.KICKED
    assert (await here.charge([DEMAND], again[2])).state is SessionState.KICKED


async def test_revocations_are_forgotten_in_their_time(ledger: Ledger) -> None:
    await ledger.sign_out(holder(), 0.2)
    await ledger.kick("43", 0.2, time.time())
    assert await state(ledger, holder()) is SessionState.SIGNED_OUT

    await asyncio.sleep(0.25)  # what is waited for is that nothing is there

    assert await state(ledger, holder()) is SessionState.GOOD
    assert await state(ledger, holder(subject="43", issued_at=0)) is SessionState.GOOD


async def test_the_oldest_streams_of_a_user_are_displaced_over_all_replicas(make_ledger: MakeLedger) -> None:
    here, there = make_ledger(), make_ledger()

    assert await admit(here, holder(), "a") == []
    assert await admit(there, holder(session="s2"), "b") == []
    assert await admit(there, holder(), "c") == ["a"]
    assert await admit(here, holder(), "d") == ["b"]
    assert await admit(here, holder(subject="43"), "e") == []


async def test_a_stream_that_has_left_takes_no_place(ledger: Ledger) -> None:
    who = holder("left")
    await admit(ledger, who, "a", most=1)
    ledger.remove_stream("left", "a")

    async def free() -> bool:
        displaced = await admit(ledger, who, "b", most=1)
        ledger.remove_stream("left", "b")
        return displaced == []

    for _ in range(50):
        if await free():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the place was never free")


async def test_a_stream_nobody_ends_takes_no_place_for_ever(ledger: Ledger) -> None:
    await admit(ledger, holder(), "a", most=1, keep_s=0.2)
    await asyncio.sleep(0.25)  # what is waited for is that nothing is there

    assert await admit(ledger, holder(), "b", most=1, keep_s=0.2) == []


async def test_a_ticket_is_spent_once_by_whoever_is_first(make_ledger: MakeLedger) -> None:
    ledgers = [make_ledger(), make_ledger()]
    ticket = Ticket("t1", 60)

    found = await asyncio.gather(
        *(ledgers[number % 2].admit(holder(), f"stream-{number}", 100, 60, ticket) for number in range(20))
    )

    states = [admission.state for admission in found]
    assert (states.count(SessionState.GOOD), states.count(SessionState.SPENT)) == (1, 19)


async def test_an_ended_session_spends_no_ticket(ledger: Ledger) -> None:
    await ledger.sign_out(holder(), 60)
    assert (await ledger.admit(holder(), "a", 10, 60, Ticket("t2", 60))).state is SessionState.SIGNED_OUT

    assert (await ledger.admit(holder(session="s2"), "a", 10, 60, Ticket("t2", 60))).state is SessionState.GOOD


async def test_a_rate_is_one_over_all_replicas(make_ledger: MakeLedger) -> None:
    ledgers = [make_ledger(), make_ledger()]

    taken = [await ledgers[number % 2].charge([Demand("user:42", 10, 60)]) for number in range(12)]

    quotas = [grant.quotas[0] for grant in taken]
    assert [quota.granted for quota in quotas] == [True] * 10 + [False] * 2
    assert [quota.remaining for quota in quotas[:10]] == list(range(9, -1, -1))
    assert 5 < quotas[-1].retry_after_s <= 6
    assert 58 < quotas[-1].reset_s <= 60


async def test_a_rate_comes_back_with_time(ledger: Ledger) -> None:
    demand = Demand("fast", 20, 10)
    for _ in range(40):  # one comes back in half a second
        refused = (await ledger.charge([demand])).quotas[0]
        if not refused.granted:
            break
    assert not refused.granted

    await asyncio.sleep(refused.retry_after_s + 0.01)

    assert (await ledger.charge([demand])).quotas[0].granted


async def test_all_demands_are_granted_or_none_is_charged(ledger: Ledger) -> None:
    roomy, tight = Demand("roomy", 10, 60), Demand("tight", 1, 60)
    await ledger.charge([tight])

    both = await ledger.charge([roomy, tight])

    assert [(quota.granted, quota.remaining) for quota in both.quotas] == [(True, 10), (False, 0)]
    assert both.quotas[0].reset_s == 0
    assert (await ledger.charge([roomy])).quotas[0].remaining == 9


async def test_what_costs_more_than_its_limit_is_granted_when_nothing_is_used(ledger: Ledger) -> None:
    batch = Demand("batch", 10, 1, cost=25)

    first, second = [(await ledger.charge([batch])).quotas[0] for _ in range(2)]

    assert isinstance(first, Quota)
    assert (first.granted, second.granted, second.remaining) == (True, False, 0)
    assert 2 < second.retry_after_s <= 2.5


async def test_a_name_may_be_any_text(ledger: Ledger) -> None:
    odd = [Demand(name, 1, 60) for name in ("a\r\nb", "{x}", "*", "", "\ud7ff\x00")]

    assert (await ledger.charge(odd)).granted
    assert not any(quota.granted for quota in (await ledger.charge(odd)).quotas)


async def test_nothing_is_granted_to_and_charged_for_an_ended_session(make_ledger: MakeLedger) -> None:
    here, there = make_ledger(), make_ledger()
    demand = Demand("user:42", 10, 60)
    assert (await here.charge([demand], holder())).granted
    await here.sign_out(holder(), 60)

    refused = await there.charge([demand], holder())

    assert (refused.state, list(refused.quotas), refused.granted) == (SessionState.SIGNED_OUT, [], False)
    assert (await there.charge([demand], holder(session="s2"))).quotas[0].remaining == 8
