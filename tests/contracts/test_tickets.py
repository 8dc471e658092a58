"""What a ticket opens, and what it does not: by handover, the portable way, and mounted."""

import asyncio
import itertools
import re
import time

import httpx
import pytest
from harness.replicas import SECRET, Reader, Replica, bearer, ticket, token
from harness.streams import identity
from harness.waiting import until

from allim.access.tickets import Tickets
from tests.http.apps import assert_problem

pytestmark = pytest.mark.anyio

_numbers = itertools.count(1)
_PROOF = re.compile(r"\d+-\d+~[A-Za-z0-9_-]{22}")


@pytest.fixture
def who() -> str:
    """A user nobody else is."""
    return f"ticket-{next(_numbers)}"


async def opened(server: Replica, pass_: str, last_event_id: str | None = None) -> Reader:
    """The stream of a ticket, as a browser asks for it: nothing but the URL and what it read last."""
    return await Reader.open(server.url, "", query=f"?ticket={pass_}", last_event_id=last_event_id)


async def read_and_left(server: Replica, pass_: str) -> str:
    """Spend the ticket; the last event ID of its stream."""
    async with await opened(server, pass_) as stream:
        assert stream.status == 200
        return (await stream.next("stream.open")).id


def refused(server: Replica, query: str, **headers: str) -> httpx.Response:
    """The refusal of a stream."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with httpx.stream("GET", f"{server.url}/events?{query}", headers=named) as answer:
        assert answer.status_code != 200, "it opened"
        answer.read()
    return answer


def kick(server: Replica, user: str) -> None:
    operator = bearer(token("operator", role="operator"))
    assert httpx.delete(f"{server.url}/api/users/{user}/streams", headers=operator).status_code == 204


# What it opens ------------------------------------------------------------------------------------------------


async def test_it_opens_a_stream_of_exactly_its_topics_and_the_users_own(server: Replica, who: str) -> None:
    pass_ = ticket(server.url, token(who, topics=["news:*", "board"]), "news:a")

    async with await opened(server, pass_) as stream:
        assert (stream.status, stream.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
        await stream.next("stream.open")
        server.publish(("news:b", "t", "not in it"), ("board", "t", "not in it"), ("user:8", "t", "not theirs"))
        server.publish(("news:a", "t", 1), ("system", "t", 2), (f"user:{who}", "t", 3))

        assert [(await stream.next("t")).data for _ in range(3)] == [1, 2, 3]


async def test_it_is_good_once(server: Replica, who: str) -> None:
    pass_ = ticket(server.url, token(who))
    await read_and_left(server, pass_)

    again = refused(server, f"ticket={pass_}")

    assert_problem(again, 401, "unauthenticated")
    assert "used before" in again.json()["detail"]


async def test_it_wins_over_a_token(server: Replica, who: str) -> None:
    pass_ = ticket(server.url, token(who))

    async with await Reader.open(server.url, token("somebody-else"), query=f"?ticket={pass_}") as stream:
        await stream.next("stream.open")
        server.publish(("user:somebody-else", "t", "theirs"), (f"user:{who}", "t", "mine"))

        assert (await stream.next("t")).data == "mine"


async def test_of_many_first_uses_at_once_one_opens(server: Replica, who: str) -> None:
    pass_ = ticket(server.url, token(who))

    streams = await asyncio.gather(*(opened(server, pass_) for _ in range(10)))

    assert sorted(stream.status for stream in streams) == [200] + [401] * 9
    for stream in streams:
        stream.abort()


async def test_it_may_begin_where_an_earlier_stream_ended(server: Replica, who: str) -> None:
    async with await Reader.open(server.url, token(who)) as stream:
        last = (await stream.next("stream.open")).id
    server.publish((f"user:{who}", "t", "missed"))

    query = f"?ticket={ticket(server.url, token(who))}&last_event_id={last}"
    async with await Reader.open(server.url, "", query=query) as stream:
        assert (await stream.next("stream.open")).data["resume"] == "complete"
        assert (await stream.next("t")).data == "missed"


# Its proof ----------------------------------------------------------------------------------------------------


async def test_with_the_last_event_id_it_resumes_with_exactly_what_was_missed_again_and_again(
    server: Replica, who: str
) -> None:
    pass_ = ticket(server.url, token(who, topics=["news:*"]), "news:a")
    last = await read_and_left(server, pass_)

    for round_ in range(3):
        server.publish((f"user:{who}", "t", [round_, 1]), ("news:b", "t", "not in it"), ("news:a", "t", [round_, 2]))
        async with await opened(server, pass_, last) as stream:
            opening = (await stream.next()).data
            assert (opening["resume"], opening["replayed"]) == ("complete", 2)
            assert [(await stream.next()).data for _ in range(2)] == [[round_, 1], [round_, 2]]
            server.publish((f"user:{who}", "t", "live"))
            last = (await stream.next("t")).id


async def test_a_heartbeats_id_resumes_as_well(server: Replica, who: str) -> None:
    pass_ = ticket(server.url, token(who))
    async with await opened(server, pass_) as stream:
        last = (await stream.next("heartbeat")).id
    server.publish((f"user:{who}", "t", "missed"))

    async with await opened(server, pass_, last) as stream:
        assert (await stream.next("stream.open")).data["resume"] == "complete"
        assert (await stream.next("t")).data == "missed"


async def test_every_id_on_its_stream_carries_its_proof_and_no_other_streams_do(server: Replica, who: str) -> None:
    first, second = (ticket(server.url, token(who)) for _ in range(2))
    last = await read_and_left(server, first)
    server.publish(*((f"user:{who}", "t", f"id: {number}-0\nid: x") for number in range(3)))
    async with (
        await opened(server, first, last) as resumed,
        await opened(server, second) as other,
        await Reader.open(server.url, token(who)) as plain,
    ):
        await other.next("stream.open")
        await plain.next("stream.open")
        assert [(await resumed.next("t")).data for _ in range(3)] == [f"id: {n}-0\nid: x" for n in range(3)]
        server.publish((f"user:{who}", "t", "live"))
        for stream in (resumed, other, plain):
            await stream.next("t")
            await stream.next("heartbeat")
        ids = [re.findall(r"^id: (.+)$", bytes(s.raw).decode(), re.MULTILINE) for s in (resumed, other, plain)]

    assert all(_PROOF.fullmatch(id_) for id_ in ids[0] + ids[1])
    proofs = [{id_.partition("~")[2] for id_ in found} for found in ids]
    assert (len(proofs[0]), len(proofs[1]), proofs[2]) == (1, 1, {""})
    assert proofs[0] != proofs[1]
    assert [len(found) >= least for found, least in zip(ids, (6, 3, 3), strict=True)] == [True] * 3


async def test_the_proof_outlives_the_ticket_and_not_the_other_way_round(server: Replica, who: str) -> None:
    who_is = identity(who, expires_at=time.time() + 60, issued_at=time.time())
    pass_ = Tickets([SECRET], lifetime_s=1).issue(who_is, [])
    last = await read_and_left(server, pass_)

    def expired() -> bool:
        return "expired" in refused(server, f"ticket={pass_}").json()["detail"]

    await until(expired)

    async with await opened(server, pass_, last) as stream:
        assert (await stream.next("stream.open")).data["resume"] == "complete"


@pytest.mark.parametrize("wrong", ["none", "empty", "made up", "of another ticket", "cut", "in the query"])
async def test_without_its_own_proof_in_the_header_it_stays_spent(server: Replica, who: str, wrong: str) -> None:
    pass_, other = (ticket(server.url, token(who)) for _ in range(2))
    last, last_of_other = await read_and_left(server, pass_), await read_and_left(server, other)
    position = last.partition("~")[0]
    query, header = {
        "none": ("", position),
        "empty": ("", f"{position}~"),
        "made up": ("", f"{position}~{'A' * 22}"),
        "of another ticket": ("", last_of_other),
        "cut": ("", last[:-1]),
        "in the query": (f"&last_event_id={last}", ""),
    }[wrong]

    answer = refused(server, f"ticket={pass_}{query}", **({"last_event_id": header} if header else {}))

    assert_problem(answer, 401, "unauthenticated")


# What it does not open ----------------------------------------------------------------------------------------


async def test_an_expired_one_is_refused_by_that_name(server: Replica, who: str) -> None:
    expired = Tickets([SECRET], lifetime_s=-1).issue(identity(who), [])

    answer = refused(server, f"ticket={expired}")

    assert_problem(answer, 401, "unauthenticated")
    assert "ticket has expired" in answer.json()["detail"]


@pytest.mark.parametrize("bad", ["", "nonsense", "a.b.c", "x" * 7000])
async def test_what_is_no_ticket_is_refused_although_the_cookie_is_good(server: Replica, bad: str) -> None:
    assert_problem(refused(server, f"ticket={bad}", cookie=f"allim_session={token()}"), 401, "unauthenticated")


async def test_a_ticket_is_no_token_and_a_token_no_ticket(server: Replica, who: str) -> None:
    session = token(who)
    pass_ = ticket(server.url, session)

    for path in ("events", "api/accounts/me"):
        assert_problem(httpx.get(f"{server.url}/{path}", headers=bearer(pass_)), 401, "unauthenticated")
    assert_problem(httpx.post(f"{server.url}/api/tickets", headers=bearer(pass_)), 401, "unauthenticated")
    assert_problem(refused(server, f"ticket={session}"), 401, "unauthenticated")


async def test_it_names_its_topics_and_the_url_no_others(server: Replica, who: str) -> None:
    pass_ = ticket(server.url, token(who, topics=["board"]), "board")

    assert_problem(refused(server, f"ticket={pass_}&topics=board"), 422, "invalid", "topics")
    await read_and_left(server, pass_)  # the refusal has not spent it


@pytest.mark.parametrize("topic", ["user:43", "board", "nosuch:1"])
async def test_none_is_issued_for_a_topic_that_is_not_theirs(server: Replica, who: str, topic: str) -> None:
    answer = httpx.post(f"{server.url}/api/tickets", json={"topics": ["system", topic]}, headers=bearer(token(who)))

    assert_problem(answer, 403, "forbidden", "topics")


async def test_one_that_was_issued_for_what_is_not_theirs_any_more_is_refused(server: Replica, who: str) -> None:
    pass_ = Tickets([SECRET], lifetime_s=30).issue(identity(who), ["board"])  # granted by a rule that has changed

    assert_problem(refused(server, f"ticket={pass_}"), 403, "forbidden", "topics")


# Its end ------------------------------------------------------------------------------------------------------


async def test_its_stream_ends_with_the_sign_out_and_is_not_resumed(server: Replica, who: str) -> None:
    session = token(who)
    pass_ = ticket(server.url, session)
    last = await read_and_left(server, pass_)
    async with await opened(server, pass_, last) as stream:
        await stream.next("stream.open")
        httpx.delete(f"{server.url}/api/session", headers=bearer(session))

        assert (await stream.rest())[-1].data == {"reason": "signed_out", "reconnect": False}

    assert_problem(refused(server, f"ticket={pass_}", last_event_id=last), 401, "signed_out")


async def test_its_stream_ends_with_a_kick_and_the_browser_does_not_come_back(server: Replica, who: str) -> None:
    pass_, unused = (ticket(server.url, token(who)) for _ in range(2))
    last = await read_and_left(server, pass_)
    async with await opened(server, pass_, last) as stream:
        await stream.next("stream.open")
        kick(server, who)

        assert (await stream.rest())[-1].data == {"reason": "kicked", "reconnect": False}

    for answer in (refused(server, f"ticket={pass_}", last_event_id=last), refused(server, f"ticket={unused}")):
        assert (answer.status_code, answer.content) == (204, b"")


async def test_its_stream_ends_with_the_session_it_was_issued_to(server: Replica, who: str) -> None:
    session = token(who, lifetime_s=2)
    pass_ = ticket(server.url, session)
    last = await read_and_left(server, pass_)
    async with await opened(server, pass_, last) as stream:
        assert (await stream.rest())[-1].data == {"reason": "token_expired", "reconnect": False}

    await until(lambda: httpx.get(f"{server.url}/api/accounts/me", headers=bearer(session)).status_code == 401)
    assert_problem(refused(server, f"ticket={pass_}", last_event_id=last), 401, "unauthenticated")


async def test_no_log_line_holds_a_ticket_or_a_proof(server: Replica, who: str) -> None:
    pass_ = ticket(server.url, token(who))
    last = await read_and_left(server, pass_)
    (await opened(server, pass_, last)).abort()
    for answer in (
        refused(server, f"ticket={pass_}"),
        refused(server, f"ticket={pass_}&topics=No%20Topic", last_event_id=last),
        refused(server, f"ticket={pass_}&{pass_}=1"),
    ):
        assert answer.status_code >= 400
        assert not any(secret in answer.text for secret in (pass_, last.partition("~")[2]))

    logged = server.log.read_text()
    assert who in logged
    assert not any(secret in logged for secret in (pass_, pass_.rpartition(".")[2], last.partition("~")[2]))
