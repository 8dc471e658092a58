"""Sign-in over providers, from the browser's first request to its session, against a provider that may lie."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from argon2 import PasswordHasher
from harness import providers
from harness.providers import CLIENT_ID, CLIENT_SECRET, JIWOO, ProviderDouble, challenge_of, provider_double
from harness.replicas import Reader, replica
from harness.schema import migrate
from harness.servers import lasting_port
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from starlette.routing import BaseRoute, Mount
from structlog.testing import capture_logs

from allim.access.rates import Policy
from allim.domains import accounts
from allim.domains.accounts.providers import DIALECTS, Provider, back_channel
from allim.domains.accounts.settings import PROVIDERS
from allim.domains.signals import ACCOUNT_CREATED, Signals
from allim.storage import open_engine, reading
from tests.access.gates import AMPLE, SECRET, TOKENS, gate_of
from tests.domains.fakes import Clock, RecordingHub
from tests.http.apps import assert_problem, client_of

pytestmark = pytest.mark.anyio

PATH = "/api/session/providers"
DISCOVERY = "/.well-known/openid-configuration"
PASSWORD = {"email": JIWOO["email"], "name": "Jiwoo", "password": "correct horse"}
PATIENCE_S = 0.7
"""With a provider that hangs; with any other there is more, for a busy machine."""


class FirstSnapshots(Signals):
    """Notes the accounts that are created."""

    def __init__(self) -> None:
        super().__init__()
        self.on(ACCOUNT_CREATED, self.request_in)
        self.requested: list[str] = []

    async def request_in(self, connection: AsyncConnection, account_id: str) -> None:
        self.requested.append(account_id)


class Site:
    """The service as browsers see it, with the double behind the providers named."""

    def __init__(
        self,
        engine: AsyncEngine,
        double: ProviderDouble,
        *names: str,
        keys: tuple[str, ...] = (SECRET,),
        public_url: str = "http://test",
        **limits: Policy,
    ) -> None:
        self.engine, self.double, self.clock = engine, double, Clock(time.time())
        self.snapshots = FirstSnapshots()
        self.back_channel = back_channel()
        timeout_s = PATIENCE_S if "hangs" in double.trouble.values() else 5
        self.providers = [
            Provider(
                name,
                double.issuer,
                CLIENT_ID,
                CLIENT_SECRET,
                self.back_channel,
                timeout_s=timeout_s,
                now=self.clock,
            )
            for name in names or ("google",)
        ]
        passwords = accounts.Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        hub = RecordingHub()
        self.service = service = accounts.Service(engine, TOKENS, passwords, self.snapshots, hub)
        gate = gate_of(None, **limits)
        flows = accounts.Flows(keys, self.clock)
        self.routes: list[BaseRoute] = [
            *accounts.routes(service, gate, TOKENS, AMPLE),
            *accounts.provider_routes(self.providers, flows, service, gate, TOKENS.lifetime_s, public_url),
        ]

    def browser(self, base_url: str = "http://test") -> httpx.AsyncClient:
        return client_of(self.routes, base_url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for provider in self.providers:
            await provider.close()
        await self.back_channel.aclose()

    async def count(self, table: str) -> int:
        async with reading(self.engine) as connection:
            return await connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0


@pytest.fixture(scope="module")
def running() -> Iterator[ProviderDouble]:
    with provider_double() as double:
        yield double


@pytest.fixture
def double(running: ProviderDouble) -> ProviderDouble:
    running.reset()
    return running


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database, made once for all the tests that only need any."""
    path = tmp_path_factory.mktemp("migrated") / "allim.db"

    async def make() -> None:
        engine = open_engine(f"sqlite:///{path}")
        await migrate(engine)
        await engine.dispose()

    asyncio.run(make())
    return path


