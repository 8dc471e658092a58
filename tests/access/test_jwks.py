import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from harness.waiting import until
from structlog.testing import capture_logs

from allim.access.jwks import Jwks, parse
from allim.errors import Unavailable
from tests.access.issuers import (
    SIGNING_KEYS,
    URL,
    Clock,
    KeyServer,
    SigningKey,
    ec_key,
    ed_key,
    jwk,
    jwk_set,
    refused,
    rsa_key,
)

pytestmark = pytest.mark.anyio

OLD = jwk_set(jwk(ec_key("old"), "old"))
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

ROTATED = jwk_set(jwk(ec_key("old"), "old"), jwk(ec_key("new"), "new"))


@asynccontextmanager
async def open_jwks(server: KeyServer, **options: Any) -> AsyncIterator[Jwks]:
    async with server.client() as client:
        jwks = Jwks(URL, client, **options)
        try:
            yield jwks
        finally:
            await jwks.close()


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[str]:
    """A server on a real socket; the address of its keys."""
    connections: set[asyncio.Task[Any]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task())  # type: ignore[arg-type] # we are in one
        with suppress(asyncio.CancelledError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections)


def same(found: SigningKey | None, expected: SigningKey) -> bool:
    return found is not None and found.thumbprint() == expected.thumbprint()


# Which keys are taken -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alg", SIGNING_KEYS)
async def test_a_key_is_found_by_its_name_and_serves_its_algorithm_alone(alg: str) -> None:
    server = KeyServer(jwk_set(jwk(SIGNING_KEYS[alg](), "k1", use="sig", alg=alg, key_ops=["verify"], x5c="odd")))

    async with open_jwks(server) as jwks:
        assert same(await jwks.key("k1", alg), SIGNING_KEYS[alg]())
        for other in {*SIGNING_KEYS, "HS256", "none"} - {alg}:
            assert await jwks.key("k1", other) is None


async def test_without_a_name_the_only_key_for_the_algorithm_is_meant() -> None:
    server = KeyServer(jwk_set(jwk(rsa_key()), jwk(ec_key("a"), "a"), jwk(ec_key("b"), "b")))

    async with open_jwks(server) as jwks:
        assert same(await jwks.key(None, "RS256"), rsa_key())
        assert await jwks.key(None, "ES256") is None


@pytest.mark.parametrize(
    "unusable",
    [
        jwk(rsa_key(), "x", use="enc"),
        jwk(rsa_key(), "x", use=None),
        jwk(rsa_key(), "x", alg="RS512"),
        jwk(rsa_key(), "x", alg="HS256"),
        jwk(rsa_key(), "x", key_ops=["encrypt"]),
        jwk(rsa_key(), "x", key_ops="verify"),
        jwk(rsa_key("weak", 1024), "x"),
        jwk(rsa_key(), "x", n="AQ" * 2000),
        jwk(rsa_key(), "x", n="***"),
        jwk(rsa_key(), "x", n=7),
        jwk(rsa_key(), "x", e="AQ"),
        {"kty": "RSA", "kid": "x"},
        jwk(ec_key(), "x", alg="RS256"),
        jwk(ec_key(), "x", y="AQ"),
        jwk(ec_key("p384", "P-384"), "x"),
        jwk(ed_key("ed448", "Ed448"), "x"),
        jwk(ed_key("x25519", "X25519"), "x"),
        jwk(ed_key(), "x", x="AQ"),
        jwk(ed_key()) | {"kid": 7},
        {"kty": "oct", "kid": "x", "k": "c2VjcmV0" * 8, "alg": "RS256"},
        {"kty": ["RSA"]},
        "x",
        None,
    ],
)
def test_keys_that_cannot_be_used_are_passed_over(unusable: object) -> None:
    assert set(parse(jwk_set(unusable, jwk(ec_key(), "good")))) == {("good", "ES256")}
    with pytest.raises(ValueError, match="usable"):
        parse(jwk_set(unusable))


def test_a_private_part_published_by_mistake_is_not_read() -> None:
    (key,) = parse(jwk_set({**rsa_key().as_dict(private=True), "kid": "k1"})).values()

    assert not key.is_private


