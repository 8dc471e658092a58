"""Sessions over several replicas: how they end, go on, and are limited, also while Redis is away."""

import asyncio
import itertools
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from harness.deployment import Deployment, deployment
from harness.replicas import PUBLISH_KEY, Reader, Replica, bearer, ticket, token
from harness.waiting import until

from allim.client import Message
from tests.http.apps import assert_problem

pytestmark = pytest.mark.anyio

PULSE_S = 0.5
PATIENCE_S = 2.4 * PULSE_S  # a link that brings no pulse for so long is replaced
HISTORY_EVENTS = 10
SESSION_MAX_S = 3600
STREAMS_PER_USER = 3
STREAMS_PER_ADDRESS = 5
STREAMS_PER_REPLICA = 12
CALLS_PER_MIN = 20  # one more every 3 s
TRIES_PER_MIN = 3
EVENTS_PER_S = 20
FIRST_KEY, SECOND_KEY = "a publish key with a rate", "another one with another"
LEDGER_PATIENCE_S = 2.0
AT_ONCE_S = 10.0  # a second on a machine that does nothing else
PASSWORDS_S = 2.0  # for a busy machine to verify one password and hash another before sessions are ended

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def started() -> Iterator[Deployment]:
    with deployment(
        2,
        pulse_s=PULSE_S,
        heartbeat_s=1,
        drain_s=0,
        history_events=HISTORY_EVENTS,
        session_max_s=SESSION_MAX_S,
        streams_per_user=STREAMS_PER_USER,
        streams_per_address=STREAMS_PER_ADDRESS,
        streams_per_replica=STREAMS_PER_REPLICA,
        user_calls_per_min=CALLS_PER_MIN,
        sign_in_tries_per_min=TRIES_PER_MIN,
        publish_events_per_s=EVENTS_PER_S,
        publish_keys=f"tests:{PUBLISH_KEY},first:{FIRST_KEY},second:{SECOND_KEY}",
    ) as system:
        yield system


@pytest.fixture
async def system(started: Deployment) -> Deployment:
    """Whole, and without any stream."""
    started.heal()
    await until(lambda: all(replica.metric("allim_streams_open") == 0 for replica in started.replicas))
    return started


@pytest.fixture
def who() -> str:
    """A user nobody else is."""
    return f"session-{next(_numbers)}"


def everywhere(system: Deployment) -> list[str]:
    return [*system.urls, system.url]


def me(url: str, who: str) -> httpx.Response:
    return httpx.get(f"{url}/api/accounts/me", headers=bearer(who))


def refused_stream(url: str, who: str) -> httpx.Response:
    return httpx.get(f"{url}/events", headers=bearer(who), timeout=15)  # more than a stream waits for Redis


def kick(url: str, user: str) -> None:
    operator = bearer(token(f"operator-{next(_numbers)}", role="operator"))
    assert httpx.delete(f"{url}/api/users/{user}/streams", headers=operator).status_code == 204


def refusals(system: Deployment, limit: str) -> float:
    return sum(replica.metric("allim_refusals_total", limit=limit) for replica in system.replicas)


async def opened(url: str, who: str, **headers: Any) -> Reader:
    """An open stream that has read its first frame."""
    stream = await Reader.open(url, who, **headers)
    assert stream.status == 200
    await stream.next("stream.open")
    return stream


async def last_of(stream: Reader) -> tuple[Message, float]:
    """Its last frame, and when it ended."""
    rest = await stream.rest(20)
    return rest[-1], time.monotonic()


# Expiry and renewal -------------------------------------------------------------------------------------------


