"""What the owner of an account can do with it: list and end sessions, change the password, delete the account."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from allim.access.rates import Policy
from allim.domains import accounts, keys, snapshots
from allim.domains.accounts.devices import short_agent
from allim.domains.accounts.flows import Person
from allim.domains.accounts.service import MAX_SESSIONS, RECENT_S, SEEN_S
from allim.domains.signals import ACCOUNT_CREATED, ACCOUNT_DELETED, Signals
from allim.domains.snapshots.generation import Generation
from allim.errors import SignedOut, Unauthenticated
from allim.identity import Identity
from allim.paging import Page
from allim.storage import open_engine, reading, writing
from allim.work import Work
from tests.access.gates import AMPLE, TOKENS, gate_of
from tests.domains.fakes import Clock, RecordingHub
from tests.domains.snapshots.replicas import Replica
from tests.http.apps import assert_problem, client_of
from tests.work.replicas import Bus

pytestmark = pytest.mark.anyio

ADA = {"email": "ada@example.org", "name": "Ada", "password": "correct horse"}
BEN = {"email": "ben@example.org", "name": "Ben", "password": "correct horse"}
NEW = "battery staple"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
SESSIONS = "/api/accounts/me/sessions"
PROVIDER = Person("https://provider.example.org", "ada-1", "Ada", None)
HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class Passwords(accounts.Passwords):
    """Calls `when_verified` between the verification of a password and what follows from it."""

    def __init__(self) -> None:
        super().__init__(HASHER)
        self.when_verified: Callable[[], Awaitable[object]] | None = None

    async def verify(self, password_hash: str | None, password: str) -> bool:
        verified = await super().verify(password_hash, password)
        when_verified, self.when_verified = self.when_verified, None
        if when_verified is not None:
            await when_verified()
        return verified


class Site:
    """The routes of accounts, with the domains that keep something of an account behind them."""

    def __init__(self, engine: AsyncEngine, clock: Clock, **limits: Policy) -> None:
        self.engine, self.clock = engine, clock
        self.hub = RecordingHub()
        self.passwords = Passwords()

        async def profile(account_id: str) -> dict[str, object] | None:
            return await accounts.profile(engine, account_id)

        self.profile = profile
        work = Work(engine, Bus(), "replica-1", now=clock)
        self.generation = Generation(engine, work, self.hub.publish, profile, "replica-1", now=clock)
        self.snapshots = snapshots.Service(engine, profile, self.generation.enqueue, clock)
        self.generate = Replica(engine, self.generation, work, self.snapshots, "replica-1", clock).attempt
        self.keys = keys.Service(engine, clock)
        self.signals = Signals()
        self.signals.on(ACCOUNT_CREATED, self.snapshots.request_in)
        for domain in (self.snapshots, self.keys):
            self.signals.on(ACCOUNT_DELETED, domain.delete_in)
        self.service = accounts.Service(engine, TOKENS, self.passwords, self.signals, self.hub, now=clock)
        self.routes = accounts.routes(self.service, gate_of(None, **limits), TOKENS, AMPLE)

    def browser(self, agent: str = FIREFOX) -> httpx.AsyncClient:
        client = client_of(self.routes)
        client.headers["user-agent"] = agent
        return client

    async def register(self, browser: httpx.AsyncClient, who: dict[str, str] = ADA) -> Identity:
        answer = await browser.post("/api/accounts", json=who)
        assert answer.status_code == 201, answer.text
        return await TOKENS.verify(answer.json()["token"])

    async def sign_in(self, browser: httpx.AsyncClient, password: str = ADA["password"]) -> Identity:
        answer = await browser.post("/api/session", json={"email": ADA["email"], "password": password})
        assert answer.status_code == 200, answer.text
        return await TOKENS.verify(answer.json()["token"])

    async def as_provider(self, browser: httpx.AsyncClient) -> Identity:
        """Sign in over a provider."""
        token = (await self.service.sign_in_as(PROVIDER)).token
        browser.headers["authorization"] = f"Bearer {token}"
        return await TOKENS.verify(token)

    async def rows(self, table: str) -> int:
        async with reading(self.engine) as connection:
            return await connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0


@pytest.fixture
def clock() -> Clock:
    return Clock(time.time())


@pytest.fixture
def site(engine: AsyncEngine, clock: Clock) -> Site:
    return Site(engine, clock)


def change(current: str = ADA["password"], new: str = NEW) -> dict[str, Any]:
    return {"url": "/api/accounts/me/password", "json": {"currentPassword": current, "newPassword": new}}


def deletion(password: str | None = ADA["password"]) -> dict[str, Any]:
    return {"url": "/api/accounts/me/deletion", "json": {"password": password} if password else {}}


# Sessions -------------------------------------------------------------------------------------------------------


async def test_sessions_are_listed_with_when_and_where_and_which_one_asks(site: Site) -> None:
    async with site.browser() as first, site.browser("curl/8.5.0") as second, site.browser() as ben:
        await site.register(ben, BEN)
        began = await site.register(first)
        site.clock.advance(90)
        later = await site.sign_in(second)

        items = (await second.get(SESSIONS)).json()["items"]

    assert [(item["id"], item["current"]) for item in items] == [(later.session, True), (began.session, False)]
    assert [item["agent"] for item in items] == ["curl", "Firefox on Linux"]
    assert [item["address"] for item in items] == [None, None]
    assert items[0]["createdAt"] > items[1]["createdAt"]
    assert all(item["seenAt"] == item["createdAt"] < item["expiresAt"] for item in items)


async def test_a_session_is_seen_to_the_minute_and_renewed_to_its_new_expiry(site: Site) -> None:
    async with site.browser() as browser:
        await site.register(browser)
        [at_first] = (await browser.get(SESSIONS)).json()["items"]
        site.clock.advance(SEEN_S - 1)
        await browser.get("/api/session")
        assert (await browser.get(SESSIONS)).json()["items"] == [at_first]
        site.clock.advance(2)
        await browser.get("/api/session", headers={"user-agent": "curl/8.5.0"})
        [seen] = (await browser.get(SESSIONS)).json()["items"]
        await asyncio.sleep(0.01)  # the renewed token expires later by at least a millisecond
        await browser.post("/api/session/renew")
        [renewed] = (await browser.get(SESSIONS)).json()["items"]

    assert seen["seenAt"] > at_first["seenAt"]
    assert seen["agent"] == "curl"
    assert seen["createdAt"] == renewed["createdAt"] == at_first["createdAt"]
    assert renewed["expiresAt"] > at_first["expiresAt"]


async def test_without_the_database_a_session_is_renewed_all_the_same(hub: RecordingHub, clock: Clock) -> None:
    away = Site(open_engine("postgresql://nobody:hunter2@127.0.0.1:1/none"), clock)

    async with away.browser() as browser:
        bearer = {"authorization": f"Bearer {TOKENS.issue('somebody')}"}
        assert (await browser.post("/api/session/renew", headers=bearer)).status_code == 200
        assert (await browser.get("/api/session", headers=bearer)).json()["user"] == "somebody"
        assert_problem(await browser.get(SESSIONS, headers=bearer), 503, "unavailable")


async def test_one_session_is_ended_and_no_other(site: Site) -> None:
    async with site.browser() as first, site.browser() as second:
        ended = await site.register(first)
        kept = await site.sign_in(second)

        answer = await second.delete(f"{SESSIONS}/{ended.session}")

        assert (answer.status_code, answer.headers.get("set-cookie")) == (204, None)
        assert site.hub.ended == [(ended.subject, ended.session)]
        assert [item["id"] for item in (await second.get(SESSIONS)).json()["items"]] == [kept.session]
        assert_problem(await second.delete(f"{SESSIONS}/{ended.session}"), 404, "not_found")


async def test_a_session_that_ends_itself_loses_its_cookie(site: Site) -> None:
    async with site.browser() as browser:
        own = await site.register(browser)

        answer = await browser.delete(f"{SESSIONS}/{own.session}")

    assert answer.status_code == 204
    assert "Max-Age=0" in answer.headers["set-cookie"]


@pytest.mark.parametrize("name", ["unknown", "%00", "x" * 5000])
async def test_a_session_of_another_account_is_as_unknown_as_none(site: Site, name: str) -> None:
    async with site.browser() as first, site.browser() as second:
        another = await site.register(first)
        await site.register(second, BEN)

        answers = [await second.delete(f"{SESSIONS}/{session}") for session in (another.session, name)]

    for answer in answers:
        assert_problem(answer, 404, "not_found")
    assert answers[0].text == answers[1].text
    assert site.hub.ended == []


async def test_sessions_that_a_sign_out_a_kick_or_their_time_ended_are_not_listed(site: Site) -> None:
    async with site.browser() as browser, site.browser() as other:
        await site.register(browser)
        await browser.delete("/api/session")
        await site.sign_in(other)
        site.clock.advance(TOKENS.lifetime_s + 1)
        kept = await site.sign_in(browser)
        site.clock.advance(-2 * TOKENS.lifetime_s)
        listed = (await browser.get(SESSIONS)).json()["items"]
        assert len(listed) == 2
        site.clock.advance(2 * TOKENS.lifetime_s)
        # The tokens' clock is this machine's, and the service's is ahead of it: so all of them have expired.
        assert (await browser.get(SESSIONS)).json()["items"] == []
        site.clock.advance(-2 * TOKENS.lifetime_s)
        await site.hub.kick(kept.subject)
        assert (await browser.get(SESSIONS)).json()["items"] == []


async def test_rows_of_sessions_go_when_no_token_of_theirs_can_be_valid(site: Site) -> None:
    async with site.browser() as browser, site.browser() as other:
        await site.register(browser)
        site.clock.advance(TOKENS.max_s - 10)
        await site.register(other, BEN)
        assert await site.rows("allim_accounts_sessions") == 2
        site.clock.advance(20)
        await other.post("/api/session", json={"email": BEN["email"], "password": BEN["password"]})

    assert await site.rows("allim_accounts_sessions") == 2


async def test_one_session_too_many_ends_the_one_that_was_not_seen_for_longest(site: Site) -> None:
    async with site.browser() as browser:
        first = await site.register(browser)
        sessions = [first]
        for _ in range(MAX_SESSIONS - 1):
            site.clock.advance(1)
            sessions.append(await site.sign_in(browser))
        assert site.hub.ended == []

        await site.sign_in(browser)

        assert site.hub.ended == [(first.subject, first.session)]
        assert len((await browser.get(SESSIONS)).json()["items"]) == MAX_SESSIONS


@pytest.mark.parametrize(
    ("agent", "short"),
    [
        (FIREFOX, "Firefox on Linux"),
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 "
            "Safari/537.36 Edg/140.0.0.0",
            "Edge on Windows",
        ),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            "Version/18.5 Mobile/15E148 Safari/604.1",
            "Safari on iPhone",
        ),
        (
            "Mozilla/5.0 (Linux; Android 15) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Mobile "
            "Safari/537.36",
            "Chrome on Android",
        ),
        (
            "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) "
            "HeadlessChrome/140.0.0.0 Safari/537.36",
            "Chrome on macOS",
        ),
        ("curl/8.5.0", "curl"),
        ("python-httpx/0.28.1", "python-httpx"),
        ("", None),
        ("<script>alert(1)</script>", None),
        ("é" * 5000, None),
        ("a" * 5000, "a" * 40),
    ],
)
def test_a_user_agent_in_short(agent: str, short: str | None) -> None:
    assert short_agent(agent) == short


# The password ---------------------------------------------------------------------------------------------------


async def test_a_changed_password_ends_every_other_session_and_signs_in_from_now_on(site: Site) -> None:
    async with site.browser() as here, site.browser() as there, site.browser() as gone:
        others = [await site.register(there), await site.sign_in(gone)]
        own = await site.sign_in(here)

        assert (await here.post(**change())).status_code == 204

        assert sorted(site.hub.ended) == sorted((other.subject, other.session) for other in others)
        assert [item["id"] for item in (await here.get(SESSIONS)).json()["items"]] == [own.session]
        old = await gone.post("/api/session", json={"email": ADA["email"], "password": ADA["password"]})
        assert_problem(old, 401, "unauthenticated")
        await site.sign_in(gone, NEW)


async def test_a_password_is_changed_by_the_current_one_alone(site: Site) -> None:
    async with site.browser() as browser, site.browser() as other:
        await site.register(browser)
        await site.sign_in(other)

        assert_problem(await browser.post(**change("wrong horse")), 403, "forbidden", "currentPassword")
        assert_problem(await browser.post(**change(new="short")), 422, "invalid", "newPassword")

        assert site.hub.ended == []
        await site.sign_in(other)


async def test_tries_with_the_current_password_count_as_sign_ins(engine: AsyncEngine, clock: Clock) -> None:
    site = Site(engine, clock, sign_in_tries=Policy("sign-in", 3, 60))
    async with site.browser() as browser:
        await site.register(browser)
        answers = [await browser.post(**change("wrong horse")) for _ in range(2)]
        answers.append(await browser.post(**deletion("wrong horse")))

        for answer in answers:
            assert answer.status_code == 403
        assert_problem(await browser.post(**change()), 429, "too_many")
        assert_problem(await browser.post(**deletion()), 429, "too_many")
        right = await browser.post("/api/session", json={"email": ADA["email"], "password": ADA["password"]})
        assert_problem(right, 429, "too_many")


async def test_an_account_of_a_provider_has_no_password_to_change_and_is_told_so(site: Site) -> None:
    async with site.browser() as browser:
        await site.as_provider(browser)
        assert (await browser.get("/api/accounts/me")).json()["hasPassword"] is False

        answer = await browser.post(**change())

    assert_problem(answer, 409, "conflict")
    assert "provider" in answer.json()["detail"]


async def test_a_sign_in_with_the_old_password_during_the_change_does_not_succeed(site: Site) -> None:
    async with site.browser() as here, site.browser() as there:
        await site.register(here)

        async def change_meanwhile() -> None:
            assert (await here.post(**change())).status_code == 204

        site.passwords.when_verified = change_meanwhile
        answer = await there.post("/api/session", json={"email": ADA["email"], "password": ADA["password"]})

    assert_problem(answer, 401, "unauthenticated")


async def test_a_sign_in_that_the_change_of_the_password_meets_is_ended_by_it(site: Site) -> None:
    async with site.browser() as here, site.browser() as there:
        await site.register(here)
        met: list[Identity] = []

        async def sign_in_meanwhile() -> None:
            met.append(await site.sign_in(there))

        site.passwords.when_verified = sign_in_meanwhile
        assert (await here.post(**change())).status_code == 204

        assert site.hub.ended == [(met[0].subject, met[0].session)]


async def test_sign_ins_that_begin_while_the_others_are_ended_are_ended_too(site: Site) -> None:
    async with site.browser() as here, site.browser() as there:
        await site.register(here)
        first = await site.sign_in(there)
        met: list[Identity] = []
        sign_out = site.hub.sign_out

        async def sign_out_slowly(holder: Any) -> None:
            if not met:
                met.append(await site.sign_in(there))
            await sign_out(holder)

        site.hub.sign_out = sign_out_slowly  # type: ignore[method-assign]
        assert (await here.post(**change())).status_code == 204

    assert site.hub.ended == [(who.subject, who.session) for who in (first, met[0])]


async def test_of_two_changes_at_once_one_is_made(site: Site) -> None:
    async with site.browser() as browser:
        await site.register(browser)

        answers = await asyncio.gather(*(browser.post(**change(new=f"password {number}")) for number in range(3)))

        assert sorted(answer.status_code for answer in answers) == [204, 403, 403]
        made = next(number for number, answer in enumerate(answers) if answer.status_code == 204)
        await site.sign_in(browser, f"password {made}")


async def test_a_password_whose_sessions_cannot_be_ended_is_not_changed(site: Site) -> None:
    async with site.browser() as here, site.browser() as there:
        await site.register(here)
        await site.sign_in(there)
        site.hub.is_down = True
        assert_problem(await here.post(**change()), 503, "unavailable")
        assert_problem(await here.post(**deletion()), 503, "unavailable")

        site.hub.is_down = False
        await site.sign_in(there)


# Deletion -------------------------------------------------------------------------------------------------------


TABLES = (
    "allim_accounts",
    "allim_accounts_identities",
    "allim_accounts_sessions",
    "allim_snapshots",
    "allim_snapshots_counts",
    "allim_keys",
)


async def test_a_deleted_account_leaves_nothing_behind_and_takes_nothing_of_others(site: Site) -> None:
    async with site.browser() as ada, site.browser() as ben:
        await site.register(ben, BEN)
        await site.keys.create("bens", ["*"], ["*"], "ben")
        before = [await site.rows(table) for table in TABLES]
        who = await site.register(ada)
        await site.keys.create("adas", ["*"], ["*"], who.subject)
        await site.snapshots.request(who.subject)

        answer = await ada.post(**deletion())

        assert answer.status_code == 204
        assert "Max-Age=0" in answer.headers["set-cookie"]
        assert list(site.hub.kicked) == [who.subject]
        assert [await site.rows(table) for table in TABLES] == before
        assert (await ben.get("/api/accounts/me")).status_code == 200


async def test_an_account_is_deleted_by_its_password_alone(site: Site) -> None:
    async with site.browser() as browser:
        await site.register(browser)

        assert_problem(await browser.post(**deletion("wrong horse")), 403, "forbidden", "password")
        assert_problem(await browser.post(**deletion(None)), 422, "invalid", "password")
        assert_problem(await browser.post("/api/accounts/me/deletion"), 422, "invalid", "password")

        assert (await browser.get("/api/accounts/me")).status_code == 200
        assert site.hub.kicked == {}


@pytest.mark.parametrize(("age_s", "status"), [(RECENT_S - 1, 204), (RECENT_S + 1, 403)])
async def test_an_account_of_a_provider_is_deleted_soon_after_a_sign_in(
    site: Site, age_s: float, status: int
) -> None:
    async with site.browser() as browser:
        await site.as_provider(browser)
        site.clock.advance(age_s)

        answer = await browser.post(**deletion(None))

        assert answer.status_code == status
        assert await site.rows("allim_accounts_identities") == (0 if status == 204 else 1)
        await site.as_provider(browser)
        assert (await browser.post(**deletion(None))).status_code == 204


async def test_a_token_of_another_service_deletes_no_account_of_a_provider(site: Site) -> None:
    async with site.browser() as browser:
        own = await site.as_provider(browser)
        browser.headers["authorization"] = f"Bearer {TOKENS.issue(own.subject)}"

        assert_problem(await browser.post(**deletion(None)), 403, "forbidden")


async def test_an_account_that_is_registered_again_is_another_one(site: Site) -> None:
    async with site.browser() as browser:
        former = await site.register(browser)
        await browser.post(**deletion())
        again = await site.register(browser)

        assert again.subject != former.subject
        assert [item["id"] for item in (await browser.get(SESSIONS)).json()["items"]] == [again.session]
    listing = await site.snapshots.snapshots(again.subject, Page(20, None))
    assert len(listing.items) == 1  # its own first


async def test_a_sign_in_during_the_deletion_does_not_succeed(site: Site) -> None:
    async with site.browser() as here, site.browser() as there:
        await site.register(here)

        async def delete_meanwhile() -> None:
            assert (await here.post(**deletion())).status_code == 204

        site.passwords.when_verified = delete_meanwhile
        answer = await there.post("/api/session", json={"email": ADA["email"], "password": ADA["password"]})

    assert_problem(answer, 401, "unauthenticated")
    assert await site.rows("allim_accounts_sessions") == 0


async def test_a_sign_in_that_the_deletion_meets_is_ended_by_it(site: Site) -> None:
    async with site.browser() as here, site.browser() as there:
        await site.register(here)
        met: list[Identity] = []
        kick = site.hub.kick

        async def kick_slowly(subject: str) -> None:
            await kick(subject)
            if not met:
                met.append(await site.sign_in(there))

        site.hub.kick = kick_slowly  # type: ignore[method-assign]
        assert (await here.post(**deletion())).status_code == 204

    assert met[0].after_kick == 1
    assert site.hub.kicked == {met[0].subject: 2}


async def test_a_person_whose_account_is_deleted_during_a_sign_in_over_a_provider_gets_a_new_one(site: Site) -> None:
    async with site.browser() as browser:
        former = await site.as_provider(browser)
        known = site.service._known

        async def delete_after(person: Person) -> Any:
            site.service._known = known  # type: ignore[method-assign]
            account = await known(person)
            assert (await browser.post(**deletion(None))).status_code == 204
            return account

        site.service._known = delete_after  # type: ignore[method-assign]
        token = (await site.service.sign_in_as(PROVIDER)).token

    assert (await TOKENS.verify(token)).subject != former.subject
    assert await site.rows("allim_accounts") == 1


async def test_what_fails_in_another_domain_leaves_the_account(site: Site, engine: AsyncEngine) -> None:
    async def fail(_: AsyncConnection, __: str) -> None:
        raise SignedOut("no")

    signals = Signals()
    signals.on(ACCOUNT_DELETED, fail)
    service = accounts.Service(engine, TOKENS, site.passwords, signals, site.hub)
    async with site.browser() as browser:
        who = await site.register(browser)

    with pytest.raises(Unauthenticated):
        await service.delete(who, ADA["password"])
    assert await site.rows("allim_accounts") == 1


async def test_a_snapshot_in_work_is_given_up_when_its_account_is_deleted(site: Site, engine: AsyncEngine) -> None:
    async with site.browser() as browser:
        who = await site.register(browser)
        async with reading(engine) as connection:
            snapshot_id = str(await connection.scalar(text("SELECT id FROM allim_snapshots")))

        async def delete_before(_: object) -> None:
            if site.hub.calls == 2:
                assert (await browser.post(**deletion())).status_code == 204

        site.hub.before_publish = delete_before
        await site.generate(snapshot_id)

    assert site.hub.types(f"user:{who.subject}") == ["snapshots.progress 1", "snapshots.progress 2"]
    assert [await site.rows(table) for table in ("allim_snapshots", "allim_snapshots_counts")] == [0, 0]


async def test_a_snapshot_that_is_left_of_a_deleted_account_is_dropped_without_being_tried_again(
    site: Site, engine: AsyncEngine
) -> None:
    async with site.browser() as browser:
        await site.register(browser)
    async with writing(engine) as connection:  # as an operator does by hand
        await connection.execute(text("DELETE FROM allim_accounts"))
        snapshot_id = str(await connection.scalar(text("SELECT id FROM allim_snapshots")))

    await site.generate(snapshot_id)

    assert [await site.rows(table) for table in ("allim_snapshots", "allim_snapshots_counts")] == [0, 0]


async def test_a_snapshot_that_is_requested_during_the_deletion_goes_with_it(site: Site, engine: AsyncEngine) -> None:
    async with site.browser() as browser:
        who = await site.register(browser)
        deleted: list[asyncio.Task[httpx.Response]] = []

        async def profile_before(account_id: str) -> dict[str, object] | None:
            found = await site.profile(account_id)
            deleted.append(asyncio.create_task(browser.post(**deletion())))
            await asyncio.wait(deleted, timeout=0.5)  # it waits for the request where the request holds the account
            return found

        await snapshots.Service(engine, profile_before, site.generation.enqueue, site.clock).request(who.subject)

        assert (await deleted[0]).status_code == 204
    assert [await site.rows(table) for table in ("allim_snapshots", "allim_snapshots_counts")] == [0, 0]
