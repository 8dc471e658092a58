"""A fair queue for work of which only a few pieces may run at once, such as hashing a password.

Addresses take turns; the requests of one address are served in order. IPv6 addresses of one /48 count as one address.
A client that has gone is dropped before its turn. Source: docs/decisions/0016-quotas.md.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from allim.errors import TooMany, Unavailable
from allim.networks import Places, shares_of

WAITING = 8  # of one address; of wider networks more
PATIENCE_S = 5.0  # a request with a longer expected wait is refused
FIRST_GUESS_S = 0.1  # the duration of a turn, until one was measured
NEWEST_WEIGHT = 0.2  # of the newest measurement in the mean
RETRY_S = 1  # told to an address that has too many requests waiting


class Turns:
    """A queue for `at_once` places.

    Shape: `refused` is called for each refusal.
    Units: `now` in seconds of any clock.
    """

    def __init__(self, at_once: int, refused: Callable[[], None], now: Callable[[], float] = time.monotonic) -> None:
        self._at_once = at_once
        self._refused = refused
        self._now = now
        self._running: list[float] = []  # when each began
        # By widest network; the line whose turn is next is first. A future's result is the time its turn began.
        self._lines: dict[str, deque[asyncio.Future[float]]] = {}
        self._waiting = Places(WAITING)
        self._turn_s = FIRST_GUESS_S

    @asynccontextmanager
    async def turn(self, request: Request, address: str) -> AsyncIterator[None]:
        """Wait for a place, hold it during the block, and pass it on afterwards.

        Shape: the body of the request has been read.
        Raises: TooMany when the address has too many requests waiting; Unavailable when the wait would be too long;
        ClientDisconnect when the client has gone before its turn.
        """
        began = await self._place(request, address)
        try:
            if await request.is_disconnected():
                raise ClientDisconnect
            try:
                yield
            finally:
                self._turn_s += (self._now() - began - self._turn_s) * NEWEST_WEIGHT
        finally:
            self._leave(began)

    async def _place(self, request: Request, address: str) -> float:
        if not self._lines and len(self._running) < self._at_once:
            return self._begin()
        network = shares_of(address)[-1].network
        self._make_room(address, network)
        turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(network, deque()).append(turn)
        self._waiting.enter(address)
        gone = asyncio.create_task(_gone(request), name="allim client waits for its turn")
        try:
            await asyncio.wait((turn, gone), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise ClientDisconnect
            return turn.result()
        except BaseException:
            self._withdraw(network, turn)
            raise
        finally:
            gone.cancel()
            self._waiting.leave(address)

    def _begin(self) -> float:
        began = self._now()
        self._running.append(began)
        return began

    def _leave(self, began: float) -> None:
        self._running.remove(began)
        while self._lines and len(self._running) < self._at_once:
            network, line = next(iter(self._lines.items()))
            del self._lines[network]
            line.popleft().set_result(self._begin())
            if line:
                self._lines[network] = line  # behind the others

    def _withdraw(self, network: str, turn: "asyncio.Future[float]") -> None:
        """Remove a caller that waits no longer from its line, or pass on the turn that it was given meanwhile."""
        if not turn.done():
            self._take_out(network, turn)
        elif turn.exception() is None:
            self._leave(turn.result())

    def _take_out(self, network: str, turn: "asyncio.Future[float]") -> None:
        line = self._lines[network]
        line.remove(turn)
        if not line:
            del self._lines[network]

    # The limits of waiting -------------------------------------------------------------------------------------

    def _make_room(self, address: str, network: str) -> None:
        """Check that one more request may wait. If the wait is too long, a shorter line takes the last place of the
        longest.

        Raises: TooMany, Unavailable.
        """
        if not self._waiting.has_room(address):
            self._refused()
            raise TooMany("Too many sign-ins from this address at this moment.", RETRY_S)
        wait_s = self._expected_wait_s()
        if wait_s <= PATIENCE_S:
            return
        self._refused()
        refusal = Unavailable("Too many sign-ins at this moment.", math.ceil(wait_s))
        longest = max(self._lines, key=lambda network: len(self._lines[network]), default="")
        if not self._lines or len(self._lines[longest]) <= len(self._lines.get(network, ())) + 1:
            raise refusal
        last = self._lines[longest][-1]
        self._take_out(longest, last)
        last.set_exception(refusal)

    def _expected_wait_s(self) -> float:
        now = self._now()
        turn_s = max([self._turn_s, *[now - began for began in self._running]])
        return turn_s * (sum(map(len, self._lines.values())) + 1) / self._at_once


async def _gone(request: Request) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