@pytest.fixture
async def sqlite(migrated: Path, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(f"sqlite:///{shutil.copy(migrated, tmp_path)}")
    yield engine
    await engine.dispose()


@pytest.fixture
async def site(sqlite: AsyncEngine, double: ProviderDouble) -> AsyncIterator[Site]:
    """One provider; what the database does with people is tried over both databases, in `both`."""
    async with Site(sqlite, double) as site:
        yield site


@pytest.fixture
async def both(engine: AsyncEngine, double: ProviderDouble) -> AsyncIterator[Site]:
    async with Site(engine, double) as site:
        yield site


async def come_back_to(browser: httpx.AsyncClient, name: str = "google") -> str:
    """Begin, sign in at the provider, and give the address to which it sends the browser."""
    begun = await browser.get(f"{PATH}/{name}")
    assert begun.status_code == 302, begun.text
    async with httpx.AsyncClient(verify=False) as elsewhere:  # without TLS; loading certificates takes its time
        return (await elsewhere.get(begun.headers["location"])).headers["location"]


async def sign_in(browser: httpx.AsyncClient, name: str = "google") -> httpx.Response:
    return await browser.get(await come_back_to(browser, name))


def flows_of(browser: httpx.AsyncClient) -> list[str]:
    """The names of the flows that this browser holds."""
    return [cookie.name for cookie in browser.cookies.jar if cookie.name.startswith("allim_sign_in")]


def assert_back(response: httpx.Response, outcome: str) -> None:
    """The browser is sent home with this word alone, and without its flow. No session begins or ends."""
    assert (response.status_code, response.headers["location"]) == (303, f"/?sign_in={outcome}")
    assert response.headers["cache-control"] == "no-store"
    changed = response.headers.get_list("set-cookie")
    if outcome == "expired":  # without a valid flow, except one that has expired
        assert not [cookie for cookie in changed if not cookie.startswith("allim_sign_in_")]
    else:
        assert len(changed) == 1
        assert '=""; HttpOnly; Max-Age=0' in changed[0]
        assert changed[0].startswith("allim_sign_in_")


# The way


async def test_those_with_id_and_secret_are_named(sqlite: AsyncEngine, double: ProviderDouble) -> None:
    async with Site(sqlite, double, "google", "kakao") as site, site.browser() as browser:
        assert (await browser.get(PATH)).json() == {"providers": ["google", "kakao"], "registration": "open"}
        assert_problem(await browser.get(f"{PATH}/naver"), 404, "not_found")
        assert_problem(await browser.get(f"{PATH}/naver/callback"), 404, "not_found")


async def test_the_first_sign_in_makes_the_account_with_its_snapshot_and_later_ones_find_it(both: Site) -> None:
    async with both.browser() as browser, both.browser() as other_browser:
        first = await sign_in(browser)
        again = await sign_in(other_browser)
        account = (await browser.get("/api/accounts/me")).json()

    assert (first.status_code, first.headers["location"], again.status_code) == (303, "/", 303)
    assert first.headers["cache-control"] == "no-store"
    assert (account["email"], account["name"]) == (JIWOO["email"], JIWOO["name"])
    sessions = [await TOKENS.verify(answer.cookies["allim_session"]) for answer in (first, again)]
    assert [session.subject for session in sessions] == [account["id"]] * 2
    assert sessions[0].session != sessions[1].session
    assert both.snapshots.requested == [account["id"]]
    assert (await both.count("allim_accounts"), await both.count("allim_accounts_identities")) == (1, 1)


async def test_the_request_has_fresh_secrets_bound_to_this_browser(site: Site) -> None:
    async with site.browser() as browser:
        begun = [await browser.get(f"{PATH}/google") for _ in range(2)]
        queries = [dict(httpx.URL(answer.headers["location"]).params) for answer in begun]

    assert queries[0] | queries[1] | {"scope": "openid email profile"} == queries[1]
    assert queries[1]["redirect_uri"] == f"http://test{PATH}/google/callback"
    assert queries[1]["code_challenge_method"] == "S256"
    for name in ("state", "nonce", "code_challenge"):
        assert len(queries[0][name]) >= 43
        assert queries[0][name] != queries[1][name]
        assert queries[0][name] not in begun[0].headers["set-cookie"]
    assert begun[0].headers["cache-control"] == "no-store"


async def test_the_cookie_of_a_flow_has_its_flags(site: Site) -> None:
    async with site.browser() as browser:
        plain = (await browser.get(f"{PATH}/google")).headers["set-cookie"]
        secure = (await browser.get(f"https://test{PATH}/google")).headers["set-cookie"]

    assert {"HttpOnly", "SameSite=lax", f"Path={PATH}", "Max-Age=600"} <= set(plain.split("; "))
    assert "Secure" not in plain
    assert "Secure" in secure.split("; ")


@pytest.mark.parametrize("host", ["test", "evil.example", "e" * 250])
async def test_the_way_back_is_the_public_address_whatever_the_request_says_of_itself(
    sqlite: AsyncEngine, double: ProviderDouble, host: str
) -> None:
    async with Site(sqlite, double, public_url="https://app.example.org") as site, site.browser() as browser:
        location = (await browser.get(f"{PATH}/google", headers={"host": host})).headers["location"]

    assert httpx.URL(location).params["redirect_uri"] == f"https://app.example.org{PATH}/google/callback"
    assert httpx.URL(location).params["redirect_uri"] == f"https://app.example.org{PATH}/google/callback"


async def test_mounted_in_another_application_the_way_leads_back_there(site: Site) -> None:
    site.routes = [Mount("/notify", routes=site.routes)]

    async with site.browser("http://test/notify") as browser:
        response = await sign_in(browser)

        assert response.headers["location"] == "/notify/"
        assert f"Path=/notify{PATH};" in response.headers["set-cookie"]


async def test_the_code_is_redeemed_with_the_verifier_of_its_challenge(site: Site) -> None:
    async with site.browser() as browser:
        await sign_in(browser)

    asked = dict(site.double.asked)
    assert challenge_of(asked["/token"]["code_verifier"]) == asked["/authorize"]["code_challenge"]
    assert "state" not in asked["/token"]


async def test_a_verifier_of_another_flow_redeems_nothing(site: Site) -> None:
    async with site.browser() as browser:
        address = await come_back_to(browser)
        site.double.codes["code-0"]["code_challenge"] = challenge_of("another")

        assert_back(await browser.get(address), "failed")


async def test_a_new_signing_key_is_found(site: Site) -> None:
    site.double.rotate()

    async with site.browser() as browser:
        assert (await sign_in(browser)).headers["location"] == "/"


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
async def test_other_good_signatures_are_known(site: Site, algorithm: str) -> None:
    site.double.sign_with(algorithm)

    async with site.browser() as browser:
        assert (await sign_in(browser)).headers["location"] == "/"


async def test_kakao_is_asked_for_what_its_console_lists(sqlite: AsyncEngine, double: ProviderDouble) -> None:
    double.person = {"sub": "123456", "nickname": "지우", "email": "jiwoo@kakao.example"}
    async with Site(sqlite, double, "kakao") as site, site.browser() as browser:
        await sign_in(browser, "kakao")
        account = (await browser.get("/api/accounts/me")).json()

    assert "scope" not in dict(double.asked)["/authorize"]
    assert (account["name"], account["email"]) == ("지우", None)


async def test_the_profile_tells_what_the_id_token_does_not(sqlite: AsyncEngine, double: ProviderDouble) -> None:
    double.person = {"sub": "123456", "email": "jiwoo@kakao.example"}
    double.profile = {"sub": "123456", "nickname": "지우", "email": "jiwoo@kakao.example", "email_verified": True}
    async with Site(sqlite, double, "kakao") as site, site.browser() as browser:
        await sign_in(browser, "kakao")
        account = (await browser.get("/api/accounts/me")).json()

    assert (account["name"], account["email"]) == ("지우", "jiwoo@kakao.example")


async def test_naver_gets_the_state_with_the_code_and_owes_no_nonce(
    sqlite: AsyncEngine, double: ProviderDouble
) -> None:
    double.person = {"sub": "naver-1"}
    double.claims = {"nonce": None}
    double.profile = {"resultcode": "00", "response": {"id": "x", "nickname": "지우", "email": "jiwoo@naver.example"}}
    async with Site(sqlite, double, "naver") as site, site.browser() as browser:
        await sign_in(browser, "naver")
        account = (await browser.get("/api/accounts/me")).json()

    asked = dict(double.asked)
    assert asked["/token"]["state"] == asked["/authorize"]["state"]
    assert (account["name"], account["email"]) == ("지우", None)


async def test_a_nonce_that_naver_does_send_must_be_right(sqlite: AsyncEngine, double: ProviderDouble) -> None:
    double.claims = {"nonce": "another"}
    async with Site(sqlite, double, "naver") as site, site.browser() as browser:
        assert_back(await sign_in(browser, "naver"), "failed")


async def test_an_address_that_asks_too_often_begins_and_ends_no_sign_in(
    sqlite: AsyncEngine, double: ProviderDouble
) -> None:
    async with (
        Site(sqlite, double, address_calls=Policy("address", 2, 3600)) as site,
        site.browser() as browser,
    ):
        address = await come_back_to(browser)
        await browser.get(f"{PATH}/google")

        assert_back(await browser.get(address), "unavailable")
        assert_problem(await browser.get(f"{PATH}/google"), 429, "too_many")


# Who may come back, and with what


async def test_a_state_of_another_flow_is_refused(site: Site) -> None:
    async with site.browser() as browser, site.browser() as somebody_else:
        address = await come_back_to(browser)
        await come_back_to(somebody_else)

        assert_back(await somebody_else.get(address), "expired")
    assert site.double.times_asked("/token") == 0


@pytest.mark.parametrize(
    "query", ["", "?code=code-0", "?code=code-0&state=", "?code=code-0&state=%ED%A0%80é", "?state"]
)
async def test_a_wrong_or_missing_state_is_refused(site: Site, query: str) -> None:
    async with site.browser() as browser:
        await come_back_to(browser)

        assert_back(await browser.get(f"{PATH}/google/callback{query}"), "expired")
        assert len(flows_of(browser)) == 1


async def test_without_the_cookie_nobody_comes_back(site: Site) -> None:
    async with site.browser() as browser:
        address = await come_back_to(browser)
        browser.cookies.clear()

        assert_back(await browser.get(address), "expired")


@pytest.mark.parametrize("cookie", ["x", "a.b.c", "a..b.c.d", "eyJhbGciOiJkaXIifQ....", "é", "." * 5000])
async def test_a_forged_cookie_is_refused(site: Site, cookie: str) -> None:
    async with site.browser() as browser:
        address = await come_back_to(browser)
        [name] = flows_of(browser)
        browser.cookies.clear()

        headers = {"cookie": f"{name}={cookie}".encode()}
        assert_back(await browser.get(address, headers=headers), "expired")  # type: ignore[arg-type]


async def test_a_second_use_of_the_address_is_refused(site: Site) -> None:
    async with site.browser() as browser:
        address = await come_back_to(browser)
        await browser.get(address)

        assert_back(await browser.get(address), "expired")


async def test_a_kept_cookie_does_not_make_the_code_good_again(site: Site) -> None:
    async with site.browser() as browser:
        address = await come_back_to(browser)
        [name] = flows_of(browser)
        kept = browser.cookies[name]
        await browser.get(address)

        assert_back(await browser.get(address, headers={"cookie": f"{name}={kept}"}), "failed")
    assert site.double.times_asked("/token") == 2


async def test_a_flow_with_another_provider_is_refused(sqlite: AsyncEngine, double: ProviderDouble) -> None:
    async with Site(sqlite, double, "google", "kakao") as site, site.browser() as browser:
        address = await come_back_to(browser, "google")

        assert_back(await browser.get(address.replace("/google/", "/kakao/")), "expired")
    assert double.times_asked("/token") == 0


@pytest.mark.parametrize(("age_s", "location"), [(599, "/"), (601, "/?sign_in=expired")])
async def test_a_flow_is_good_for_ten_minutes(site: Site, age_s: int, location: str) -> None:
    site.double.claims = {"exp": time.time() + 3600}

    async with site.browser() as browser:
        address = await come_back_to(browser)
        site.clock.advance(age_s)

        assert (await browser.get(address)).headers["location"] == location


async def test_a_flow_outlives_a_change_of_the_secret_key(sqlite: AsyncEngine, double: ProviderDouble) -> None:
    async with (
        Site(sqlite, double) as old,
        Site(sqlite, double, keys=("f" * 32, SECRET)) as new,
        old.browser() as before,
        new.browser() as after,
    ):
        address = await come_back_to(before)
        after.cookies = before.cookies

        assert (await after.get(address)).headers["location"] == "/"


async def test_sign_ins_in_two_tabs_of_one_browser_both_succeed(both: Site) -> None:
    async with both.browser() as browser:
        first, second = await come_back_to(browser), await come_back_to(browser)

        answers = [await browser.get(address) for address in (first, second)]

        assert [answer.headers["location"] for answer in answers] == ["/", "/"]
        assert flows_of(browser) == []
    assert await both.count("allim_accounts") == 1


async def test_a_sign_in_that_fails_or_is_stale_leaves_the_session_and_the_other_tabs_alone(site: Site) -> None:
    async with site.browser() as browser:
        await sign_in(browser)
        session = browser.cookies["allim_session"]
        other_tab = await come_back_to(browser)
        site.double.refusal = "access_denied"
        cancelled = await come_back_to(browser)

        assert_back(await browser.get(cancelled), "cancelled")
        assert_back(await browser.get(cancelled), "expired")
        assert_back(await browser.get(f"{PATH}/google/callback?code=x&state=unknown"), "expired")

        assert browser.cookies["allim_session"] == session
        assert (await browser.get(other_tab)).headers["location"] == "/"


async def test_a_browser_keeps_its_five_newest_sign_ins(site: Site) -> None:
    async with site.browser() as browser:
        addresses = []
        for _ in range(7):
            addresses.append(await come_back_to(browser))
            site.clock.advance(1)

        assert len(flows_of(browser)) == 5
        assert_back(await browser.get(addresses[1]), "expired")
        assert (await browser.get(addresses[2])).headers["location"] == "/"


async def test_sign_ins_that_cannot_be_finished_make_room_first(site: Site) -> None:
    async with site.browser() as browser:
        address = await come_back_to(browser)
        for number in range(5):
            browser.cookies.set(f"allim_sign_in_{number}", "forged", domain="test.local", path=PATH)

        await come_back_to(browser)

        assert len(flows_of(browser)) == 2
        assert (await browser.get(address)).headers["location"] == "/"


@pytest.mark.parametrize(
    ("refusal", "outcome"),
    [
        ("access_denied", "cancelled"),
        ("temporarily_unavailable", "unavailable"),
        ("server_error", "unavailable"),
        ("invalid_scope", "failed"),
        ("<script>", "failed"),
    ],
)
async def test_a_refusal_of_the_provider_is_told_in_our_words(site: Site, refusal: str, outcome: str) -> None:
    site.double.refusal = refusal

    async with site.browser() as browser:
        with capture_logs() as logs:
            response = await sign_in(browser)

    assert_back(response, outcome)
    assert [entry["outcome"] for entry in logs] == [outcome]
    assert "<" not in str(logs)
    assert "secret" not in str(logs)


# What the provider says


@pytest.mark.parametrize(
    "sign",
    [
        providers.unsigned,
        providers.tampered,
        providers.signed_by_somebody_else,
        providers.signed_with_the_client_secret,
        providers.signed_with_the_public_key,
        lambda claims: "not.a.token",
        lambda claims: "é",
        lambda claims: "",
        lambda claims: None,
        lambda claims: ["a"],
        lambda claims: providers.signed(claims)[:-4],
        lambda claims: providers.headed({"kid": "first"}, claims),
        lambda claims: providers.headed({"alg": ["RS256"], "kid": "first"}, claims),
        lambda claims: providers.headed({"alg": "RS256", "kid": 7}, claims),
        lambda claims: providers.headed({"alg": "RS256", "kid": "unknown"}, claims),
        lambda claims: providers.headed({"alg": "RS256", "kid": "first", "crit": ["x"], "x": 1}, claims),
        lambda claims: providers.headed([], claims),
    ],
)
async def test_a_token_that_is_not_signed_by_the_provider_is_refused(site: Site, sign: providers.Signing) -> None:
    site.double.sign = sign

    async with site.browser() as browser:
        assert_back(await sign_in(browser), "failed")
    assert await site.count("allim_accounts") == 0


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"aud": "another"},
        {"aud": []},
        {"aud": None},
        {"aud": [CLIENT_ID, "another"]},
        {"aud": [CLIENT_ID, "another"], "azp": "another"},
        {"azp": "another"},
        {"iss": "https://accounts.example.org"},
        {"iss": None},
        {"exp": 1},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": float("nan")},
        {"iat": None},
        {"iat": 4_000_000_000},
        {"nbf": 4_000_000_000},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "x" * 256},
        {"sub": "a\x00b"},
        {"at_hash": "of-another-access-token"},
    ],
    ids=str,
)
async def test_a_token_for_somebody_or_something_else_is_refused(site: Site, claims: dict[str, Any]) -> None:
    site.double.claims = claims

    async with site.browser() as browser:
        assert_back(await sign_in(browser), "failed")
    assert await site.count("allim_accounts") == 0