def test_of_two_keys_with_one_name_the_first_is_taken() -> None:
    keys = parse(jwk_set(jwk(ec_key("a"), "k"), jwk(ec_key("b"), "k"), jwk(ed_key(), "k")))

    assert same(keys["k", "ES256"], ec_key("a"))
    assert same(keys["k", "EdDSA"], ed_key())


# When they are fetched ----------------------------------------------------------------------------------------------


async def test_nothing_is_fetched_before_it_is_needed() -> None:
    server = KeyServer(OLD)

    async with open_jwks(server):
        pass

    assert not server.requests


async def test_the_keys_come_over_a_connection_that_ends_with_their_holder() -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(OLD) + OLD)
        await reader.read()
        ended.set()

    async with listening(serve) as url:
        jwks = Jwks(url)
        assert same(await jwks.key("old", "ES256"), ec_key("old"))
        assert not ended.is_set()

        await jwks.close()
        await asyncio.wait_for(ended.wait(), 5)


async def test_a_hundred_who_need_a_key_share_one_fetch() -> None:
    server = KeyServer(OLD)

    async with open_jwks(server, floor_s=0) as jwks:
        found = await asyncio.gather(*(jwks.key("old", "ES256") for _ in range(100)))

    assert all(found)
    assert len(server.requests) == 1


async def test_who_stops_waiting_stops_nobody_else() -> None:
    async with open_jwks(KeyServer(OLD)) as jwks:
        impatient, patient = (asyncio.create_task(jwks.key("old", "ES256")) for _ in range(2))
        await asyncio.sleep(0)  # both wait now
        impatient.cancel()

        assert await patient
        assert impatient.cancelled()


async def test_an_old_set_serves_while_a_new_one_is_fetched_in_the_background() -> None:
    server, clock = KeyServer(OLD), Clock(0)

    async with open_jwks(server, max_age_s=3600, now=clock) as jwks:
        await jwks.key("old", "ES256")
        clock.at = 3600
        await jwks.key("old", "ES256")
        for _ in range(50):
            await asyncio.sleep(0)  # enough for a fetch, if there were one
        assert len(server.requests) == 1

        clock.at, server.answer = 3601, jwk_set(jwk(ec_key("new"), "new"))
        assert await jwks.key("old", "ES256")
        assert len(server.requests) == 1  # it was answered before the new set was asked for

        assert await jwks.key("new", "ES256")
        assert await jwks.key("old", "ES256") is None  # withdrawn
        assert len(server.requests) == 2


async def test_a_new_key_works_at_once_but_invented_names_cost_one_fetch_per_floor() -> None:
    server, clock = KeyServer(OLD), Clock(0)

    async with open_jwks(server, floor_s=30, now=clock) as jwks:
        await jwks.key("old", "ES256")
        clock.at, server.answer = 30, ROTATED
        assert await jwks.key("new", "ES256")
        assert len(server.requests) == 2

        for name in range(300):
            clock.at = 30 + name / 10
            assert await jwks.key(f"invented-{name}", "ES256") is None
        assert len(server.requests) == 2
        clock.at = 60
        await asyncio.gather(*(jwks.key(f"invented-{name}", "ES256") for name in range(100)))
        assert len(server.requests) == 3


# When they cannot be fetched ----------------------------------------------------------------------------------------


def status(code: int, **headers: str) -> Callable[[], httpx.Response]:
    raw = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda: httpx.Response(code, headers=raw, content=ROTATED)


def compressed() -> httpx.Response:
    return httpx.Response(200, headers={"content-encoding": "gzip"}, content=gzip.compress(ROTATED))


def broken() -> httpx.Response:
    raise RuntimeError("nobody foresaw this")


