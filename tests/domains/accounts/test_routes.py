import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import httpx
import pytest
from argon2 import PasswordHasher
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from structlog.testing import capture_logs

from allim.access.rates import Policy
from allim.domains import accounts
from allim.domains.accounts.models import NewAccount
from allim.domains.signals import ACCOUNT_CREATED, Signals
from allim.errors import TooMany
from allim.storage import open_engine, reading
from tests.access.gates import AMPLE, TOKENS, gate_of
from tests.domains.fakes import RecordingHub
from tests.http.apps import assert_problem, client_of

pytestmark = pytest.mark.anyio

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
JIWOO = {"email": "jiwoo@example.com", "name": "지우", "password": "correct horse"}


class FirstSnapshots(Signals):
    """Notes the accounts that are created, and whether the account was there at that moment."""

    def __init__(self) -> None:
        super().__init__()
        self.on(ACCOUNT_CREATED, self.request_in)
        self.requested: list[str] = []
        self.fails = False

    async def request_in(self, connection: AsyncConnection, account_id: str) -> None:
        if self.fails:
            raise RuntimeError("no snapshot")
        query = text("SELECT count(*) FROM allim_accounts WHERE id = :id")
        found = await connection.scalar(query, {"id": account_id})
        assert found == 1
        self.requested.append(account_id)


@pytest.fixture
def snapshots() -> FirstSnapshots:
    return FirstSnapshots()


@pytest.fixture
async def client(
    engine: AsyncEngine, hub: RecordingHub, snapshots: FirstSnapshots
) -> AsyncIterator[httpx.AsyncClient]:
    passwords = accounts.Passwords(CHEAP)
    service = accounts.Service(engine, TOKENS, passwords, snapshots, hub)
    async with client_of(accounts.routes(service, gate_of(), TOKENS, AMPLE)) as client:
        yield client


async def count(engine: AsyncEngine) -> int:
    async with reading(engine) as connection:
        return await connection.scalar(text("SELECT count(*) FROM allim_accounts")) or 0


async def test_registering_stores_signs_in_and_asks_for_the_first_snapshot(
    client: httpx.AsyncClient, snapshots: FirstSnapshots
) -> None:
    response = await client.post("/api/accounts", json={**JIWOO, "email": " JiWoo@Example.COM "})

    account = response.json()["account"]
    assert response.status_code == 201
    assert response.headers["location"] == "/api/accounts/me"
    assert set(account) == {"id", "email", "name", "createdAt", "hasPassword"}
    assert account["hasPassword"] is True
    assert (account["email"], account["name"]) == ("jiwoo@example.com", "지우")
    assert account["createdAt"].endswith("Z")
    assert (await TOKENS.verify(response.json()["token"])).subject == account["id"]
    assert response.cookies["allim_session"] == response.json()["token"]
    assert (await client.get("/api/accounts/me")).json() == account
    assert snapshots.requested == [account["id"]]


async def test_where_registration_is_closed_no_account_is_made_and_those_there_are_sign_in(
    engine: AsyncEngine, hub: RecordingHub, snapshots: FirstSnapshots, client: httpx.AsyncClient
) -> None:
    await client.post("/api/accounts", json=JIWOO)
    service = accounts.Service(engine, TOKENS, accounts.Passwords(CHEAP), snapshots, hub, registration="closed")
    async with client_of(accounts.routes(service, gate_of(), TOKENS, AMPLE)) as closed:
        refused = await closed.post("/api/accounts", json={**JIWOO, "email": "new@example.com"})
        known = await closed.post("/api/session", json={"email": JIWOO["email"], "password": JIWOO["password"]})

    assert_problem(refused, 403, "registration_closed")
    assert known.status_code == 200
    assert await count(engine) == 1