async def test_a_token_for_several_is_good_when_it_was_given_to_this_client(site: Site) -> None:
    site.double.claims = {"aud": ["another", CLIENT_ID], "azp": CLIENT_ID}

    async with site.browser() as browser:
        assert (await sign_in(browser)).headers["location"] == "/"


async def test_a_profile_of_somebody_else_is_refused(site: Site) -> None:
    site.double.person = {"sub": "jiwoo-1"}
    site.double.profile = {**JIWOO, "sub": "minsu-1"}

    async with site.browser() as browser:
        assert_back(await sign_in(browser), "failed")


@pytest.mark.parametrize(
    "person",
    [
        {"email": None, "email_verified": None},
        {"email_verified": False},
        {"email_verified": None},
        {"email_verified": "true"},
        {"email": "not an address"},
        {"email": 7},
    ],
    ids=str,
)
async def test_an_email_that_the_provider_did_not_verify_is_not_taken(site: Site, person: dict[str, Any]) -> None:
    site.double.person |= person

    async with site.browser() as browser:
        await sign_in(browser)
        account = (await browser.get("/api/accounts/me")).json()

    assert (account["email"], account["name"]) == (None, JIWOO["name"])


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"name": " 지우 "}, "지우"),
        ({"name": "\u202eevil\x00\n"}, "evil"),
        ({"name": "x" * 300}, "x" * 100),
        ({"name": None, "nickname": "우지"}, "우지"),
        ({"name": "\u200d", "nickname": "우지"}, "우지"),
        ({"name": 7}, "Google"),
        ({"name": None}, "Google"),
    ],
)
async def test_a_name_follows_the_rules_of_names(site: Site, said: dict[str, Any], kept: str) -> None:
    site.double.person |= said

    async with site.browser() as browser:
        await sign_in(browser)

        assert (await browser.get("/api/accounts/me")).json()["name"] == kept


