"""Whether the Redis of ALLIM_REDIS_URL can be reached, and in plain words why not."""

import asyncio
import socket
import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from allim.brokers.redis.rights import Rights
from allim.brokers.redis.server import RedisServer, is_sentinel, parse_sentinels
from allim.errors import Unusable, causes

CHECK_TIMEOUT_S = 3.0
_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")
_URL = "ALLIM_REDIS_URL"


class Fault(NamedTuple):
    """The reason why Redis is not reached, and a remedy.

    Shape: `lasts` is False for a fault that may pass by itself, such as a server that is not there yet.
    """

    detail: str
    advice: str
    lasts: bool


async def check(url: str, rights: Rights) -> Fault | None:
    """Connect once. Returns a fault that may pass by itself, or None.

    Raises: Unusable for any other fault.
    """
    if fault := missing_file(url):
        raise Unusable(fault.detail, fault.advice)
    server = RedisServer(url, "allim-check", rights)
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            connection, _ = await server.connect()
        await connection.disconnect(nowait=True)
    except NoPermissionError:
        return None  # `/readyz` and the log name the missing rights, which may be given while a replica runs
    except (RedisError, OSError) as error:
        fault = explain(url, error)
        if fault.lasts:
            raise Unusable(fault.detail, fault.advice) from None
        return fault
    finally:
        await server.close()
    return None


def explain(url: str, error: Exception) -> Fault:
    """Say in plain words why a connection to Redis has failed, without repeating a password."""
    where = place(url)
    for cause in causes(error):
        if fault := missing_file(url) or _of_login(where, cause) or _of_tls(where, cause) or _of_way(where, cause):
            return fault
    return Fault(f"{where} does not answer as Redis does: {error}", f"correct {_URL}", lasts=False)


def place(url: str) -> str:
    """The address in a Redis URL, without user and password."""
    if is_sentinel(url):
        return "the sentinels " + ", ".join(f"{host}:{port}" for host, port in parse_sentinels(url).addresses)
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def missing_file(url: str) -> Fault | None:
    """A certificate or key file that the URL names and that cannot be read."""
    named = parse_qs(urlsplit(url).query) if not is_sentinel(url) else {}
    for option in _FILES:
        for path in named.get(option, []):
            try:
                if option != "ssl_ca_path":
                    Path(path).read_bytes()
            except OSError as error:
                detail = f"{option} in {_URL} names {path}: {(error.strerror or str(error)).lower()}"
                return Fault(detail, f"put the file there, or correct {option} in {_URL}", lasts=True)
    return None


def _of_login(where: str, cause: BaseException) -> Fault | None:
    said = str(cause)
    if isinstance(cause, AuthenticationError):
        if "without any password" in said:
            return Fault(f"{where} has no password, and {_URL} gives one", f"take it out of {_URL}", lasts=True)
        if "Authentication required" in said:
            detail = f"{where} demands a password, and {_URL} gives none"
            return Fault(detail, f"{_URL}=redis://user:password@host:port/0", lasts=True)
        detail = f"{where} does not let this user in: the user or the password is wrong, or the user is off"
        return Fault(
            detail, f"correct user and password in {_URL}; `@ : / ? #` in them must be percent-encoded", True
        )
    if isinstance(cause, BusyLoadingError) or "max number of clients" in said:
        return Fault(f"{where}: {said}", "wait; a Redis that is full of clients needs a higher maxclients", False)
    if isinstance(cause, ResponseError):
        if "DB index" in said or "SELECT" in said:
            return Fault(
                f"{where} has no database of this number", f"correct the number that ends {_URL}", lasts=True
            )
        if "SENTINEL" in said:
            return Fault(f"{where}: this is no sentinel", f"redis:// in {_URL}, or the sentinels' port", lasts=True)
    if isinstance(cause, InvalidResponse):
        return Fault(f"{where} is no Redis: it speaks another protocol", f"correct host and port in {_URL}", True)
    return None


def _of_tls(where: str, cause: BaseException) -> Fault | None:
    if isinstance(cause, ssl.SSLCertVerificationError):
        detail = f"the certificate of {where} is not trusted: {cause.verify_message}"
        advice = f"name its authority by ?ssl_ca_certs=/path/ca.pem in {_URL}, and the host as the certificate does"
        return Fault(detail, advice, lasts=True)
    if isinstance(cause, ssl.SSLError):
        detail = f"{where} does not speak TLS as demanded: {cause.reason or cause}"
        return Fault(detail, f"redis:// in {_URL} for a Redis without TLS", lasts=True)
    return None


def _of_way(where: str, cause: BaseException) -> Fault | None:
    if isinstance(cause, MasterNotFoundError):
        detail = f"{where} name no master of the service that {_URL} names, or do not answer"
        return Fault(detail, f"start them, or correct the service after the hosts in {_URL}", lasts=False)
    if isinstance(cause, socket.gaierror):
        detail = f"{where}: there is no host of this name"
        return Fault(detail, f"correct the host in {_URL}, or see to the name service", lasts=False)
    if isinstance(cause, FileNotFoundError):
        return Fault(f"{where}: there is no such socket", f"start Redis with it, or correct {_URL}", lasts=False)
    if isinstance(cause, ConnectionRefusedError):
        return Fault(f"{where} refuses the connection", f"start redis-server there, or correct {_URL}", lasts=False)
    if isinstance(cause, TimeoutError) or "closed by server" in str(cause):
        said = "does not answer" if isinstance(cause, TimeoutError) else "closes the connection"
        advice = f"see that Redis runs there and no firewall is between; {_URL} begins with rediss:// only for TLS"
        return Fault(f"{where} {said}", advice, lasts=False)
    if isinstance(cause, OSError) and cause.strerror:
        return Fault(f"{where}: {cause.strerror.lower()}", f"correct {_URL}", lasts=False)
    return None