async def test_a_stream_ends_with_its_token_and_a_renewed_one_goes_on(system: Deployment, who: str) -> None:
    here, there = system.urls
    lifetime_s = 5
    ends, renewed = (token(f"{who}{name}", lifetime_s) for name in ("a", "b"))
    began = time.monotonic()
    async with await opened(here, ends) as short, await opened(here, renewed) as long:
        assert 3 <= (await short.next("stream.expiring")).data["expires_in_s"] <= 5
        await long.next("stream.expiring")
        ending = asyncio.create_task(last_of(short))

        await asyncio.sleep(began + 3 - time.monotonic())  # the moment is what is tested
        answer = httpx.post(f"{there}/api/session/renew", headers=bearer(renewed))
        assert answer.status_code == 200
        next_ending = asyncio.create_task(last_of(long))

        last, ended_at = await ending
        assert last.data == {"reason": "token_expired", "reconnect": False}
        assert lifetime_s - 1 < ended_at - began < lifetime_s + 1
        last, ended_at = await next_ending
        assert last.data == {"reason": "token_expired", "reconnect": False}
        assert 3 + lifetime_s - 1 < ended_at - began < 3 + lifetime_s + 1
        assert sum(message.type == "stream.open" for message in long.messages) == 1
        assert sum(message.type == "stream.expiring" for message in long.messages) == 2
    for url in everywhere(system):
        assert_problem(me(url, ends), 401, "unauthenticated")


async def test_a_session_that_lasted_its_most_is_not_renewed(system: Deployment, who: str) -> None:
    old = token(who, auth_time=time.time() - SESSION_MAX_S - 1)

    answer = httpx.post(f"{system.url}/api/session/renew", headers=bearer(old))

    assert_problem(answer, 401, "unauthenticated")
    assert "as long as it may" in answer.json()["detail"]


# Sign-out and kick --------------------------------------------------------------------------------------------


async def test_a_sign_out_ends_the_session_everywhere_and_no_other(system: Deployment, who: str) -> None:
    session, other = token(who), token(who)
    async with AsyncExitStack() as stack:
        mine = [await stack.enter_async_context(await opened(url, session)) for url in system.urls]
        untouched = await stack.enter_async_context(await opened(system.url, other))
        began = time.monotonic()
        assert httpx.delete(f"{system.url}/api/session", headers=bearer(session)).status_code == 204

        for last, ended_at in await asyncio.gather(*map(last_of, mine)):
            assert last.data == {"reason": "signed_out", "reconnect": False}
            assert ended_at - began < AT_ONCE_S
        for url in everywhere(system):
            assert_problem(me(url, session), 401, "signed_out")
            assert_problem(refused_stream(url, session), 401, "signed_out")
            assert me(url, other).status_code == 404  # known, without an account
        system.replicas[0].publish((f"user:{who}", "t", "still there"))
        assert (await untouched.next("t")).data == "still there"


async def test_a_kick_ends_every_session_everywhere_until_the_next_sign_in(system: Deployment) -> None:
    account = {"email": f"kicked-{next(_numbers)}@example.org", "name": "K", "password": "correct horse battery"}
    registered = httpx.post(f"{system.url}/api/accounts", json=account).json()
    who, sessions = registered["account"]["id"], [registered["token"], token(registered["account"]["id"])]
    async with AsyncExitStack() as stack:
        held = [
            await stack.enter_async_context(await opened(url, session))
            for url, session in zip(system.urls, sessions, strict=True)
        ]
        unused = ticket(system.url, sessions[0])
        began = time.monotonic()
        kick(system.url, who)

        for last, ended_at in await asyncio.gather(*map(last_of, held)):
            assert last.data == {"reason": "kicked", "reconnect": False}
            assert ended_at - began < AT_ONCE_S
    for url, session in itertools.product(everywhere(system), sessions):
        assert_problem(me(url, session), 401, "kicked")
        assert refused_stream(url, session).status_code == 204
    assert httpx.get(f"{system.url}/events", params={"ticket": unused}).status_code == 204
    renewal = httpx.post(f"{system.url}/api/session/renew", headers=bearer(sessions[0]))
    assert_problem(renewal, 401, "kicked")

    again = httpx.post(f"{system.url}/api/session", json={k: account[k] for k in ("email", "password")})

    assert again.status_code == 200
    assert me(system.url, again.json()["token"]).status_code == 200
    (await opened(system.url, again.json()["token"])).abort()