FAILURES: list[bytes | Callable[[], httpx.Response]] = [
    refused,
    broken,
    compressed,
    status(500),
    status(204),
    status(302, location=URL),
    b"",
    b"<html>",
    b"\xff\xfe\xfd",
    b"[]",
    b"{}",
    b'{"keys": {}}',
    b'{"keys": []}',
    b"[" * 100_000,
    b'{"keys": [], "n": ' + b"9" * 10_000 + b"}",
    ROTATED[:-1] + b" " * 256 * 1024 + b"}",
]


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_failure_is_told_once_and_the_old_set_goes_on_serving(
    failure: bytes | Callable[[], httpx.Response],
) -> None:
    server, clock, counted = KeyServer(OLD), Clock(0), []

    async with open_jwks(server, now=clock, on_failure=lambda: counted.append(clock.at)) as jwks:
        await jwks.key("old", "ES256")
        clock.at, server.answer = 4000, failure
        with capture_logs() as logs:
            assert await jwks.key("old", "ES256")
            await until(lambda: counted)
            assert await jwks.key("old", "ES256")
            with pytest.raises(Unavailable):  # it may be a new key
                await jwks.key("new", "ES256")

        assert [entry["log_level"] for entry in logs] == ["error" if failure is broken else "warning"]
        assert counted == [4000]
        clock.at, server.answer = 4030, ROTATED
        assert await jwks.key("new", "ES256")
        assert await jwks.key("invented", "ES256") is None


@pytest.mark.parametrize("failure", FAILURES)
async def test_where_no_keys_were_ever_read_nobody_is_told_that_the_token_is_wrong(
    failure: bytes | Callable[[], httpx.Response],
) -> None:
    server, clock = KeyServer(failure), Clock(0)

    async with open_jwks(server, floor_s=30, now=clock) as jwks:
        with pytest.raises(Unavailable, match="keys of the token's issuer") as first:
            await jwks.key("old", "ES256")
        clock.at = 29.5
        with pytest.raises(Unavailable) as second:
            await jwks.key("old", "ES256")
        assert (first.value.retry_after_s, second.value.retry_after_s) == (30, 1)
        assert len(server.requests) == 1  # a failing fetch counts, too

        clock.at, server.answer = 30, OLD
        assert await jwks.key("old", "ES256")


async def test_a_redirect_is_not_followed_whatever_the_client_does_by_itself() -> None:
    server = KeyServer(status(302, location="http://169.254.169.254/"))

    async with server.client(follow_redirects=True) as client:
        with pytest.raises(Unavailable):
            await Jwks(URL, client).key("old", "ES256")

    assert [str(request.url) for request in server.requests] == [URL]


async def test_no_more_than_the_bound_is_read() -> None:
    chunks = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal chunks
        while True:
            chunks += 1
            yield b" " * 65536

    async with open_jwks(KeyServer(lambda: httpx.Response(200, content=endless()))) as jwks:
        with pytest.raises(Unavailable):
            await jwks.key("old", "ES256")

    assert chunks == 5


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("serve", [say_nothing, trickle])
async def test_an_issuer_that_hangs_is_given_up_and_the_loop_turns_meanwhile(serve: Serve) -> None:
    async with listening(serve) as url, httpx.AsyncClient() as client:
        jwks = Jwks(url, client, timeout_s=0.2)
        asking = asyncio.create_task(jwks.key("old", "ES256"))
        turns = 0
        with capture_logs() as logs:
            while not asking.done():
                await asyncio.sleep(0.01)
                turns += 1

        assert turns >= 5
        assert [(entry["log_level"], entry["error"]) for entry in logs] == [("warning", "TimeoutError")]
        with pytest.raises(Unavailable):
            await asking


async def test_the_loop_turns_while_a_large_set_is_read() -> None:
    key = jwk(rsa_key())
    server = KeyServer(jwk_set(*({**key, "kid": str(number)} for number in range(600))))

    async with open_jwks(server) as jwks:
        asking = asyncio.create_task(jwks.key("599", "RS256"))
        turns = 0
        while not asking.done():
            await asyncio.sleep(0.002)
            turns += 1

    assert asking.result()
    assert turns >= 8  # and three, when it is read in the loop


async def test_closing_ends_a_fetch_and_answers_who_waits_for_it() -> None:
    async with listening(say_nothing) as url:
        jwks = Jwks(url, timeout_s=600)
        waiting = asyncio.create_task(jwks.key("old", "ES256"))
        await asyncio.sleep(0)  # it waits now

        await jwks.close()

        with pytest.raises(Unavailable):
            await waiting


async def test_after_closing_nothing_is_fetched_and_a_client_of_others_stays_open() -> None:
    server = KeyServer(OLD)

    async with server.client() as client:
        jwks = Jwks(URL, client)
        await jwks.close()
        with pytest.raises(Unavailable):
            await jwks.key("old", "ES256")

        assert not client.is_closed
    assert not server.requests
