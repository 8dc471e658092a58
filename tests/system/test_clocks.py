"""Replicas whose clocks are 90 s ahead and behind, over a Redis whose clock is stepped by an hour."""

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest
from harness.clocks import ShiftedRedis, WallClock, shifted_redis, wall_clock
from harness.replicas import Reader, Replica, bearer, launch_replica, publish, ticket, token
from harness.waiting import until

pytestmark = pytest.mark.anyio

AHEAD_S = {"right": 0.0, "ahead": 90.0, "behind": -90.0}
HOUR_S = 3600.0
PASSWORD = "correct horse battery"

_numbers = itertools.count(1)


@dataclass
class System:
    redis: ShiftedRedis
    replicas: dict[str, Replica]
    clocks: dict[str, WallClock]


@pytest.fixture(scope="module")
def started() -> Iterator[System]:
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="allim-clocks-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        redis = stack.enter_context(shifted_redis())
        clocks = {name: stack.enter_context(wall_clock(offset_s)) for name, offset_s in AHEAD_S.items()}
        replicas = {
            name: launch_replica(
                folder,
                environ=clock.environ,
                redis_url=redis.url,
                heartbeat_s=1,
                pulse_s=0.5,
                drain_s=0,
                address_calls_per_min=10_000,
                sign_in_tries_per_min=10_000,
            )
            for name, clock in clocks.items()
        }
        for running in replicas.values():
            stack.callback(running.end)
        for running in replicas.values():
            running.until_ready(60)
        yield System(redis, replicas, clocks)


@pytest.fixture
async def system(started: System) -> System:
    """Each clock as it was at the start, and every replica knows it."""
    started.redis.shift(0)
    for name, clock in started.clocks.items():
        clock.shift(AHEAD_S[name])
        await until(partial(_is_off_by, started.replicas[name], AHEAD_S[name]))
    return started


@dataclass
class Account:
    email: str
    id: str
    token: str


def register(at: Replica) -> Account:
    email = f"clock{next(_numbers)}@example.org"
    answer = httpx.post(
        f"{at.url}/api/accounts", json={"email": email, "name": "C", "password": PASSWORD}, timeout=15
    )
    assert answer.status_code == 201, answer.text
    body = answer.json()
    return Account(email, body["account"]["id"], body["token"])


def sign_in(at: Replica, who: Account) -> str:
    answer = httpx.post(f"{at.url}/api/session", json={"email": who.email, "password": PASSWORD}, timeout=15)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["token"])


def status(at: Replica, who: str) -> int:
    return httpx.get(f"{at.url}/api/accounts/me", headers=bearer(who), timeout=15).status_code


async def opened(at: Replica, who: str) -> Reader:
    stream = await Reader.open(at.url, who)
    assert stream.status == 200
    await stream.next("stream.open")
    return stream


PAIRS = [("ahead", "behind"), ("behind", "ahead"), ("right", "behind"), ("ahead", "right")]


@pytest.mark.parametrize(("issuer", "asked"), PAIRS)
async def test_a_sign_out_ends_the_session_whatever_clock_is_wrong(system: System, issuer: str, asked: str) -> None:
    who = register(system.replicas[issuer])
    async with await opened(system.replicas["right"], who.token) as stream:
        answer = httpx.delete(f"{system.replicas[asked].url}/api/session", headers=bearer(who.token), timeout=15)

        assert answer.status_code == 204
        assert (await stream.next("stream.close")).data["reason"] == "signed_out"
    assert [status(at, who.token) for at in system.replicas.values()] == [401] * 3


async def test_a_sign_out_ends_a_session_whose_token_seems_to_come_from_the_future(system: System) -> None:
    behind = system.replicas["behind"]
    who = token("of-the-future")
    system.clocks["behind"].shift(-HOUR_S)
    async with await opened(system.replicas["right"], who) as stream:
        assert status(behind, who) == 401

        assert httpx.delete(f"{behind.url}/api/session", headers=bearer(who), timeout=15).status_code == 204

        assert (await stream.next("stream.close")).data["reason"] == "signed_out"


