"""Permission that an application gives: over a signed webhook, or by a function."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
from harness.servers import free_port
from harness.waiting import until
from structlog.testing import capture_logs

from allim.access.authorize import CACHE_CHARS, CACHE_ENTRIES, MAX_TTL_S, Webhook, signature
from allim.access.permission import Permission
from allim.errors import AuthorizeUnavailable, Forbidden
from allim.identity import Identity
from tests.access.issuers import Clock
from tests.access.shop import ODD_ANSWERS, SECRET, Shop, shop, verified

pytestmark = pytest.mark.anyio

MIN = Identity.of("auth0|min")


class Asking:
    """A webhook with what it counts and a clock of its own."""

    def __init__(self, url: str, timeout_s: float = 60) -> None:
        self.counted: Counter[str] = Counter()
        self.clock = Clock(1000)
        self.webhook = Webhook(
            url, SECRET, count=lambda outcome: self.counted.update([outcome]), now=self.clock, timeout_s=timeout_s
        )


@pytest.fixture
def app() -> Iterator[Shop]:
    with shop() as running:
        running.rooms = {"room:a": {MIN.subject, "42"}, "room:b": {MIN.subject}}
        yield running


@pytest.fixture
async def asking(app: Shop) -> AsyncIterator[Asking]:
    asking = Asking(app.url)
    yield asking
    await asking.webhook.close()


async def test_the_application_grants_of_the_asked_topics_those_that_it_names(app: Shop, asking: Asking) -> None:
    granted = await asking.webhook(MIN, ["room:b", "room:c", "room:a", "room:a"])

    assert granted == {"room:a", "room:b"}
    assert app.asked == [{"subject": "auth0|min", "topics": ["room:a", "room:b", "room:c"]}]


async def test_an_answer_is_good_for_as_long_as_it_says_and_for_the_same_question(app: Shop, asking: Asking) -> None:
    for _ in range(2):
        assert await asking.webhook(MIN, ["room:a", "room:b"]) == {"room:a", "room:b"}
        assert await asking.webhook(MIN, ["room:b", "room:a"]) == {"room:a", "room:b"}
    assert await asking.webhook(Identity.of("42"), ["room:a", "room:b"]) == {"room:a"}
    assert await asking.webhook(MIN, ["room:a"]) == {"room:a"}
    assert app.calls == 3

    app.rooms.clear()
    asking.clock.at += 29.9
    assert await asking.webhook(MIN, ["room:a"]) == {"room:a"}
    asking.clock.at += 0.1
    assert await asking.webhook(MIN, ["room:a"]) == set()
    assert asking.counted == {"answered": 4, "cached": 4}


@pytest.mark.parametrize(("ttl_s", "after_s", "calls"), [(0, 0, 2), (10**9, MAX_TTL_S - 1, 1), (10**9, MAX_TTL_S, 2)])
async def test_nothing_is_kept_without_a_time_and_nothing_for_ever(
    app: Shop, asking: Asking, ttl_s: int, after_s: float, calls: int
) -> None:
    app.ttl_s = ttl_s
    await asking.webhook(MIN, ["room:a"])
    asking.clock.at += after_s
    await asking.webhook(MIN, ["room:a"])

    assert app.calls == calls


async def test_a_refusal_is_remembered_as_a_grant_is(app: Shop, asking: Asking) -> None:
    assert await asking.webhook(MIN, ["room:x"]) == set()
    assert await asking.webhook(MIN, ["room:x"]) == set()
    assert app.calls == 1


async def test_what_is_remembered_has_a_bound(asking: Asking) -> None:
    for number in range(CACHE_ENTRIES + 5):
        asking.webhook._remember((str(number), ("a",)), frozenset(), 60)

    assert len(asking.webhook._known) == CACHE_ENTRIES
    assert ("5", ("a",)) in asking.webhook._known
    assert ("4", ("a",)) not in asking.webhook._known


async def test_long_questions_are_remembered_up_to_so_many_characters(asking: Asking) -> None:
    topics = tuple(f"room:{number:03}".ljust(1000, "x") for number in range(100))
    most = CACHE_CHARS // 100_000
    for number in range(most + 2):
        asking.webhook._remember((str(number), topics), frozenset(), 60)
        asking.webhook._remember((str(number), topics), frozenset(), 60)  # the same again counts once

    assert [subject for subject, _ in asking.webhook._known] == [str(number) for number in range(2, most + 2)]


async def test_the_same_question_is_asked_once_at_a_time(app: Shop, asking: Asking) -> None:
    app.go_on.clear()
    questions = [asyncio.create_task(asking.webhook(MIN, ["room:a"])) for _ in range(50)]
    await until(lambda: app.calls == 1)
    questions[0].cancel()  # one that leaves leaves the others their answer
    app.go_on.set()

    answers = await asyncio.gather(*questions, return_exceptions=True)

    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == [frozenset({"room:a"})] * 49
    assert app.calls == 1


@pytest.mark.parametrize("odd", ODD_ANSWERS)
async def test_an_answer_that_cannot_be_used_is_a_named_fault_and_is_not_remembered(
    app: Shop, asking: Asking, odd: str
) -> None:
    app.answer = ODD_ANSWERS[odd]
    with capture_logs() as logs, pytest.raises(AuthorizeUnavailable, match="cannot be used") as refusal:
        await asking.webhook(MIN, ["room:a"])

    assert (refusal.value.code, refusal.value.retryable) == ("authorize_unavailable", True)
    assert asking.counted == {"bad_answer": 1}
    assert [(line["event"], line["outcome"]) for line in logs] == [("authorize not answered", "bad_answer")]
    app.answer = None
    assert await asking.webhook(MIN, ["room:a"]) == {"room:a"}


async def test_an_application_that_does_not_trust_the_signature_is_a_named_fault(app: Shop, asking: Asking) -> None:
    app.secret = "another secret" * 3
    with pytest.raises(AuthorizeUnavailable, match="cannot be used"):
        await asking.webhook(MIN, ["room:a"])

    assert asking.webhook.failure == "HTTP status 401"
    assert app.asked == []


async def test_one_that_is_slow_or_down_is_a_named_fault(app: Shop) -> None:
    app.go_on.clear()
    slow, down = Asking(app.url, timeout_s=0.2), Asking(f"http://127.0.0.1:{free_port()}/authorize")
    with pytest.raises(AuthorizeUnavailable, match="in time"):
        await slow.webhook(MIN, ["room:a"])
    with pytest.raises(AuthorizeUnavailable, match="be reached"):
        await down.webhook(MIN, ["room:a"])

    assert (slow.counted, down.counted) == ({"timeout": 1}, {"unreachable": 1})
    app.go_on.set()
    for asking in (slow, down):
        await asking.webhook.close()


async def test_a_flood_of_faults_is_a_line_a_second(asking: Asking, app: Shop) -> None:
    app.answer = ODD_ANSWERS["error"]
    with capture_logs() as logs:
        for number in range(5):
            with pytest.raises(AuthorizeUnavailable):
                await asking.webhook(MIN, [f"room:{number}"])
        asking.clock.at += 1
        with pytest.raises(AuthorizeUnavailable):
            await asking.webhook(MIN, ["room:a"])

    assert [line["error"] for line in logs] == ["HTTP status 500"] * 2


def test_a_signature_is_of_the_time_and_the_body() -> None:
    body = b'{"subject":"42","topics":["room:a"]}'

    told = signature("k" * 32, body, 1_700_000_000)

    assert told == "t=1700000000,v1=434c2c3826b840237a3cf2ef5b46d6e0f7d45c15dd722fe6b75a4fc07f6b5ec9"
    assert not verified("k" * 32, told, body)  # too old
    assert told.partition("v1=")[2] != signature("k" * 32, body, 1_700_000_001).partition("v1=")[2]


# Permission over it -------------------------------------------------------------------------------------------------


async def test_only_what_neither_token_nor_rule_grants_is_asked_and_all_of_it_at_once() -> None:
    asked: list[tuple[str, list[str]]] = []

    def authorize(identity: Identity, topics: list[str]) -> list[str]:
        asked.append((identity.subject, topics))
        return ["room:a", "room:b", "room:extra"]

    async def board(identity: Identity, key: str) -> bool:
        return key == "open"

    permission = Permission({"board": board}, authorize)  # type: ignore[arg-type]
    identity = Identity.of("42", topics=["news:*"])

    await permission.require(identity, ["user:42", "system", "news:1", "board:open"])
    assert asked == []
    await permission.require(identity, ["news:1", "room:a", "board:open", "room:b"])
    with pytest.raises(Forbidden):
        await permission.require(identity, ["room:a", "room:extra", "board:shut"])

    assert asked == [("42", ["room:a", "room:b"]), ("42", ["room:a", "room:extra", "board:shut"])]


async def test_the_function_may_be_a_coroutine_and_nothing_granted_is_nothing() -> None:
    async def authorize(identity: Identity, topics: object) -> tuple[str, ...]:
        return ()

    with pytest.raises(Forbidden, match="topics"):
        await Permission({}, authorize).require(MIN, ["room:a"])
    await Permission({}, authorize).require(MIN, [])
