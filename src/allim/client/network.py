"""The connections of a synchronous client: one deadline over everything they do, and none is shared after a fork.

httpx limits each wait by itself, so an answer that comes byte by byte never ends, and a name that is not resolved
waits for the system.
"""

import functools
import queue
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx

_PIECE = 16384  # bytes of a body that are written under one wait; a record of TLS


@functools.cache
def tls() -> ssl.SSLContext:
    """Return the certificates that are trusted, read once: httpx reads them for each of its clients."""
    return httpx.create_ssl_context()


class Network(httpcore.NetworkBackend):
    """Makes the connections of one httpx client.

    Divergence 1 from httpx: it has no way to hand a backend in, so `use` sets it in the pools of its transports. It
    may go when httpx has a total timeout and a way to forget connections after a fork.
    """

    def __init__(self) -> None:
        self._streams: weakref.WeakSet[_Stream] = weakref.WeakSet()
        self._local = threading.local()
        self._plain = httpcore.SyncBackend()

    def use(self, http: httpx.Client) -> None:
        """Make all connections of this client from now on, those to a proxy too."""
        for transport in (http._transport, *http._mounts.values()):
            if transport is not None:
                pool: Any = transport
                pool._pool._network_backend = self

    @contextmanager
    def until(self, deadline: float) -> Iterator[None]:
        """End everything that this thread does at a moment of the monotonic clock."""
        self._local.deadline = deadline
        try:
            yield
        finally:
            self._local.deadline = None

    def forget(self) -> None:
        """Close the connections that a fork has copied into this process; the parent's own stay open.

        Nothing is sent and no lock is taken: a thread of the parent may have held it.
        """
        for stream in list(self._streams):
            stream.close()

    def left_s(self, timeout: float | None, error: type[httpcore.TimeoutException]) -> float | None:
        """Return the seconds that a wait may take.

        Raises: `error` after the deadline.
        """
        deadline: float | None = getattr(self._local, "deadline", None)
        if deadline is None:
            return timeout
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise error("the deadline has passed")
        return left_s if timeout is None else min(left_s, timeout)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _resolve(host, port, self.left_s(timeout, httpcore.ConnectTimeout))
        for index, address in enumerate(addresses):
            left_s = self.left_s(timeout, httpcore.ConnectTimeout)
            share_s = None if left_s is None else left_s / (len(addresses) - index)
            try:
                stream = self._plain.connect_tcp(address, port, share_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if index + 1 == len(addresses):
                    raise
            else:
                return self.watch(stream)
        raise httpcore.ConnectError(f"{host} has no address")

    def watch(self, stream: httpcore.NetworkStream) -> "_Stream":
        """Return this connection under the deadline, and close it after a fork."""
        watched = _Stream(self, stream)
        self._streams.add(watched)
        return watched


class _Stream(httpcore.NetworkStream):
    """A connection whose waits end with the deadline of the calling thread."""

    def __init__(self, network: Network, stream: httpcore.NetworkStream) -> None:
        self._network = network
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._network.left_s(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for begin in range(0, len(buffer), _PIECE):
            left_s = self._network.left_s(timeout, httpcore.WriteTimeout)
            self._stream.write(buffer[begin : begin + _PIECE], left_s)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left_s = self._network.left_s(timeout, httpcore.ConnectTimeout)
        return self._network.watch(self._stream.start_tls(ssl_context, server_hostname, left_s))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _resolve(host: str, port: int, within_s: float | None) -> list[str]:
    """Return the addresses of a name. The system's own resolver takes no timeout, so a thread asks it.

    Raises: httpcore.ConnectError, httpcore.ConnectTimeout.
    """
    answers: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(address[0]) for *_, address in found)))
        except OSError as error:
            answers.put(error)

    try:
        threading.Thread(target=ask, name="allim client resolves", daemon=True).start()
    except RuntimeError:  # no thread can be started, such as in an interpreter that ends
        ask()
    try:
        answer = answers.get(timeout=within_s)
    except queue.Empty:
        raise httpcore.ConnectTimeout(f"the name {host} was not resolved in time") from None
    if isinstance(answer, OSError):
        raise httpcore.ConnectError(f"{host}: {answer}") from answer
    return answer