@pytest.mark.parametrize("redis_s", [0.0, -HOUR_S, HOUR_S])
@pytest.mark.parametrize(("issuer", "asked"), PAIRS)
async def test_a_kick_ends_what_was_before_it_and_signing_in_again_works_at_once(
    system: System, issuer: str, asked: str, redis_s: float
) -> None:
    who = register(system.replicas[issuer])
    operator = bearer(token(f"operator-{next(_numbers)}", role="operator"))
    async with await opened(system.replicas["right"], who.token) as stream:
        system.redis.shift(redis_s)

        kicked = httpx.delete(
            f"{system.replicas[asked].url}/api/users/{who.id}/streams", headers=operator, timeout=15
        )

        assert kicked.status_code == 204, kicked.text
        assert (await stream.next("stream.close")).data["reason"] == "kicked"
    assert [status(at, who.token) for at in system.replicas.values()] == [401] * 3
    for at in system.replicas.values():
        again = sign_in(at, who)
        renewed = httpx.post(f"{at.url}/api/session/renew", headers=bearer(again), timeout=15).json()["token"]
        for there in system.replicas.values():
            assert (status(there, again), status(there, renewed)) == (200, 200)
            async with await opened(there, renewed):
                pass


@pytest.mark.parametrize(("issuer", "reader"), PAIRS)
async def test_a_ticket_is_good_where_the_clock_is_another_and_only_once(
    system: System, issuer: str, reader: str
) -> None:
    who = token(f"ticket-{next(_numbers)}")
    opener = ticket(system.replicas[issuer].url, who)

    async with await Reader.open(system.replicas[reader].url, "", query=f"?ticket={opener}") as stream:
        assert stream.status == 200
    for at in system.replicas.values():
        async with await Reader.open(at.url, "", query=f"?ticket={opener}") as again:
            assert again.status == 401


async def test_a_replica_whose_clock_is_stepped_ends_no_stream(system: System) -> None:
    right = system.replicas["right"]
    who = f"stepped-{next(_numbers)}"
    async with await opened(right, token(who, lifetime_s=1800)) as stream:
        for step_s in (HOUR_S, -HOUR_S):
            system.clocks["right"].shift(step_s)
            for _ in range(2):
                await stream.next("heartbeat")

            assert publish(system.replicas["ahead"].url, _event(who)).status_code == 202
            assert (await stream.next("t")).data == 1
        assert {message.type for message in stream.messages} == {"stream.open", "heartbeat", "t"}


async def test_a_rotated_publish_key_is_refused_everywhere_when_its_grace_is_over(system: System) -> None:
    ahead, behind = system.replicas["ahead"], system.replicas["behind"]
    operator = bearer(token(f"operator-{next(_numbers)}", role="operator"))
    grants = {"name": "clocks", "topics": ["*"], "types": ["*"]}
    created = httpx.post(f"{ahead.url}/api/keys", json=grants, headers=operator, timeout=15).json()
    old = bearer(created["key"])
    assert httpx.post(f"{behind.url}/api/publish", json=_event("x"), headers=old, timeout=15).status_code == 202

    rotation = f"{ahead.url}/api/keys/{created['id']}/rotation"
    assert httpx.post(rotation, json={"graceS": 0}, headers=operator, timeout=15).status_code == 201

    async def is_refused() -> bool:
        return httpx.post(f"{behind.url}/api/publish", json=_event("x"), headers=old, timeout=15).status_code == 401

    await until(is_refused)


async def test_how_far_a_clock_is_off_is_a_metric_and_a_warning(system: System) -> None:
    for name in ("ahead", "behind"):
        running = system.replicas[name]
        assert abs(running.metric("allim_clock_skew_seconds") - AHEAD_S[name]) < 3
        assert "clock differs from the broker's" in running.log.read_text()


async def test_snapshots_are_generated_while_clocks_differ_and_step(system: System) -> None:
    who = register(system.replicas["right"])
    for redis_s in (HOUR_S, -HOUR_S):
        system.redis.shift(redis_s)
        for at in system.replicas.values():
            asked = httpx.post(f"{at.url}/api/accounts/me/snapshots", headers=bearer(who.token), timeout=15)
            assert asked.status_code == 202, asked.text
            where = f"{at.url}{asked.headers['location']}"

            async def is_generated(where: str = where) -> bool:
                answer = httpx.get(where, headers=bearer(who.token), timeout=15)
                return bool(answer.json()["status"] == "generated")

            await until(is_generated)


def _event(who: str) -> dict[str, object]:
    return {"topic": f"user:{who}", "type": "t", "data": 1}


def _is_off_by(running: Replica, offset_s: float) -> bool:
    return abs(running.metric("allim_clock_skew_seconds") - offset_s) < 3