# Accounts


async def test_an_address_with_a_password_is_not_taken_over(both: Site) -> None:
    async with both.browser() as owner, both.browser() as stranger:
        await owner.post("/api/accounts", json=PASSWORD)

        assert_back(await sign_in(stranger), "email_taken")
    assert (await both.count("allim_accounts"), await both.count("allim_accounts_identities")) == (1, 0)
    assert len(both.snapshots.requested) == 1


async def test_where_registration_is_closed_a_provider_makes_no_account_and_known_persons_sign_in(both: Site) -> None:
    async with both.browser() as known, both.browser() as again, both.browser() as stranger:
        await sign_in(known)
        both.service.registration = "closed"
        assert (await sign_in(again)).headers["location"] == "/"
        both.double.person |= {"sub": "somebody-new", "email": "new@example.com"}
        assert_back(await sign_in(stranger), "closed")
    assert (await both.count("allim_accounts"), await both.count("allim_accounts_identities")) == (1, 1)


async def test_an_account_without_a_password_is_not_signed_in_to_with_one(both: Site) -> None:
    async with both.browser() as browser:
        await sign_in(browser)
        for password in ("", "nobody", "correct horse"):
            response = await browser.post("/api/session", json={"email": JIWOO["email"], "password": password})
            assert_problem(response, 401, "unauthenticated")

        unknown = await browser.post("/api/session", json={"email": "nobody@example.com", "password": "x"})
    assert unknown.text == response.text


