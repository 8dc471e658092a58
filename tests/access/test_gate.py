"""Who comes in, by what, and who does not."""

import asyncio
import time
from typing import Any

import pytest
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Message

from allim.access import rates
from allim.access.authenticate import Authenticate
from allim.access.gate import COOKIE, Gate, Limits, bearer_of
from allim.access.rates import Policy
from allim.access.tickets import Tickets
from allim.brokers.memory import MemoryLedger
from allim.errors import Forbidden, Kicked, OtherUser, SignedOut, TooMany, Unauthenticated, Unavailable
from allim.exchange import exchange_of
from allim.hub import refuse_ended
from allim.identity import OPERATOR, Identity
from tests.access.gates import AMPLE, SECRET, TOKENS, AwayLedger, HangingLedger, gate_beside, gate_of, rates_of

pytestmark = pytest.mark.anyio

PROXIED = 0


def request(
    *, query: str = "", scheme: str = "http", client: tuple[str, int] = ("192.0.2.1", 40_000), **headers: str
) -> Request:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request(
        {
            "type": "http", "method": "GET", "scheme": scheme, "path": "/", "query_string": query.encode(),
            "server": ("test", 80), "client": client, "headers": named,
        }
    )  # fmt: skip


def asked_by(subject: str, **claims: Any) -> Request:
    return request(authorization=f"Bearer {TOKENS.issue(subject, **claims)}")


async def test_a_call_that_is_meant_for_another_user_is_refused() -> None:
    gate = gate_of()
    for meant, refused in (("42", False), ("43", True), ("", True)):
        call = request(authorization=f"Bearer {TOKENS.issue('42')}", allim_user=meant)
        for judge in (gate.identify, gate.recognise):
            if refused:
                with pytest.raises(OtherUser):
                    await judge(call)
            else:
                assert (await judge(call)).subject == "42"


# The token ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"authorization": "Bearer t1"}, "t1"),
        ({"authorization": "bEaReR  t1 "}, "t1"),
        ({"cookie": f"{COOKIE}=t2"}, "t2"),
        ({"cookie": f"a=b; {COOKIE}=t2; c=d"}, "t2"),
        ({"cookie": f"{COOKIE}=t2", "authorization": "Bearer t1"}, "t1"),
        ({"cookie": f"{COOKIE}=t2", "authorization": "Basic dTpw"}, "t2"),
    ],
)
async def test_the_header_wins_and_then_the_cookie(headers: dict[str, Any], expected: str) -> None:
    assert gate_of().token_of(request(**headers)) == expected


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer", "cookie": f"{COOKIE}=t2"},
        {"authorization": "Basic dTpw"},
        {"cookie": f"{COOKIE}="},
        {"cookie": "other=t2"},
    ],
)
async def test_whoever_brings_nothing_has_to_sign_in(headers: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated, match="Sign in first"):
        gate_of().token_of(request(**headers))


async def test_only_the_bearer_scheme_has_credentials() -> None:
    assert bearer_of(request(authorization="Bearer a b")) == "a b"
    assert bearer_of(request(authorization="Basic dTpw")) is None
    assert bearer_of(request()) is None


@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
async def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(scheme: str, secure: bool) -> None:
    answer = Response()
    gate_of().set_cookie(request(scheme=scheme), answer, "t1", 60)

    parts = answer.headers["set-cookie"].split("; ")

    assert parts[0] == f"{COOKIE}=t1"
    assert {"HttpOnly", "Max-Age=60", "Path=/", "SameSite=lax"} <= set(parts)
    assert ("Secure" in parts) is secure


async def test_a_cleared_cookie_is_gone_at_once() -> None:
    answer = Response()
    gate_of().clear_cookie(request(), answer)

    assert answer.headers["set-cookie"].startswith(f'{COOKIE}="";')
    assert "Max-Age=0" in answer.headers["set-cookie"]


async def test_an_applications_own_cookie_is_read_by_its_name_and_no_other() -> None:
    gate = gate_beside(cookie="shop_session")
    answer = Response()
    gate.set_cookie(request(), answer, "t1", 60)

    assert gate.token_of(request(cookie=f"shop_session=t2; {COOKIE}=t1")) == "t2"
    assert answer.headers["set-cookie"].startswith("shop_session=t1;")
    with pytest.raises(Unauthenticated, match="Sign in first"):
        gate.token_of(request(cookie=f"{COOKIE}=t1"))


# Authentication by the application ----------------------------------------------------------------------------


def by_header(connection: HTTPConnection) -> Identity | None:
    """An application that knows its users by a header of its own."""
    user = connection.headers.get("x-user")
    return Identity.of(user, topics=["news:*"], session="s1") if user else None


