"""Connections to the Redis process that is the master now.

All other modules of this package get their connections here, each with the run ID of its Redis process. A TCP
connection never moves to another process, so the run ID is right for as long as the connection lives.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import structlog
from hiredis import pack_command
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio import ConnectionPool, Sentinel
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from allim.brokers.redis.rights import Rights

log = structlog.get_logger(__name__)

SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
SENTINEL_PORT = 26379
ANSWER_TIMEOUT_S = 5.0  # for any one answer of Redis
SENTINEL_TIMEOUT_S = 1.0  # the next one is asked then


class Sentinels(NamedTuple):
    """The parts of a URL `redis+sentinel://[user:password@]host[:port],…/service[/database]`.

    Shape: `?sentinel_username=` and `?sentinel_password=` are for the sentinels; user and password for Redis.
    """

    addresses: tuple[tuple[str, int], ...]
    service: str
    tls: bool
    redis: Mapping[str, Any]
    sentinel: Mapping[str, str]


class Connected(NamedTuple):
    """A connection, and the run ID of the Redis process it leads to."""

    connection: AbstractConnection
    run_id: str


class RedisServer:
    """The Redis of a URL: one address, or the master that the sentinels name."""

    def __init__(self, url: str, client_name: str, rights: Rights) -> None:
        """Raises: ValueError when the URL is malformed or of an unknown scheme."""
        self.rights = rights
        # Protocol 2: a subscriber gets plain arrays, and there are no maintenance notifications.
        # No retries: redis-py would repeat a command whose answer is lost, and so its effect.
        options: dict[str, Any] = {
            "protocol": 2,
            "socket_timeout": ANSWER_TIMEOUT_S,
            "socket_connect_timeout": ANSWER_TIMEOUT_S,
            "retry": Retry(NoBackoff(), 0),
            "client_name": client_name[:64],
        }
        self._sentinel: Sentinel | None = None
        self._address: dict[str, Any] = {}
        if is_sentinel(url):
            sentinels = parse_sentinels(url)
            self._service = sentinels.service
            self._sentinel = _sentinel(sentinels, options["retry"])
            self._make: Callable[..., AbstractConnection] = partial(
                SSLConnection if sentinels.tls else Connection, **options, **sentinels.redis
            )
        else:
            self._make = _pool(url, options).make_connection

    async def connect(self) -> Connected:
        """Return a new connection, after checking its user's rights. The caller disconnects it.

        Raises: RedisError, OSError or TimeoutError.
        """
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            self._address = await self._find()
            connection = self._make(**self._address)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await connection.connect()  # type: ignore[no-untyped-call]
                await self.rights.ask(connection)
                info = await ask(connection, "INFO", "server")
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return Connected(connection, info_fields(info)["run_id"])

    async def close(self) -> None:
        if self._sentinel is not None:
            for client in self._sentinel.sentinels:
                await client.aclose()

    async def moved(self) -> bool:
        """Return whether the sentinels name another master now than for the last connection."""
        if self._sentinel is None or not self._address:
            return False
        try:
            return await self._find() != self._address
        except (RedisError, OSError) as error:
            log.warning("no sentinel names the master", error=str(error))
            return False

    async def _find(self) -> dict[str, Any]:
        """Return the address of the master if sentinels tell it; nothing if the URL does."""
        if self._sentinel is None:
            return {}
        host, port = await self._sentinel.discover_master(self._service)
        return {"host": host, "port": port}


def info_fields(info: bytes) -> dict[str, str]:
    """Return the fields of an answer to INFO, by name."""
    lines = info.decode(errors="replace").splitlines()
    return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}


async def ask(connection: AbstractConnection, *command: str | bytes | int | float) -> Any:
    """Send one command. Returns its answer.

    Raises: RedisError, OSError.
    """
    await connection.send_command(*command)
    return await connection.read_response(disable_decoding=True)


async def write(connection: AbstractConnection, commands: Iterable[tuple[Any, ...]]) -> None:
    """Send commands in one write, in this turn of the event loop. Without a time limit: the caller sets one.

    Raises: RedisError, OSError.
    """
    # Divergence: redis-py packs in Python, and waits in `asyncio.wait_for`, which before 3.12 makes a task for each
    # write. May go when it does neither.
    writer = connection._writer
    if writer is None:
        raise RedisConnectionError("the connection was given up")
    writer.write(b"".join([pack_command(command) for command in commands]))
    await writer.drain()


async def receive(connection: AbstractConnection) -> list[Any]:
    """Return all answers that have arrived and were not read yet, at least one. An error is returned, not raised.
    Without a time limit: the caller sets one.

    Raises: RedisError, OSError.
    """
    # Divergence: redis-py reads answers one by one, through three coroutines and a time limit each, which costs more
    # than parsing them. May go when it returns all answers in its buffer.
    parser: Any = connection._parser
    some: list[Any] = []
    while True:
        reader = parser._reader
        if reader is None or not parser._connected:
            raise RedisConnectionError("the connection was given up")
        while (one := reader.gets(False)) is not NOT_ENOUGH_DATA:
            some.append(one)
        if some:
            return some
        await parser.read_from_socket()


def is_sentinel(url: str) -> bool:
    return url.partition("://")[0] in SENTINEL_SCHEMES


def parse_sentinels(url: str) -> Sentinels:
    """Raises: ValueError with the reason, without repeating the URL, because it may hold a password."""
    scheme, _, rest = url.partition("://")
    location, _, query = rest.partition("?")  # urlsplit would refuse several IPv6 addresses
    authority, _, path = location.partition("/")
    credentials, _, hosts = authority.rpartition("@")
    service, _, database = path.partition("/")
    options = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    addresses = tuple(_address(host) for host in hosts.split(",") if host)
    if not addresses or not service:
        raise ValueError(f"must be {scheme}://[user:password@]host:port,host:port/service[/database]")
    if database and not database.isdecimal():
        raise ValueError("the database after the service must be a number")
    if unknown := sorted(options.keys() - {"sentinel_username", "sentinel_password"}):
        raise ValueError(f"has parameters not known here: {', '.join(unknown)}")
    user, _, password = credentials.partition(":")
    redis: dict[str, Any] = {"db": int(database or 0)}
    if user:
        redis["username"] = unquote(user)
    if password:
        redis["password"] = unquote(password)
    sentinel = {name.removeprefix("sentinel_"): text for name, text in options.items()}
    return Sentinels(addresses, unquote(service), scheme.startswith("rediss"), redis, sentinel)


def _address(text: str) -> tuple[str, int]:
    parts, port = _split(f"//{text}")
    if not parts.hostname:
        raise ValueError("a sentinel needs a host")
    return parts.hostname, port or SENTINEL_PORT


def _split(url: str) -> tuple[SplitResult, int | None]:
    """The parts of a URL, and its port.

    Raises: ValueError, which does not repeat the value: it may be a part of a password.
    """
    try:
        parts = urlsplit(url)
        return parts, parts.port
    except ValueError:
        raise ValueError("has no host and port; `@ : / ? #` in a password must be percent-encoded") from None


def _pool(url: str, options: Mapping[str, Any]) -> ConnectionPool:
    """Raises: ValueError also for parts of a URL that redis-py would ignore, or refuse when it connects."""
    parts, _ = _split(url)
    if parts.scheme != "unix" and parts.path.strip("/") and not parts.path.strip("/").isdecimal():
        raise ValueError("the database after the host must be a number")
    pool = ConnectionPool.from_url(url, **options)
    try:
        pool.connection_class(**pool.connection_kwargs)  # redis-py tells a wrong parameter only here
    except TypeError as error:
        name = str(error).rpartition("argument ")[2]
        raise ValueError(f"has a parameter not known here: {name}") from None
    return pool


def _sentinel(sentinels: Sentinels, retry: Retry) -> Sentinel:
    options: dict[str, Any] = {
        "socket_timeout": SENTINEL_TIMEOUT_S,
        "socket_connect_timeout": SENTINEL_TIMEOUT_S,
        "ssl": sentinels.tls,
        "protocol": 2,
        "retry": retry,
    }
    return Sentinel(  # type: ignore[no-untyped-call]
        sentinels.addresses, sentinel_kwargs={**options, **sentinels.sentinel}
    )