async def test_a_kick_that_a_black_holed_replica_misses_ends_its_streams_with_the_repair(
    system: Deployment, who: str
) -> None:
    """Although the order has left history: the replica asks the ledger for all its streams."""
    held_by, other = system.replicas
    session = token(who)
    async with await opened(held_by.url, session) as stream:
        system.proxies[0].black_hole()
        kick(other.url, who)
        assert refused_stream(other.url, session).status_code == 204
        cut_off, by_nginx = await asyncio.gather(
            *(asyncio.to_thread(refused_stream, url, session) for url in (held_by.url, system.url))
        )
        assert_problem(cut_off, 503, "unavailable")
        assert by_nginx.status_code == 204  # whichever was asked first
        for number in range(HISTORY_EVENTS + 1):
            assert other.publish((f"user:{who}", "t", number)).status_code == 202
        ending = asyncio.create_task(last_of(stream))
        system.proxies[0].heal()
        await asyncio.to_thread(held_by.until_ready)
        ready_at = time.monotonic()

        last, ended_at = await ending
        assert last.data == {"reason": "kicked", "reconnect": False}
        assert ended_at - ready_at < PULSE_S
    assert refused_stream(held_by.url, session).status_code == 204


# One's own account --------------------------------------------------------------------------------------------

PASSWORD = "correct horse battery"


def registered(url: str) -> tuple[str, str, str]:
    """A new account: its email, its ID and the token of its first session."""
    account = {"email": f"own-{next(_numbers)}@example.org", "name": "O", "password": PASSWORD}
    answer = httpx.post(f"{url}/api/accounts", json=account)
    assert answer.status_code == 201, answer.text
    return account["email"], answer.json()["account"]["id"], answer.json()["token"]


def signed_in(url: str, email: str, password: str = PASSWORD) -> str:
    answer = httpx.post(f"{url}/api/session", json={"email": email, "password": password})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["token"])


def listed(url: str, session: str) -> dict[bool, list[str]]:
    """The IDs of the account's sessions; under True that of the one that asks."""
    found: dict[bool, list[str]] = {True: [], False: []}
    for item in httpx.get(f"{url}/api/accounts/me/sessions", headers=bearer(session)).json()["items"]:
        found[item["current"]].append(item["id"])
    return found


async def test_a_session_that_is_ended_from_the_list_ends_everywhere_within_a_second_and_no_other(
    system: Deployment,
) -> None:
    here, there = system.urls
    email, user, session = registered(there)
    own = signed_in(here, email)
    async with AsyncExitStack() as stack:
        ending = [await stack.enter_async_context(await opened(url, session)) for url in system.urls]
        kept = await stack.enter_async_context(await opened(there, own))
        [ended] = listed(here, own)[False]
        began = time.monotonic()
        answer = httpx.delete(f"{here}/api/accounts/me/sessions/{ended}", headers=bearer(own))
        assert answer.status_code == 204

        for last, ended_at in await asyncio.gather(*map(last_of, ending)):
            assert last.data == {"reason": "signed_out", "reconnect": False}
            assert ended_at - began < AT_ONCE_S
        for url in everywhere(system):
            assert_problem(me(url, session), 401, "signed_out")
            assert listed(url, own)[False] == []
        system.replicas[0].publish((f"user:{user}", "t", "still there"))
        assert (await kept.next("t")).data == "still there"


async def test_a_changed_password_ends_the_other_sessions_everywhere_within_a_second(system: Deployment) -> None:
    here, there = system.urls
    email, user, session = registered(there)
    own = signed_in(here, email)
    async with AsyncExitStack() as stack:
        ending = [await stack.enter_async_context(await opened(url, session)) for url in system.urls]
        kept = await stack.enter_async_context(await opened(there, own))
        began = time.monotonic()
        body = {"currentPassword": PASSWORD, "newPassword": "battery staple horse"}
        answer = httpx.post(f"{here}/api/accounts/me/password", json=body, headers=bearer(own))
        assert answer.status_code == 204

        for last, ended_at in await asyncio.gather(*map(last_of, ending)):
            assert last.data == {"reason": "signed_out", "reconnect": False}
            assert ended_at - began < AT_ONCE_S + PASSWORDS_S
        for url in everywhere(system):
            assert_problem(me(url, session), 401, "signed_out")
            assert me(url, own).status_code == 200
        system.replicas[0].publish((f"user:{user}", "t", "still there"))
        assert (await kept.next("t")).data == "still there"
    signed_in(there, email, "battery staple horse")