async def test_an_address_makes_so_many_accounts(
    engine: AsyncEngine, hub: RecordingHub, snapshots: FirstSnapshots
) -> None:
    service = accounts.Service(engine, TOKENS, accounts.Passwords(CHEAP), snapshots, hub)
    limit = Policy("accounts", 2, 3600)
    async with client_of(accounts.routes(service, gate_of(), TOKENS, limit)) as client:
        malformed = await client.post("/api/accounts", json={**JIWOO, "email": "nobody"})
        answers = [
            await client.post("/api/accounts", json={**JIWOO, "email": f"a{number}@example.com"})
            for number in range(3)
        ]
        signed_in = await client.post("/api/session", json={"email": "a0@example.com", "password": JIWOO["password"]})

    assert malformed.status_code == 422
    assert [answer.status_code for answer in answers] == [201, 201, 429]
    assert signed_in.status_code == 200
    assert await count(engine) == 2


async def test_the_cookie_has_its_flags(client: httpx.AsyncClient) -> None:
    plain = await client.post("/api/accounts", json=JIWOO)
    secure = await client.post("https://test/api/session", json={k: JIWOO[k] for k in ("email", "password")})

    assert {"HttpOnly", "SameSite=lax", "Path=/", "Max-Age=3600"} <= set(plain.headers["set-cookie"].split("; "))
    assert "Secure" not in plain.headers["set-cookie"]
    assert "Secure" in secure.headers["set-cookie"].split("; ")
    assert plain.headers["cache-control"] == "no-store"


async def test_the_password_is_not_stored(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    await client.post("/api/accounts", json=JIWOO)

    async with reading(engine) as connection:
        row = (await connection.execute(text("SELECT * FROM allim_accounts"))).one()
    assert row.password_hash.startswith("$argon2id$")
    assert JIWOO["password"] not in str(row)


@pytest.mark.parametrize("email", [JIWOO["email"], "JIWOO@example.com"])
async def test_an_address_is_taken_once(client: httpx.AsyncClient, engine: AsyncEngine, email: str) -> None:
    await client.post("/api/accounts", json=JIWOO)

    assert_problem(await client.post("/api/accounts", json={**JIWOO, "email": email}), 409, "conflict", "email")
    assert await count(engine) == 1


async def test_an_address_is_taken_once_also_in_a_race(
    client: httpx.AsyncClient, engine: AsyncEngine, snapshots: FirstSnapshots
) -> None:
    responses = await asyncio.gather(*(client.post("/api/accounts", json=JIWOO) for _ in range(5)))

    assert sorted(response.status_code for response in responses) == [201, 409, 409, 409, 409]
    for response in responses:
        if response.status_code == 409:
            assert_problem(response, 409, "conflict", "email")
    assert await count(engine) == 1
    assert len(snapshots.requested) == 1


async def test_without_its_snapshot_there_is_no_account(
    client: httpx.AsyncClient, engine: AsyncEngine, snapshots: FirstSnapshots
) -> None:
    snapshots.fails = True

    with capture_logs():
        assert_problem(await client.post("/api/accounts", json=JIWOO), 500, "internal")
    assert await count(engine) == 0
    assert snapshots.requested == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"email": "jiwoo"}, "email"),
        ({"email": "a@b@c"}, "email"),
        ({"email": "@example.com"}, "email"),
        ({"email": "a@"}, "email"),
        ({"email": "a@b..c"}, "email"),
        ({"email": "a b@example.com"}, "email"),
        ({"email": "a\x00@example.com"}, "email"),
        ({"email": "a\u202e@example.com"}, "email"),
        ({"email": "a@" + "b" * 253}, "email"),
        ({"email": "a" * 65 + "@b"}, "email"),
        ({"email": 7}, "email"),
        ({"name": ""}, "name"),
        ({"name": " \u200d "}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "\u202eevil"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": None}, "name"),
        ({"password": "seven77"}, "password"),
        ({"password": "x" * 1025}, "password"),
        ({"password": 12345678}, "password"),
        ({"admin": True}, "admin"),
    ],
)
async def test_wrong_fields_are_named(client: httpx.AsyncClient, change: dict[str, object], field: str) -> None:
    response = await client.post("/api/accounts", json={**JIWOO, **change})

    assert_problem(response, 422, "invalid", field)
    if isinstance(change.get("password"), str):
        assert str(change["password"]) not in response.text