async def by_header_later(connection: HTTPConnection) -> Identity | None:
    await asyncio.sleep(0)
    return by_header(connection)


@pytest.mark.parametrize("authenticate", [by_header, by_header_later])
async def test_the_application_is_asked_before_tokens(authenticate: Authenticate) -> None:
    gate = gate_beside(authenticate)
    both = request(x_user="auth0|7", authorization=f"Bearer {TOKENS.issue('42')}")

    identity = await gate.identify(both)

    assert (identity.subject, identity.session, identity.topics) == ("auth0|7", "s1", ("news:*",))
    assert (await gate.visit(both)).identity.subject == "auth0|7"
    assert (await gate.recognise(both)).subject == "auth0|7"
    assert (await gate.identify(request(authorization=f"Bearer {TOKENS.issue('42')}"))).subject == "42"
    with pytest.raises(Unauthenticated, match="Sign in first"):
        await gate.identify(request())


async def test_a_ticket_wins_over_the_application() -> None:
    gate = gate_beside(lambda _: Identity.of("7"))
    ticket = Tickets([SECRET], 30).issue(await TOKENS.verify(TOKENS.issue("42")), ["news"])

    assert (await gate.visit(request(query=f"ticket={ticket}"))).identity.subject == "42"


async def test_what_the_application_vouches_for_is_not_allims_to_renew() -> None:
    gate = gate_beside(lambda _: Identity.of("42"))

    identity = await gate.identify(request())

    assert identity.issuer == ""
    assert not TOKENS.life(None, identity._replace(expires_at=time.time() + 1)).renewal_due


async def test_an_identity_of_the_application_ends_by_a_kick_and_may_come_back() -> None:
    ledger = MemoryLedger()
    gate = gate_beside(lambda _: Identity.of("42"), ledger=ledger)
    before = await gate.identify(request())

    await ledger.kick("42", 60, time.time())

    assert [str(state) for state in await ledger.session_states([before])] == ["kicked"]
    await gate.identify(request())  # the application vouches again, after the kick


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ("42", TypeError),
        (("42", "s1", 0), TypeError),
        (Identity.of(""), ValueError),
        (Identity.of("a\n"), ValueError),
        (Identity.of("42", session=""), ValueError),
        (Identity.of("42", topics=["*"]), ValueError),
    ],
)
async def test_what_is_no_identity_is_a_defect_of_the_application(wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="authenticate"):
        await gate_beside(lambda _: wrong).identify(request())


async def test_the_user_whom_a_page_shows_is_named_percent_encoded() -> None:
    def shown(header: str, user: str) -> Request:
        return request(allim_user=header, authorization=f"Bearer {TOKENS.issue(user)}")

    for user, header in (("auth0|7", "auth0%7C7"), ("김", "%EA%B9%80"), ("a%7Cb", "a%257Cb"), ("a+b", "a+b")):
        assert (await gate_of().identify(shown(header, user))).subject == user
    with pytest.raises(OtherUser):
        await gate_of().identify(shown("a%7Cb", "a%7Cb"))


# Calls --------------------------------------------------------------------------------------------------------


async def test_a_good_session_is_known() -> None:
    identity = await gate_of().identify(asked_by("42", session="s1"))

    assert (identity.subject, identity.session) == ("42", "s1")


async def test_an_ended_session_is_told_how_it_ended() -> None:
    ledger = MemoryLedger()
    gate = gate_of(ledger)
    signed_out, kicked = asked_by("42", session="s1"), asked_by("43")
    await ledger.sign_out(await gate.identify(signed_out), 60)
    await ledger.kick("43", 60, time.time())

    with pytest.raises(SignedOut):
        await gate.identify(signed_out)
    with pytest.raises(Kicked):
        await gate.identify(kicked)
    await gate.identify(asked_by("42", session="s2"))


async def test_a_user_may_call_so_often_in_all_sessions_together() -> None:
    gate = gate_of(user_calls=Policy("user", 2, 60))
    for session in ("s1", "s2"):
        await gate.identify(asked_by("42", session=session))

    with pytest.raises(TooMany):
        await gate.identify(asked_by("42", session="s3"))
    await gate.identify(asked_by("43"))


async def test_what_is_no_token_costs_nobody_anything() -> None:
    gate = gate_of(user_calls=Policy("user", 1, 60))

    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await gate.identify(request(authorization="Bearer nonsense"))

    await gate.identify(asked_by("42"))


@pytest.mark.parametrize("ledger", [AwayLedger, HangingLedger])
async def test_while_it_cannot_be_known_whether_a_session_has_ended_nobody_comes_in(
    ledger: type[MemoryLedger], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "SESSION_PATIENCE_S", 0.05)

    with pytest.raises(Unavailable):
        await gate_of(ledger()).identify(asked_by("42"))