async def test_a_deleted_account_ends_everywhere_and_its_successor_sees_nothing_of_it(system: Deployment) -> None:
    here, there = system.urls
    email, user, session = registered(there)
    service = token(user)  # of another service that holds the key
    async with AsyncExitStack() as stack:
        ending = [
            await stack.enter_async_context(await opened(url, who))
            for url, who in ((here, session), (there, session), (there, service))
        ]
        unused = ticket(there, session)
        began = time.monotonic()
        answer = httpx.post(f"{here}/api/accounts/me/deletion", json={"password": PASSWORD}, headers=bearer(session))
        assert answer.status_code == 204, answer.text

        for last, ended_at in await asyncio.gather(*map(last_of, ending)):
            assert last.data == {"reason": "kicked", "reconnect": False}
            assert ended_at - began < AT_ONCE_S + PASSWORDS_S
    for url, who in itertools.product(everywhere(system), (session, service)):
        assert_problem(me(url, who), 401, "kicked")
    assert httpx.get(f"{there}/events", params={"ticket": unused}).status_code == 204
    assert system.replicas[1].publish((f"user:{user}", "t", "to nobody")).status_code == 202

    account = {"email": email, "name": "O", "password": PASSWORD}
    again = httpx.post(f"{there}/api/accounts", json=account).json()
    assert again["account"]["id"] != user
    assert refused_stream_of(there, again["token"], user) == 403
    async with await opened(there, again["token"], last_event_id="1-0") as stream:
        system.replicas[0].publish((f"user:{again['account']['id']}", "t", "to the new one"))
        assert (await stream.next("t")).data == "to the new one"


def refused_stream_of(url: str, who: str, user: str) -> int:
    return httpx.get(f"{url}/events", params={"topics": f"user:{user}"}, headers=bearer(who)).status_code


# Tickets over replicas ----------------------------------------------------------------------------------------


async def test_of_many_first_uses_of_a_ticket_on_all_replicas_one_opens(system: Deployment, who: str) -> None:
    pass_ = ticket(system.url, token(who))

    streams = await asyncio.gather(
        *(Reader.open(system.urls[number % 2], "", query=f"?ticket={pass_}") for number in range(10))
    )

    assert sorted(stream.status for stream in streams) == [200] + [401] * 9
    for stream in streams:
        stream.abort()


async def test_a_ticket_resumes_on_another_replica(system: Deployment, who: str) -> None:
    here, there = system.replicas
    pass_ = ticket(here.url, token(who, topics=["board"]), "board")
    async with await Reader.open(here.url, "", query=f"?ticket={pass_}") as stream:
        last = (await stream.next("stream.open")).id
    assert here.publish(("board", "t", 1), (f"user:{who}", "t", 2)).status_code == 202

    async with await Reader.open(there.url, "", query=f"?ticket={pass_}", last_event_id=last) as stream:
        assert (await stream.next("stream.open")).data["resume"] == "complete"
        assert [(await stream.next("t")).data for _ in range(2)] == [1, 2]


# Limits of streams --------------------------------------------------------------------------------------------


async def test_one_stream_too_many_of_a_user_ends_the_oldest_on_whatever_replica(
    system: Deployment, who: str
) -> None:
    before = refusals(system, "streams_per_user")
    here, there = system.urls
    async with AsyncExitStack() as stack:
        held = [await stack.enter_async_context(await opened(url, token(who))) for url in (here, there, there)]
        assert len(held) == STREAMS_PER_USER
        await stack.enter_async_context(await opened(there, token(f"{who}-other")))
        newest = await stack.enter_async_context(await opened(there, token(who)))

        last, _ = await last_of(held[0])

        assert last.data == {"reason": "replaced", "reconnect": False}
        system.replicas[0].publish((f"user:{who}", "t", "still there"))
        for stream in (*held[1:], newest):
            assert (await stream.next("t")).data == "still there"
    assert refusals(system, "streams_per_user") == before + 1


