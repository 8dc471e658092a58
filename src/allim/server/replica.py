"""One replica under uvicorn: its sockets, its protocol, its end."""

import asyncio
import gc
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from types import FrameType
from typing import Any, Literal

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Match
from starlette.types import ASGIApp, Scope
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from allim.access.addresses import network_of_peer
from allim.server.connections import Connections
from allim.server.fast_path import FastPath
from allim.server.protocol import HandoverProtocol
from allim.settings import Settings
from allim.transports.sse.handover import USER_TIMEOUT_MS

log = structlog.get_logger(__name__)

# Accepted sockets inherit it, as they do the user timeout: a frozen reader holds no more of the kernel's memory than
# this (the kernel doubles it).
SEND_BUFFER_BYTES = 64 * 1024
KEEP_ALIVE_S = 75  # above nginx's keepalive_timeout of 60 s, so that it is nginx that closes
BACKLOG = 4096
COLLECT_AFTER = (10_000, 20, 50)  # new objects, and collections of the younger generation
ACCEPTS_AT_ONCE = 8
LEAVE_SHARE, REST_SHARE = 0.85, 0.1  # of the drain time for streams and work in hand; for requests and frozen readers


Leave = Callable[[float], Coroutine[Any, Any, None]]
"""Ends streams and work in hand within so many seconds."""


class ReplicaServer(uvicorn.Server):
    """uvicorn, which takes leave before it stops to listen, and has exit status 0 after a signal."""

    def __init__(self, config: uvicorn.Config, leave: Leave, drain_s: float) -> None:
        super().__init__(config)
        self.leave = leave
        self.drain_s = drain_s
        self.deaf = False  # it could not listen

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Two processes may bind one address as long as neither listens, and uvloop does not tell the second one."""
        await super().startup(sockets)
        if self.started and not all(listens(sock) for sock in sockets or ()):
            log.error("cannot listen: another process has taken the address meanwhile")
            self.deaf = True
            asyncio.get_running_loop().call_soon(
                setattr, self, "should_exit", True
            )  # now, nothing would be shut down

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends at once."""
        log.info("stopping", signal=signal.Signals(sig).name, at_once=self.should_exit)
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """While streams and work end, the replica still answers: readiness says no, and a new stream is sent on."""
        leaving = asyncio.create_task(self.leave(self.drain_s * LEAVE_SHARE))
        while not leaving.done() and not self.force_exit:
            await asyncio.wait([leaving], timeout=0.1)
        leaving.cancel()
        for failure in await asyncio.gather(leaving, return_exceptions=True):
            if isinstance(failure, Exception):
                log.error("leaving failed", exc_info=failure)
        await super().shutdown(sockets)


def listens(sock: socket.socket) -> bool:
    return sock.fileno() >= 0 and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def listen(host: str, port: int) -> socket.socket:
    """A bound socket whose accepted sockets do not wait for ever for a reader. The server listens once it has
    started: before that, connections are refused and go to another replica.

    Raises: OSError when the address is taken or not ours.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    # asyncio switches Nagle's algorithm off only for sockets that say they are TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def serve(app: Starlette, settings: Settings, listener: socket.socket) -> None:
    """Run until a signal, then drain."""
    fast_path: FastPath = app.state.fast_path(looking_through(settings.trusted_proxies))
    http = partial(
        HandoverProtocol,
        shared=shared_limits(app, settings),
        answer_fast=fast_path.answer,
        paths=fast_path.paths,
        knows=partial(knows, app),
    )
    run_until_signal(app, http, settings, listener, app.state.leave)


def run_until_signal(
    app: ASGIApp,
    http: Callable[..., HandoverProtocol],
    settings: Settings,
    listener: socket.socket,
    leave: Leave,
    websockets: Literal["auto", "none"] = "none",
) -> None:
    """Run an application with this protocol. At the first signal `leave` is called before the rest ends."""
    raise_file_limit()
    config = uvicorn.Config(
        app,
        http=http,  # type: ignore[arg-type] # it is called, and no more
        ws=websockets,
        loop="uvloop",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        # uvicorn passes it on to `asyncio.wait_for`, which takes fractions.
        timeout_graceful_shutdown=settings.drain_s * REST_SHARE,  # type: ignore[arg-type]
        proxy_headers=True,
        forwarded_allow_ips=list(settings.trusted_proxies),
        backlog=BACKLOG,
    )
    host, port = listener.getsockname()[:2]
    log.info("serving", host=host, port=port, clustered=settings.clustered)
    spare_collections()
    # libuv accepts one connection per listener in a turn of the loop. Those of a herd are to share a turn: their
    # calls to Redis go out together, and a publisher does not wait behind all of them.
    listeners = [listener, *(listener.dup() for _ in range(ACCEPTS_AT_ONCE - 1))]
    server = ReplicaServer(config, leave, settings.drain_s)
    server.run(sockets=listeners)
    if server.deaf:
        sys.exit(1)


def shared_limits(app: Starlette, settings: Settings) -> Connections:
    """Return the limits that all connections share. Shape: `app` is an application of allim."""
    count_by = partial(network_of_peer, proxies=settings.trusted_proxies)
    return Connections(settings.connections_per_address, count_by, app.state.refused)


def knows(app: Starlette, scope: Scope) -> bool:
    """Return whether there is a route for this method at this path."""
    return any(route.matches(scope)[0] is Match.FULL for route in app.routes)


def looking_through(trusted: Sequence[str]) -> Callable[[Scope], None]:
    """Return a function that sets the client in a scope from the headers of trusted proxies, as uvicorn does."""

    async def nothing(*_: Any) -> None:
        pass

    middleware: Any = ProxyHeadersMiddleware(nothing, list(trusted))

    def look_through(scope: Scope) -> None:
        try:
            middleware(scope, nothing, nothing).send(None)
        except StopIteration:
            return
        raise AssertionError("uvicorn's middleware waits for something")

    return look_through


def spare_collections() -> None:
    """Let the garbage collector look at new objects only, and seldom: streams live long, and no code here makes
    cycles.

    Measured: with Python's thresholds (700, 10, 10) a fifth of the time of opening streams went into walking over the
    application and the streams that are open already.
    """
    gc.collect()
    gc.freeze()  # modules, routes, the application: they are for ever
    gc.set_threshold(*COLLECT_AFTER)


def raise_file_limit() -> None:
    """A stream is a file descriptor: take as many as we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    log.info("file descriptors", limit=hard)