async def test_an_operator_is_who_the_token_says_is_one() -> None:
    gate = gate_of()

    assert (await gate.require_operator(asked_by("op1", role=OPERATOR))).subject == "op1"
    with pytest.raises(Forbidden):
        await gate.require_operator(asked_by("42"))
    with pytest.raises(Unauthenticated):
        await gate.require_operator(request())


# Streams ------------------------------------------------------------------------------------------------------


async def test_a_visitor_by_token_brings_no_topics_and_a_network() -> None:
    visitor = await gate_of().visit(asked_by("42"))

    assert (visitor.identity.subject, visitor.address) == ("42", "192.0.2.1")
    assert (visitor.topics, visitor.ticket, visitor.proof) == ((), None, "")


async def test_a_ticket_wins_over_a_token_and_is_not_spent_yet() -> None:
    gate = gate_of()
    ticket = Tickets([SECRET], 30).issue(await gate.identify(asked_by("42")), ["board"])

    for _ in range(2):
        visitor = await gate.visit(request(query=f"ticket={ticket}", authorization=f"Bearer {TOKENS.issue('43')}"))
        assert (visitor.identity.subject, visitor.topics) == ("42", ("board",))
        assert visitor.ticket is not None
        assert visitor.address == "192.0.2.1"


@pytest.mark.parametrize("query", ["ticket=", "ticket=nonsense", "ticket=%00"])
async def test_a_bad_ticket_is_not_made_good_by_a_token(query: str) -> None:
    with pytest.raises(Unauthenticated, match="ticket"):
        await gate_of().visit(request(query=query, authorization=f"Bearer {TOKENS.issue('42')}"))


async def open_stream(gate: Gate, ledger: MemoryLedger, who: Request) -> dict[str, str]:
    """As the hub does it when it admits a stream; the headers of the answer."""
    visitor = await gate.visit(who)
    charge = gate.charge(who, visitor)
    admission = await ledger.admit(visitor.identity, "stream", 10, 60, visitor.ticket, charge.demands)
    refuse_ended(admission.state)
    await charge.report(admission.quotas)
    return dict(exchange_of(who.scope).extra_headers)


async def test_streams_count_as_calls_of_their_user() -> None:
    ledger = MemoryLedger()
    gate = gate_of(ledger, user_calls=Policy("user", 2, 60))

    assert (await open_stream(gate, ledger, asked_by("42")))["ratelimit"] == '"user";r=1;t=30'
    await gate.identify(asked_by("42"))
    with pytest.raises(TooMany):
        await open_stream(gate, ledger, asked_by("42"))
    await open_stream(gate, ledger, asked_by("43"))


async def test_a_stream_that_could_not_be_counted_by_all_is_counted_here() -> None:
    gate = gate_of(user_calls=Policy("user", 1, 60))
    who = asked_by("42")
    charge = gate.charge(who, await gate.visit(who))

    await charge.report([])
    with pytest.raises(TooMany):
        await charge.report([])


async def test_a_call_of_an_ended_session_charges_its_address() -> None:
    ledger = MemoryLedger()
    gate = gate_of(ledger, user_calls=Policy("user", 1, 60), ended_calls=Policy("ended", 2, 60))
    kicked = asked_by("42")
    await ledger.kick("42", 60, time.time())

    for _ in range(2):
        with pytest.raises(Kicked):
            await gate.identify(kicked)

    with pytest.raises(TooMany):
        await gate.identify(kicked)
    await asyncio.sleep(0.002)  # tokens know milliseconds
    assert (await gate.identify(asked_by("42"))).subject == "42"


async def test_calls_with_an_ended_session_or_an_unknown_key_use_up_no_sign_in_of_their_address() -> None:
    ledger = MemoryLedger()
    few = {name: Policy(name, 2, 60) for name in ("address_calls", "ended_calls", "unknown_keys")}
    gate = gate_of(ledger, **few)
    kicked = asked_by("42")
    await ledger.kick("42", 60, time.time())

    for _ in range(2):
        with pytest.raises(Kicked):
            await gate.identify(kicked)
        await gate.count_unknown_key(kicked)
    for count in (gate.count_ended, gate.count_unknown_key):
        with pytest.raises(TooMany):
            await count(kicked)

    await gate.stop_guessing(kicked, "ada@example.org")


# Who is not signed in -----------------------------------------------------------------------------------------


