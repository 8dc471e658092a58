import asyncio
import re
from collections.abc import Mapping, Sequence

import pytest
from harness.waiting import until
from starlette.requests import Request

from allim.access import publishers as module
from allim.access.publishers import (
    ALL,
    CACHE_S,
    LOOKUPS_AT_ONCE,
    Publisher,
    Publishers,
    SettingsKeys,
    digest_of,
    new_secret,
    read_grants,
)
from allim.errors import Unauthenticated, Unavailable
from tests.domains.fakes import Clock

pytestmark = pytest.mark.anyio

SHOP = Publisher("shop", ("user:*", "news"), ("orders.*",))
DIGEST = digest_of(b"s3cret").hex()


class Store:
    """Knows publishers by their secrets, and notes what it is asked; it answers while `open` is set."""

    def __init__(self, **known: Publisher) -> None:
        self.known = {digest_of(secret.encode()): publisher for secret, publisher in known.items()}
        self.asked: list[bytes] = []
        self.at_once = 0
        self.most_at_once = 0
        self.is_down = False
        self.open = asyncio.Event()
        self.open.set()

    async def publisher(self, digest: bytes) -> Publisher | None:
        self.asked.append(digest)
        found = self.known.get(digest)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.open.wait()
        finally:
            self.at_once -= 1
        if self.is_down:
            raise Unavailable("The database does not answer.")
        return found


def settings_keys(entries: Sequence[str] = (), grants: Mapping[str, Publisher] | None = None) -> SettingsKeys:
    return SettingsKeys(entries, grants or {})


def bringing(secret: str) -> Request:
    return request(authorization=f"Bearer {secret}")


def request(**headers: str) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw})


async def test_publishers_are_known_by_their_keys() -> None:
    publishers = Publishers(settings_keys(["billing:s3cret", "bare", "billing:next:with:colons", "shop:schlüssel"]))

    assert await publishers.publisher_of(bringing("s3cret")) == Publisher("billing", ALL, ALL)
    assert (await publishers.publisher_of(bringing("next:with:colons"))).name == "billing"
    assert (await publishers.publisher_of(bringing("schlüssel"))).name == "shop"
    assert (await publishers.publisher_of(bringing("bare"))).name == digest_of(b"bare").hex()[:8]


@pytest.mark.parametrize("digest", [DIGEST, DIGEST.upper()])
async def test_settings_may_hold_the_digest_instead_of_the_secret(digest: str) -> None:
    publishers = Publishers(settings_keys([f"billing:sha256:{digest}"]))

    assert (await publishers.publisher_of(bringing("s3cret"))).name == "billing"
    for wrong in (digest, f"sha256:{digest}"):
        with pytest.raises(Unauthenticated):
            await publishers.publisher_of(bringing(wrong))


async def test_a_refusal_has_the_same_words_whatever_is_wrong() -> None:
    publishers = Publishers(settings_keys(["shop:s3cret"]), Store().publisher)
    requests = [
        request(),
        request(cookie="allim_session=s3cret"),
        request(authorization="s3cret"),
        request(authorization="Basic s3cret"),
        *map(bringing, ["", " ", "S3cret", "shop:s3cret", "ak_short", new_secret(), "a.b.c", "ü"]),
        bringing("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1MSJ9.c2lnbmF0dXJl"),
    ]

    words = set()
    for asked in requests:
        with pytest.raises(Unauthenticated) as refusal:
            await publishers.publisher_of(asked)
        words.add(str(refusal.value))

    assert len(words) == 1


@pytest.mark.parametrize(
    "entries",
    [
        ["name:"],
        [":hunter2"],
        [""],
        ["bad name:hunter2"],
        ["a:hunter2", "b:hunter2"],
        ["a:hunter2", f"b:sha256:{digest_of(b'hunter2').hex()}"],
        ["a:sha256:hunter2"],
        [f"a:sha256:{DIGEST}0"],
        [f"a:SHA256:{DIGEST[:-1]}ü"],
        [f"sha256:{DIGEST}"],
        [f"a:sha256:{digest_of(b'').hex()}"],
    ],
)
def test_odd_keys_are_refused_without_repeating_them(entries: list[str]) -> None:
    with pytest.raises(ValueError, match="publish key") as refusal:
        settings_keys(entries)

    assert "hunter2" not in str(refusal.value)
    assert DIGEST[:8] not in str(refusal.value)


def test_grants_are_read_by_name() -> None:
    assert read_grants(["shop=user:*|news;orders.*", "audit=*"]) == {
        "shop": SHOP,
        "audit": Publisher("audit", ALL, ALL),
    }