async def test_two_sign_ins_of_one_new_person_make_one_account(both: Site) -> None:
    async with both.browser() as one, both.browser() as other:
        addresses = [await come_back_to(browser) for browser in (one, other)]
        answers = await asyncio.gather(one.get(addresses[0]), other.get(addresses[1]))

    assert [answer.headers["location"] for answer in answers] == ["/", "/"]
    subjects = {(await TOKENS.verify(answer.cookies["allim_session"])).subject for answer in answers}
    assert len(subjects) == 1
    assert (await both.count("allim_accounts"), await both.count("allim_accounts_identities")) == (1, 1)
    assert len(both.snapshots.requested) == 1


async def test_people_without_an_email_do_not_collide(both: Site) -> None:
    for subject in ("a", "b"):
        both.double.person = {"sub": subject}
        async with both.browser() as browser:
            assert (await sign_in(browser)).headers["location"] == "/"

    assert await both.count("allim_accounts") == 2


# Outages


@pytest.mark.parametrize(
    "trouble", ["hangs", "fails", "redirects", "is a web page", "is a list", "is huge", "is empty"]
)
async def test_no_sign_in_begins_while_the_provider_does_not_answer(
    sqlite: AsyncEngine, double: ProviderDouble, trouble: str
) -> None:
    double.trouble = {DISCOVERY: trouble}

    async with Site(sqlite, double) as site, site.browser() as browser:
        assert_problem(await browser.get(f"{PATH}/google"), 503, "unavailable")
        double.trouble.clear()
        assert (await sign_in(browser)).headers["location"] == "/"
    assert double.times_asked("/elsewhere") == 0


