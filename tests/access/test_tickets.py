"""Tickets by themselves: what is in them, who is let in by them, and how they are asked for."""

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey
from starlette.requests import HTTPConnection

from allim.access.permission import Permission
from allim.access.tickets import MAX_CHARS, Tickets
from allim.errors import Invalid, Unauthenticated
from allim.http import ticket_routes
from allim.hub import MAX_TOPICS
from allim.identity import Identity, Visitor
from tests.access.gates import SECRET, TOKENS, gate_of
from tests.access.issuers import Clock
from tests.http.apps import assert_problem, client_of

pytestmark = pytest.mark.anyio

OLD = "the secret key before this one and still believed"
NOW = 1_000_000.0
LIFETIME_S = 30
WHO = Identity("42", "s1", NOW + 3600, ("board", "news:*"), role="operator", issued_at=NOW - 10)


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def tickets(clock: Clock) -> Tickets:
    return Tickets([SECRET], LIFETIME_S, clock)


def connection(last_event_id: str | None = None) -> HTTPConnection:
    headers = [] if last_event_id is None else [(b"last-event-id", last_event_id.encode())]
    return HTTPConnection({"type": "http", "headers": headers})


def visit(tickets: Tickets, ticket: str, last_event_id: str | None = None) -> Visitor:
    return tickets.visitor(ticket, connection(last_event_id))


async def test_it_speaks_for_its_holder_and_grants_no_more_than_it_names(tickets: Tickets) -> None:
    visitor = visit(tickets, tickets.issue(WHO, ["news:a", "room:7"]))

    assert visitor.identity == Identity("42", "s1", NOW + 3600, ("news:a",), "operator", NOW - 10)
    assert visitor.topics == ("news:a", "room:7")
    assert visitor.ticket is not None
    assert LIFETIME_S <= visitor.ticket.keep_s <= LIFETIME_S + 2


@pytest.mark.parametrize("issuer", ["allim", "https://shop.test", ""])
async def test_it_names_the_issuer_of_its_holder(tickets: Tickets, issuer: str) -> None:
    holder = WHO._replace(issuer=issuer)

    assert visit(tickets, tickets.issue(holder, [])).identity.issuer == issuer


async def test_replicas_whose_clocks_differ_judge_a_ticket_by_the_one_they_share(clock: Clock) -> None:
    ahead, behind = (Tickets([SECRET], LIFETIME_S, Clock(NOW + off_s), shared_now=clock) for off_s in (90, -90))

    for issuer, reader in ((ahead, behind), (behind, ahead)):
        ticket = issuer.issue(WHO._replace(after_kick=5.5), [])
        visitor = visit(reader, ticket)
        assert visitor.ticket is not None
        assert (visitor.ticket.keep_s, visitor.identity.after_kick) == (LIFETIME_S + 1, 5.5)
    clock.at += LIFETIME_S
    with pytest.raises(Unauthenticated, match="ticket has expired"):
        visit(behind, ticket)


async def test_each_has_an_id_and_a_proof_of_its_own(tickets: Tickets) -> None:
    first, second = (visit(tickets, tickets.issue(WHO, [])) for _ in range(2))

    assert first.ticket is not None
    assert second.ticket is not None
    assert first.ticket.id != second.ticket.id
    assert first.proof != second.proof
    assert len(first.proof) == 22


async def test_it_is_remembered_as_spent_for_as_long_as_it_would_be_good(tickets: Tickets, clock: Clock) -> None:
    ticket = tickets.issue(WHO, [])
    clock.at += LIFETIME_S - 0.1

    spent = visit(tickets, ticket).ticket

    assert spent is not None
    assert spent.keep_s > 0.1


async def test_it_expires(tickets: Tickets, clock: Clock) -> None:
    ticket = tickets.issue(WHO, [])
    clock.at += LIFETIME_S

    with pytest.raises(Unauthenticated, match="ticket has expired"):
        visit(tickets, ticket)


async def test_its_proof_resumes_until_the_session_ends_and_spends_nothing(tickets: Tickets, clock: Clock) -> None:
    ticket = tickets.issue(WHO, ["board"])
    proof = visit(tickets, ticket).proof
    clock.at += 3599

    visitor = visit(tickets, ticket, f"5-0~{proof}")

    assert (visitor.ticket, visitor.proof, visitor.topics) == (None, proof, ("board",))
    clock.at += 1
    with pytest.raises(Unauthenticated, match="session has expired"):
        visit(tickets, ticket, f"5-0~{proof}")