async def test_a_name_has_its_grants_with_each_of_its_keys_and_others_may_publish_everything() -> None:
    publishers = Publishers(settings_keys(["shop:one", "shop:two", "audit:three"], {"shop": SHOP}))

    assert await publishers.publisher_of(bringing("one")) == SHOP
    assert await publishers.publisher_of(bringing("two")) == SHOP
    assert await publishers.publisher_of(bringing("three")) == Publisher("audit", ALL, ALL)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "hunter2",
        "hunter2=",
        "=user:*",
        "bad name=user:*",
        "shop=;orders.*",
        "shop=user:*;",
        "shop=user:*|",
        "shop=user:*;;",
        "shop=User:*",
        "shop=user*",
        "shop=user:a*",
        "shop=user:",
        "shop=user:*:*",
        "shop=user:1\n",
        "shop=**",
        "shop=*;orders*",
        "shop=*;.*",
        "shop=*;orders.*.x",
        "shop=*;Orders",
        "shop=" + "a" * 65,
        "shop=*;" + "a" * 129,
        "hunter2:shop=user:*",
    ],
)
def test_odd_grants_are_refused_by_number_without_repeating_them(entry: str) -> None:
    with pytest.raises(ValueError, match=r"\Aentry 2 must look like") as refusal:
        read_grants(["audit=*", entry])

    assert "hunter2" not in str(refusal.value)


def test_a_second_grant_for_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="entry 3"):
        read_grants(["shop=a", "audit=b", "shop=c"])


def test_a_grant_for_a_name_without_key_is_refused_without_repeating_it() -> None:
    with pytest.raises(ValueError, match="entry 2 of ALLIM_PUBLISH_GRANTS") as refusal:
        settings_keys(["shop:s3cret", "hunter2"], read_grants(["shop=a", "hunter2=b"]))

    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("topics", "types", "topic", "type_", "allowed"),
    [
        (["*"], ["*"], "user:1", "orders.shipped", True),
        (["user:*"], ["*"], "user:1", "t", True),
        (["user:*"], ["*"], "user", "t", False),
        (["user:*"], ["*"], "users:1", "t", False),
        (["user:*"], ["*"], "user_x:1", "t", False),
        (["user:1"], ["*"], "user:1", "t", True),
        (["user:1"], ["*"], "user:12", "t", False),
        (["user"], ["*"], "user:1", "t", False),
        (["news", "user:*"], ["*"], "news", "t", True),
        (["*"], ["orders.*"], "a", "orders.shipped", True),
        (["*"], ["orders.*"], "a", "orders.eu.shipped", True),
        (["*"], ["orders.*"], "a", "orders", False),
        (["*"], ["orders.*"], "a", "orders_x.shipped", False),
        (["*"], ["orders"], "a", "orders.shipped", False),
        (["user:*"], ["orders.*"], "user:1", "billing.paid", False),
        (["user:*"], ["orders.*"], "news", "orders.shipped", False),
        ([], ["*"], "a", "t", False),
        (["*"], [], "a", "t", False),
    ],
)
def test_topic_and_type_must_both_be_granted(
    topics: list[str], types: list[str], topic: str, type_: str, allowed: bool
) -> None:
    assert Publisher("shop", tuple(topics), tuple(types)).may_publish(topic, type_) is allowed


def test_a_new_secret_is_random_and_of_the_form_that_is_looked_up() -> None:
    made = {new_secret() for _ in range(100)}

    assert len(made) == 100
    assert all(re.fullmatch(r"ak_[A-Za-z0-9_-]{43}", secret) for secret in made)


async def test_a_stored_key_is_found_by_its_digest_alone() -> None:
    secret = new_secret()
    store = Store(**{secret: SHOP})

    assert await Publishers(settings_keys(), store.publisher).publisher_of(bringing(secret)) == SHOP
    assert store.asked == [digest_of(secret.encode())]


async def test_what_is_no_stored_key_does_not_reach_the_store() -> None:
    secret = new_secret()
    store = Store(**{secret: SHOP})
    publishers = Publishers(settings_keys([f"known:{secret[:-1]}x"]), store.publisher)

    for odd in ("", "ak_", secret[:-1], secret + "A", secret.upper(), secret[3:], secret + "\0", "a" * 60_000):
        with pytest.raises(Unauthenticated):
            await publishers.publisher_of(bringing(odd))
    assert (await publishers.publisher_of(bringing(secret[:-1] + "x"))).name == "known"

    assert store.asked == []