async def test_calls_of_an_address_are_counted_and_this_machine_is_one() -> None:
    gate = gate_of(address_calls=Policy("address", 1, 60))
    local = [("127.0.0.1", 40_000), ("::1", 40_001)]

    await gate.stop_guessing(request(client=("192.0.2.1", PROXIED)))
    await gate.stop_guessing(request(client=("192.0.2.2", PROXIED)))
    await gate.stop_guessing(request(client=local[0]))

    for client in (("192.0.2.1", PROXIED), local[1]):
        with pytest.raises(TooMany):
            await gate.stop_guessing(request(client=client))


async def test_tries_are_counted_by_email_and_by_address() -> None:
    gate = gate_of(sign_in_tries=Policy("sign-in", 2, 60))
    for _ in range(2):
        await gate.stop_guessing(request(), "ada@example.org")

    with pytest.raises(TooMany):
        await gate.stop_guessing(request(), "ada@example.org")
    await gate.stop_guessing(request(), "grace@example.org")
    await gate.stop_guessing(request(client=("192.0.2.2", PROXIED)), "ada@example.org")


async def test_addresses_of_one_wider_network_have_more_together_and_not_without_end() -> None:
    gate = gate_of(address_calls=Policy("address", 1, 60), sign_in_tries=Policy("sign-in", 1, 60))
    sites = [(f"2001:db8:0:{site:x}00::1", PROXIED) for site in range(5)]
    subscribers = [(f"2001:db8:0:{subscriber:x}::1", PROXIED) for subscriber in range(5)]

    async def tries(client: tuple[str, int]) -> dict[str, str]:
        asked = request(client=client)
        await gate.stop_guessing(asked, "ada@example.org")
        return dict(exchange_of(asked.scope).extra_headers)

    told = [await tries(client) for client in subscribers[:4]]
    with pytest.raises(TooMany):  # a fifth /64 of one /56
        await tries(subscribers[4])
    with pytest.raises(TooMany):  # the first /64 once more
        await tries(subscribers[0])
    for client in sites[1:4]:  # other /56 of the same /48
        await tries(client)

    assert '"address";q=1;w=60' in told[0]["ratelimit-policy"]
    assert '"address/56";q=4;w=60' in told[0]["ratelimit-policy"]
    assert '"sign-in/48";q=16;w=60' in told[0]["ratelimit-policy"]
    assert '"address/48";r=12' in told[3]["ratelimit"]


async def test_an_account_to_be_made_is_counted_beside_the_call_and_both_are_told() -> None:
    gate, limit = gate_of(address_calls=Policy("address", 5, 60)), Policy("accounts", 1, 3600)
    asked = request(client=("192.0.2.1", PROXIED))

    await gate.stop_guessing(asked)
    await gate.limit_address(asked, limit)

    assert exchange_of(asked.scope).extra_headers["ratelimit-policy"] == '"address";q=5;w=60, "accounts";q=1;w=3600'
    assert exchange_of(asked.scope).extra_headers["ratelimit"].startswith('"address";r=4;t=12, "accounts";r=0;')
    with pytest.raises(TooMany):
        await gate.limit_address(request(client=("192.0.2.1", PROXIED)), limit)
    await gate.limit_address(request(client=("192.0.2.2", PROXIED)), limit)


async def test_a_whole_48_has_sixteen_times_the_limit_of_an_address() -> None:
    gate = gate_of(address_calls=Policy("address", 1, 60))
    clients = [(f"2001:db8:0:{site:x}{subscriber:02x}::1", PROXIED) for site in range(5) for subscriber in range(4)]

    for client in clients[:16]:
        await gate.stop_guessing(request(client=client))
    with pytest.raises(TooMany):
        await gate.stop_guessing(request(client=clients[16]))
    await gate.stop_guessing(request(client=("2001:db8:1::1", PROXIED)))


async def test_one_address_has_few_passwords_waiting_and_refusals_are_counted() -> None:
    refused: list[str] = []
    limits = Limits(*[AMPLE] * len(Limits._fields))
    gate = Gate(TOKENS, Tickets([SECRET], 30), rates_of(refused=refused), limits)
    hashed: list[str] = []

    async def never() -> Message:
        await asyncio.Event().wait()
        raise AssertionError("nobody hangs up")

    async def hash_for(client: tuple[str, int]) -> None:
        async with gate.hashing(Request(request(client=client).scope, never)):
            await asyncio.sleep(0)
            hashed.append(client[0])

    many = [asyncio.create_task(hash_for(("192.0.2.1", PROXIED))) for _ in range(20)]
    other = asyncio.create_task(hash_for(("192.0.2.2", PROXIED)))
    outcomes = await asyncio.gather(*many, return_exceptions=True)
    await other

    assert sum(isinstance(outcome, TooMany) for outcome in outcomes) == 10
    assert refused == ["hashing"] * 10
    assert hashed.index("192.0.2.2") < 5