async def test_one_stream_too_many_of_an_address_is_refused(system: Deployment, who: str) -> None:
    one = system.replicas[0]
    before = refusals(system, "streams_per_address")
    async with AsyncExitStack() as stack:

        async def open_from(address: str, number: int) -> None:
            await stack.enter_async_context(await opened(one.url, token(f"{who}-{number}"), x_forwarded_for=address))

        for number in range(STREAMS_PER_ADDRESS):
            await open_from(f"2001:db8::{number}", number)  # one /64, as one subscriber has
        answer = httpx.get(f"{one.url}/events", headers={**bearer(token(who)), "x-forwarded-for": "2001:db8::ffff:1"})
        assert_problem(answer, 429, "too_many")
        assert int(answer.headers["retry-after"]) > 0
        await open_from("2001:db8:0:1::1", 98)
        await open_from("192.0.2.1", 99)
        for number in range(3):  # from this machine, past nginx: nobody's address
            await stack.enter_async_context(await opened(one.url, token(f"{who}-{number}")))
    assert refusals(system, "streams_per_address") == before + 1


async def test_through_nginx_the_clients_own_word_for_its_address_does_not_count(
    system: Deployment, who: str
) -> None:
    async with AsyncExitStack() as stack:

        async def one_more(number: int) -> int:
            stream = await Reader.open(
                system.url, token(f"{who}-{number}"), x_forwarded_for=f"192.0.2.{number}", forwarded="for=192.0.2.9"
            )
            stack.push_async_exit(stream)
            return stream.status

        statuses = [await one_more(number) for number in range(2 * STREAMS_PER_ADDRESS + 1)]

    assert statuses == [200] * (2 * STREAMS_PER_ADDRESS) + [429]  # each of two replicas counts for itself


async def test_a_full_replica_sends_streams_on_and_full_replicas_call_them_back_later(
    system: Deployment, who: str
) -> None:
    numbers = itertools.count()
    async with AsyncExitStack() as stack:

        async def fill(replica: Replica) -> None:
            for _ in range(STREAMS_PER_REPLICA):
                stream = await opened(replica.url, token(f"{who}-{next(numbers)}"))
                await stack.enter_async_context(stream)

        one, two = system.replicas
        await fill(one)
        assert_problem(refused_stream(one.url, token(who)), 503, "unavailable")
        for _ in range(3):  # nginx asks any of them first
            async with await Reader.open(system.url, token(who)) as stream:
                assert (await stream.next("stream.open")).data["replica"] == f"replica-{two.port}"
        await until(lambda: two.metric("allim_streams_open") == 0)
        await fill(two)

        nobody = refused_stream(system.url, token(who))

        assert (nobody.status_code, nobody.headers["content-type"]) == (200, "text/event-stream")
        assert nobody.text.startswith("retry: ")
    assert refusals(system, "streams_per_replica") > 1


# Limits of calls ----------------------------------------------------------------------------------------------


def alternate(system: Deployment, ask: Callable[[str], httpx.Response], count: int) -> list[httpx.Response]:
    """The answers of the replicas by turns."""
    return [ask(system.urls[number % 2]) for number in range(count)]