@pytest.mark.parametrize("email", ["ü@müller.example", "a+b@c", "o'brien@example.com", "a" * 64 + "@example.com"])
@pytest.mark.parametrize("name", ["👩‍👩‍👧", "x" * 100, "می‌خواهم"])
async def test_unusual_people_are_welcome(client: httpx.AsyncClient, email: str, name: str) -> None:
    response = await client.post("/api/accounts", json={**JIWOO, "email": email, "name": name})

    assert response.status_code == 201
    assert (response.json()["account"]["email"], response.json()["account"]["name"]) == (email, name)


async def test_letters_that_only_look_alike_are_other_people(client: httpx.AsyncClient) -> None:
    for email in ("strasse@example.com", "straße@example.com", "mike@example.com", "mıke@example.com"):
        assert (await client.post("/api/accounts", json={**JIWOO, "email": email})).status_code == 201


@pytest.mark.parametrize(("method", "path"), [("POST", "/api/accounts"), ("POST", "/api/session")])
async def test_malformed_bodies_are_refused_on_every_route(client: httpx.AsyncClient, method: str, path: str) -> None:
    json_type = {"Content-Type": "application/json"}

    assert_problem(await client.request(method, path, content=b"{", headers=json_type), 422, "invalid", "body")
    assert_problem(await client.request(method, path, headers=json_type), 422, "invalid", "body")
    assert_problem(await client.request(method, path, content=b"[]", headers=json_type), 422, "invalid", "body")
    form = await client.request(method, path, data={"email": "a"})
    assert_problem(form, 415, "unsupported_media_type", "Content-Type")
    large = await client.request(method, path, content=b" " * 20_000, headers=json_type)
    assert_problem(large, 413, "too_large", "body")
    assert_problem(await client.request("PUT", path), 405, "method_not_allowed")


async def test_signing_in_opens_a_new_session(client: httpx.AsyncClient) -> None:
    registered = await client.post("/api/accounts", json=JIWOO)
    response = await client.post("/api/session", json={"email": "JIWOO@example.com ", "password": JIWOO["password"]})

    assert response.status_code == 200
    assert response.json()["account"] == registered.json()["account"]
    assert response.cookies["allim_session"] == response.json()["token"]
    sessions = {(await TOKENS.verify(answer.json()["token"])).session for answer in (registered, response)}
    assert len(sessions) == 2


async def test_whatever_is_wrong_gets_the_same_answer(client: httpx.AsyncClient) -> None:
    await client.post("/api/accounts", json=JIWOO)
    client.cookies.clear()

    answers = [
        await client.post("/api/session", json={"email": email, "password": password})
        for email, password in [
            (JIWOO["email"], "wrong horse"),
            ("nobody@example.com", JIWOO["password"]),
            ("nobody@example.com", "nobody"),
            ("not an address", "x"),
            (JIWOO["email"], ""),
            ("a\x00@b", "x" * 1024),
        ]
    ]

    for answer in answers:
        assert_problem(answer, 401, "unauthenticated")
        assert "set-cookie" not in answer.headers
    assert len({answer.text for answer in answers}) == 1


async def test_an_unknown_address_costs_as_much_as_a_known_one() -> None:
    verified: list[str] = []

    class Counting(PasswordHasher):
        def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:  # noqa: A002
            verified.append(str(hash))
            return super().verify(hash, password)

    passwords = accounts.Passwords(Counting(time_cost=1, memory_cost=8, parallelism=1))

    assert await passwords.verify(None, "nobody") is False
    assert await passwords.verify(await passwords.hash("x"), "y") is False
    assert await passwords.verify("not a hash", "y") is False
    assert await passwords.verify(await passwords.hash("x"), "x") is True
    assert len(verified) == 4
    assert verified[0].partition("m=")[2][:10] == verified[1].partition("m=")[2][:10]


async def test_a_hash_made_with_older_parameters_is_renewed_at_sign_in(
    client: httpx.AsyncClient, engine: AsyncEngine, hub: RecordingHub, snapshots: FirstSnapshots
) -> None:
    await client.post("/api/accounts", json=JIWOO)
    stronger = accounts.Passwords(PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))
    service = accounts.Service(engine, TOKENS, stronger, snapshots, hub)

    await service.sign_in(JIWOO["email"], JIWOO["password"])

    async with reading(engine) as connection:
        renewed = await connection.scalar(text("SELECT password_hash FROM allim_accounts"))
    assert renewed is not None
    assert not stronger.is_outdated(renewed)
    assert await stronger.verify(renewed, JIWOO["password"])