@pytest.mark.parametrize(
    ("path", "trouble", "outcome"),
    [
        ("/token", "hangs", "unavailable"),
        ("/token", "fails", "unavailable"),
        ("/token", "is busy", "unavailable"),
        ("/token", "redirects", "unavailable"),
        ("/token", "is a web page", "unavailable"),
        ("/token", "is huge", "unavailable"),
        ("/token", "refuses with 200", "failed"),
        ("/token", "is empty", "failed"),
        ("/jwks", "hangs", "unavailable"),
        ("/jwks", "fails", "unavailable"),
        ("/profile", "hangs", "unavailable"),
        ("/profile", "fails", "unavailable"),
        ("/profile", "is empty", "failed"),
    ],
)
async def test_trouble_on_the_way_back_is_told(
    sqlite: AsyncEngine, double: ProviderDouble, path: str, trouble: str, outcome: str
) -> None:
    double.trouble = {path: trouble}
    double.person = {"sub": "jiwoo-1"}  # too little, so the profile is asked

    async with Site(sqlite, double) as site, site.browser() as browser:
        with capture_logs() as logs:
            assert_back(await sign_in(browser), outcome)
        assert await site.count("allim_accounts") == 0
    for secret in ("code-0", "access-jiwoo-1", CLIENT_SECRET, "<secret>"):
        assert secret not in str(logs)
    assert double.times_asked("/elsewhere") == 0