def until_over(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """The first refusal: on a busy machine, calls come back while others are made."""
    answer = ask()
    for _ in range(CALLS_PER_MIN):
        if answer.status_code == 429:
            break
        answer = ask()
    return answer


def assert_over(answer: httpx.Response, policy: str, limit: int, period_s: int) -> None:
    assert_problem(answer, 429, "too_many")
    assert answer.json()["retryable"] is True
    assert 1 <= int(answer.headers["retry-after"]) <= period_s
    assert f'"{policy}";q={limit};w={period_s}' in answer.headers["ratelimit-policy"]
    assert re.fullmatch(rf'(.*, )?"{policy}";r=\d+;t=\d+', answer.headers["ratelimit"])


async def test_a_users_calls_are_counted_over_all_replicas(system: Deployment, who: str) -> None:
    before = refusals(system, "user")
    session = token(who)

    answers = alternate(system, lambda url: me(url, session), CALLS_PER_MIN)
    over = until_over(lambda: me(system.urls[0], session))

    assert {answer.status_code for answer in answers} == {404}
    assert answers[0].headers["ratelimit"].startswith(f'"user";r={CALLS_PER_MIN - 1};t=')
    assert_over(over, "user", CALLS_PER_MIN, 60)
    assert_over(refused_stream(system.url, token(who)), "user", CALLS_PER_MIN, 60)  # of all their sessions
    assert me(system.url, token(f"{who}-other")).status_code == 404
    assert refusals(system, "user") == before + 2


async def test_a_publishers_events_are_counted_over_all_replicas_and_refused_ones_are_not_stored(
    system: Deployment, who: str
) -> None:
    before = refusals(system, "publish")
    batch = [{"topic": f"user:{who}", "type": "t", "data": number} for number in range(EVENTS_PER_S)]

    def publish(url: str, key: str = FIRST_KEY) -> httpx.Response:
        return httpx.post(f"{url}/api/publish", json=batch, headers=bearer(key))

    async with await opened(system.url, token(who)) as stream:
        accepted, refused = alternate(system, publish, 2)
        assert accepted.status_code == 202
        assert_over(refused, "publish", EVENTS_PER_S, 1)
        assert publish(system.url, SECOND_KEY).status_code == 202
        batch[:] = [{"topic": f"user:{who}", "type": "t", "data": "later"}]
        later = await until(lambda: _accepted(publish(system.url)), 3)
        assert later is not None
        assert "ratelimit" in later.headers

        heard = [(await stream.next("t")).data for _ in range(2 * EVENTS_PER_S + 1)]
    assert heard == [*range(EVENTS_PER_S), *range(EVENTS_PER_S), "later"]
    assert refusals(system, "publish") > before


def _accepted(answer: httpx.Response) -> httpx.Response | None:
    return answer if answer.status_code == 202 else None


async def test_tries_to_sign_in_are_counted_over_all_replicas_by_email_and_address(system: Deployment) -> None:
    before = refusals(system, "sign-in")
    account = {"email": f"tried-{next(_numbers)}@example.org", "password": "correct horse battery"}
    assert httpx.post(f"{system.url}/api/accounts", json={**account, "name": "T"}).status_code == 201

    def guess(url: str, email: str, password: str = "a guess", address: str = "192.0.2.1") -> httpx.Response:
        headers = {"x-forwarded-for": address}
        return httpx.post(f"{url}/api/session", json={"email": email, "password": password}, headers=headers)

    tries = alternate(system, lambda url: guess(url, account["email"]), TRIES_PER_MIN)
    over = guess(system.urls[0], account["email"].upper(), account["password"])

    assert {answer.status_code for answer in tries} == {401}
    assert_over(over, "sign-in", TRIES_PER_MIN, 60)
    elsewhere = guess(system.urls[0], account["email"], account["password"], "192.0.2.2")
    assert elsewhere.status_code == 200, "who guesses elsewhere has kept the owner out"
    assert refusals(system, "sign-in") == before + 1


# While Redis is away ------------------------------------------------------------------------------------------


async def test_while_redis_hangs_sessions_are_refused_soon_and_rates_are_counted_by_each_replica(
    system: Deployment, who: str
) -> None:
    one = system.replicas[0]
    session, guess = token(who), {"email": f"{who}@example.org", "password": "x"}
    async with await opened(one.url, session) as stream:
        system.redis.pause()
        try:
            async with httpx.AsyncClient(base_url=one.url, timeout=60) as http:
                began = time.monotonic()
                answers = await asyncio.gather(
                    *(http.get("/api/accounts/me", headers=bearer(session)) for _ in range(CALLS_PER_MIN + 5))
                )
                took_s = time.monotonic() - began
                guesses = await asyncio.gather(
                    *(http.post("/api/session", json=guess) for _ in range(TRIES_PER_MIN + 2))
                )
        finally:
            system.redis.resume()

        statuses = [answer.status_code for answer in answers]
        assert statuses.count(503) == CALLS_PER_MIN + 5
        assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
        assert took_s < LEDGER_PATIENCE_S + 1.5
        statuses = [answer.status_code for answer in guesses]
        assert (statuses.count(401), statuses.count(429)) == (TRIES_PER_MIN, 2)
        await until(lambda: me(one.url, token(f"{who}-later")).status_code == 404, 15)
        one.publish((f"user:{who}", "t", "still there"))
        assert (await stream.next("t")).data == "still there"