async def test_signing_out_ends_this_sessions_streams_and_clears_the_cookie(
    client: httpx.AsyncClient, hub: RecordingHub
) -> None:
    identity = await TOKENS.verify((await client.post("/api/accounts", json=JIWOO)).json()["token"])

    response = await client.delete("/api/session")

    assert response.status_code == 204
    assert "Max-Age=0" in response.headers["set-cookie"]
    assert hub.ended == [(identity.subject, identity.session)]
    assert_problem(await client.get("/api/accounts/me"), 401, "unauthenticated")


async def test_signing_out_twice_is_fine(client: httpx.AsyncClient, hub: RecordingHub) -> None:
    response = await client.delete("/api/session", headers={"Cookie": "allim_session=expired"})

    assert response.status_code == 204
    assert "Max-Age=0" in response.headers["set-cookie"]
    assert hub.ended == []


async def test_a_sign_out_that_reached_nobody_says_so(client: httpx.AsyncClient, hub: RecordingHub) -> None:
    await client.post("/api/accounts", json=JIWOO)
    hub.is_down = True

    response = await client.delete("/api/session")

    assert_problem(response, 503, "unavailable")
    assert "set-cookie" not in response.headers


async def test_an_identity_without_account_is_told(client: httpx.AsyncClient) -> None:
    bearer = {"Authorization": f"Bearer {TOKENS.issue('service-made')}"}

    assert_problem(await client.get("/api/accounts/me", headers=bearer), 404, "not_found")
    assert_problem(await client.get("/api/accounts/me"), 401, "unauthenticated")


async def test_a_profile_is_what_the_owner_sees(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    account = (await client.post("/api/accounts", json=JIWOO)).json()["account"]
    del account["hasPassword"]

    assert await accounts.profile(engine, account["id"]) == account
    assert await accounts.profile(engine, "nobody") is None


async def test_without_the_database_nothing_is_promised(hub: RecordingHub, snapshots: FirstSnapshots) -> None:
    away = open_engine("postgresql://nobody:hunter2@127.0.0.1:1/none")
    service = accounts.Service(away, TOKENS, accounts.Passwords(CHEAP), snapshots, hub)

    async with client_of(accounts.routes(service, gate_of(), TOKENS, AMPLE)) as client:
        with capture_logs():
            response = await client.post("/api/accounts", json=JIWOO)

    assert_problem(response, 503, "unavailable")
    assert int(response.headers["retry-after"]) > 0
    assert "hunter2" not in response.text
    assert snapshots.requested == []


@pytest.mark.parametrize("written", [" jiwoo@example.com", "JIWOO@example.com\t", "jiwoo@EXAMPLE.com "])
async def test_an_address_written_in_another_way_is_no_further_try(
    engine: AsyncEngine, hub: RecordingHub, snapshots: FirstSnapshots, written: str
) -> None:
    service = accounts.Service(engine, TOKENS, accounts.Passwords(CHEAP), snapshots, hub)
    gate = gate_of(sign_in_tries=Policy("sign-in", 1, 60))

    async with client_of(accounts.routes(service, gate, TOKENS, AMPLE)) as client:
        await client.post("/api/session", json={"email": JIWOO["email"], "password": "wrong"})
        response = await client.post("/api/session", json={"email": written, "password": "wrong"})

    assert_problem(response, 429, "too_many")


async def test_without_a_turn_nothing_is_looked_up_or_hashed(hub: RecordingHub, snapshots: FirstSnapshots) -> None:
    away = open_engine("postgresql://nobody:hunter2@127.0.0.1:1/none")
    service = accounts.Service(away, TOKENS, accounts.Passwords(CHEAP), snapshots, hub)

    @asynccontextmanager
    async def no_turn() -> AsyncIterator[None]:
        raise TooMany("not now", 1)
        yield

    with pytest.raises(TooMany):
        await service.sign_in(JIWOO["email"], JIWOO["password"], no_turn)
    with pytest.raises(TooMany):
        await service.register(NewAccount(**JIWOO), no_turn)