async def test_the_log_names_the_error_with_which_a_code_was_refused(site: Site) -> None:
    async with site.browser() as browser:
        with capture_logs() as logs:
            address = await come_back_to(browser)
            site.double.codes.clear()
            await browser.get(address)
            site.double.trouble = {"/token": "refuses with 200"}
            await sign_in(browser)

    assert [entry["reason"] for entry in logs if "reason" in entry] == [
        "The provider refused the code (invalid_grant).",
        "The provider refused the code (invalid_request).",
    ]


@pytest.mark.parametrize(
    "document",
    [
        {"issuer": "https://accounts.example.org"},
        {"issuer": None},
        {"token_endpoint": None},
        {"token_endpoint": "http://accounts.example.org/token"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"jwks_uri": "http://10.0.0.1/jwks"},
        {"jwks_uri": "http://[/"},
        {"userinfo_endpoint": 7},
    ],
    ids=str,
)
async def test_a_discovery_document_that_cannot_be_trusted_is_refused(site: Site, document: dict[str, Any]) -> None:
    site.double.document = document

    async with site.browser() as browser:
        assert_problem(await browser.get(f"{PATH}/google"), 503, "unavailable")


@pytest.mark.parametrize("issuer", ["http://accounts.example.org", "http://10.0.0.1", "ftp://127.0.0.1", "https://"])
async def test_an_issuer_must_be_safe(issuer: str) -> None:
    async with back_channel() as http:
        with pytest.raises(ValueError, match="must be https"):
            Provider("google", issuer, CLIENT_ID, CLIENT_SECRET, http)