@pytest.mark.parametrize("known", [True, False])
async def test_the_store_is_asked_once_in_a_while_however_busy_a_key_is(known: bool) -> None:
    secret, clock = new_secret(), Clock(0)
    store = Store(**({secret: SHOP} if known else {}))
    store.open.clear()
    publishers = Publishers(settings_keys(), store.publisher, clock)

    async def ask() -> bool:
        try:
            return await publishers.publisher_of(bringing(secret)) == SHOP
        except Unauthenticated:
            return False

    crowd = [asyncio.create_task(ask()) for _ in range(50)]
    await until(lambda: store.asked)
    store.open.set()
    assert await asyncio.gather(*crowd) == [known] * 50
    clock.advance(CACHE_S * 0.75)
    assert await ask() is known
    assert len(store.asked) == 1

    clock.advance(CACHE_S * 0.25)
    assert await ask() is known
    assert len(store.asked) == 2


async def test_a_key_that_is_gone_is_refused_soon_although_it_is_busy() -> None:
    secret, clock = new_secret(), Clock(0)
    store = Store(**{secret: SHOP})
    publishers = Publishers(settings_keys(), store.publisher, clock)
    await publishers.publisher_of(bringing(secret))
    store.known.clear()

    for _ in range(7):
        clock.advance(CACHE_S / 8)
        await publishers.publisher_of(bringing(secret))
    clock.advance(CACHE_S / 8)

    with pytest.raises(Unauthenticated):
        await publishers.publisher_of(bringing(secret))


async def test_a_slow_answer_is_as_old_as_its_question() -> None:
    secret, clock = new_secret(), Clock(0)
    store = Store(**{secret: SHOP})
    store.open.clear()
    publishers = Publishers(settings_keys(), store.publisher, clock)
    asked_before = asyncio.create_task(publishers.publisher_of(bringing(secret)))
    await until(lambda: store.asked)
    store.known.clear()
    clock.advance(CACHE_S)
    asked_after = asyncio.create_task(publishers.publisher_of(bringing(secret)))
    await until(lambda: len(store.asked) == 2)
    store.open.set()

    assert await asked_before == SHOP
    with pytest.raises(Unauthenticated):
        await asked_after


async def test_an_outage_is_told_and_not_remembered() -> None:
    secret = new_secret()
    store = Store(**{secret: SHOP})
    publishers = Publishers(settings_keys(["shop:s3cret"]), store.publisher, Clock(0))

    store.is_down = True
    with pytest.raises(Unavailable):
        await publishers.publisher_of(bringing(secret))
    assert (await publishers.publisher_of(bringing("s3cret"))).name == "shop"  # without the store
    store.is_down = False

    assert await publishers.publisher_of(bringing(secret)) == SHOP


async def test_a_store_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOKUP_TIMEOUT_S", 0.01)
    secret = new_secret()
    store = Store(**{secret: SHOP})
    store.open.clear()
    publishers = Publishers(settings_keys(), store.publisher, Clock(0))

    with pytest.raises(Unavailable):
        await publishers.publisher_of(bringing(secret))
    store.open.set()

    assert await publishers.publisher_of(bringing(secret)) == SHOP


async def test_who_leaves_takes_the_answer_from_nobody() -> None:
    secret = new_secret()
    store = Store(**{secret: SHOP})
    store.open.clear()
    publishers = Publishers(settings_keys(), store.publisher, Clock(0))
    first, second = (asyncio.create_task(publishers.publisher_of(bringing(secret))) for _ in range(2))
    await until(lambda: store.asked)

    first.cancel()
    await asyncio.wait([first])
    store.open.set()

    assert await second == SHOP
    assert len(store.asked) == 1


async def test_what_is_remembered_is_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_ENTRIES", 3)
    made = [new_secret() for _ in range(4)]
    store = Store(**dict.fromkeys(made, SHOP))
    publishers = Publishers(settings_keys(), store.publisher, Clock(0))

    for secret in [*made, made[3], made[1], made[0]]:
        await publishers.publisher_of(bringing(secret))

    assert store.asked == [digest_of(secret.encode()) for secret in [*made, made[0]]]


async def test_made_up_keys_do_not_take_all_of_the_store() -> None:
    store = Store()
    store.open.clear()
    publishers = Publishers(settings_keys(), store.publisher, Clock(0))

    crowd = [asyncio.create_task(publishers.publisher_of(bringing(new_secret()))) for _ in range(20)]
    await until(lambda: len(store.asked) == LOOKUPS_AT_ONCE)
    store.open.set()
    answers = await asyncio.gather(*crowd, return_exceptions=True)

    assert store.most_at_once == LOOKUPS_AT_ONCE
    assert all(isinstance(answer, Unauthenticated) for answer in answers)