async def test_a_wrong_proof_is_none(tickets: Tickets) -> None:
    ticket, other = (tickets.issue(WHO, []) for _ in range(2))
    proof, proof_of_other = visit(tickets, ticket).proof, visit(tickets, other).proof

    for sent in (
        "",
        "5-0",
        "5-0~",
        f"5-0~{proof_of_other}",
        f"5-0~{proof}x",
        f"5-0~{proof[:-1]}",
        f"~~{proof}",
        "~é",
    ):
        assert visit(tickets, ticket, sent).ticket is not None, sent


async def test_keys_may_be_replaced_without_a_pause(clock: Clock) -> None:
    old = Tickets([OLD], LIFETIME_S, clock)
    both, new = Tickets([SECRET, OLD], LIFETIME_S, clock), Tickets([SECRET], LIFETIME_S, clock)
    ticket = old.issue(WHO, [])
    proof = visit(old, ticket).proof

    assert visit(both, ticket).proof == proof
    assert visit(both, ticket, f"5-0~{proof}").ticket is None
    assert visit(new, both.issue(WHO, [])).identity.subject == "42"
    with pytest.raises(Unauthenticated):
        visit(new, ticket)


async def test_what_is_signed_otherwise_is_no_ticket(tickets: Tickets) -> None:
    claims = {
        "jti": "1",
        "sub": "42",
        "sid": "s1",
        "iat": 0,
        "exp": NOW + 9,
        "until": NOW + 9,
        "topics": [],
        "grants": [],
    }
    by_the_secret_itself = jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(SECRET))
    good = tickets.issue(WHO, [])
    head, payload, _ = good.split(".")

    for bad in (by_the_secret_itself, TOKENS.issue("42"), f"{head}.{payload}.", good + "x" * MAX_CHARS, "", "é", "."):
        with pytest.raises(Unauthenticated, match="ticket is not valid"):
            visit(tickets, bad)


async def test_topics_that_no_url_can_hold_are_refused(tickets: Tickets) -> None:
    long = [f"room:{number:0128}" for number in range(MAX_TOPICS)]

    with pytest.raises(Invalid) as refused:
        tickets.issue(WHO, long)

    assert [field.field for field in refused.value.fields] == ["topics"]
    assert len(tickets.issue(WHO, long[:25])) <= MAX_CHARS


# The route ----------------------------------------------------------------------------------------------------

client = client_of(ticket_routes.routes(gate_of(), Tickets([SECRET], LIFETIME_S), Permission({})))
BEARER = {"authorization": f"Bearer {TOKENS.issue('42', topics=['board', 'news:*'])}"}


@pytest.mark.parametrize("body", [None, {}, {"topics": []}, {"topics": ["news:b", "board", "news:b"]}])
async def test_it_is_issued_with_the_topics_asked_for_each_once(body: dict[str, list[str]] | None) -> None:
    answer = await client.post("/api/tickets", headers=BEARER, json=body)

    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json().keys() == {"ticket", "expiresInS"}
    assert answer.json()["expiresInS"] == LIFETIME_S
    visitor = visit(Tickets([SECRET], LIFETIME_S), answer.json()["ticket"])
    assert visitor.identity.subject == "42"
    assert visitor.topics == (("news:b", "board") if body and body.get("topics") else ())


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"topics": ["board", "No Topic"]}, "topics[1]"),
        ({"topics": ["board"] * (MAX_TOPICS + 1)}, "topics"),
        ({"topics": "board"}, "topics"),
        ({"topics": [7]}, "topics[0]"),
        ({"topic": []}, "topic"),
    ],
)
async def test_malformed_topics_are_named(body: dict[str, object], field: str) -> None:
    assert_problem(await client.post("/api/tickets", headers=BEARER, json=body), 422, "invalid", field)


async def test_only_who_is_signed_in_gets_one() -> None:
    assert_problem(await client.post("/api/tickets"), 401, "unauthenticated")


@pytest.mark.parametrize("topic", ["user:43", "nosuch", "boards"])
async def test_none_is_issued_for_a_topic_that_is_not_theirs(topic: str) -> None:
    answer = await client.post("/api/tickets", headers=BEARER, json={"topics": ["board", topic]})

    assert_problem(answer, 403, "forbidden", "topics")