async def test_discovery_is_asked_once_by_a_crowd_and_again_after_an_hour(site: Site) -> None:
    async with site.browser() as browser:
        await asyncio.gather(*(browser.get(f"{PATH}/google") for _ in range(8)))
        assert site.double.times_asked(DISCOVERY) == 1
        site.clock.advance(3601)
        await browser.get(f"{PATH}/google")
        assert site.double.times_asked(DISCOVERY) == 2


async def test_a_crowd_waits_for_a_silent_provider_together(sqlite: AsyncEngine, double: ProviderDouble) -> None:
    double.trouble = {DISCOVERY: "hangs"}

    async with Site(sqlite, double) as site, site.browser() as browser:
        started_at = time.monotonic()
        answers = await asyncio.gather(*(browser.get(f"{PATH}/google") for _ in range(8)))

    assert {answer.status_code for answer in answers} == {503}
    assert time.monotonic() - started_at < 4 * PATIENCE_S


# A real replica


async def test_over_a_real_replica_a_browser_ends_with_a_session_and_a_stream(double: ProviderDouble) -> None:
    port = lasting_port()
    with (
        replica(
            port=port,
            public_url=f"http://127.0.0.1:{port}",
            google_client_id=CLIENT_ID,
            google_client_secret=CLIENT_SECRET,
            google_issuer=double.issuer,
        ) as running,
        httpx.Client(follow_redirects=True, base_url=running.url) as browser,
    ):
        assert browser.get(PATH).json() == {"providers": ["google"], "registration": "open"}
        home = browser.get(f"{PATH}/google")
        account = browser.get("/api/accounts/me").json()
        async with await Reader.open(running.url, browser.cookies["allim_session"]) as stream:
            await stream.next("stream.open")
            running.publish((f"user:{account['id']}", "greeting", {"to": account["name"]}))
            greeting = await stream.next("greeting")

        log = running.log.read_text()

    assert home.url.path == "/"
    assert not home.url.query
    assert greeting.data == {"to": JIWOO["name"]}
    for secret in ("code-0", "access-jiwoo-1", CLIENT_SECRET, browser.cookies["allim_session"]):
        assert secret not in log


def test_the_settings_name_every_provider() -> None:
    assert tuple(DIALECTS) == PROVIDERS
