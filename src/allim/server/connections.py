"""Limits that the connections of a replica share: their number per address, and one timer that finds the slow ones.

A timer for each connection would cost more than most requests. Source: docs/decisions/0015-one-client.md.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from allim.networks import Places

SWEEP_S = 1.0  # between two looks at the connections that are watched


class Watched(Protocol):
    """A connection that waits for its client."""

    def check_progress(self, now: float) -> bool:
        """End the connection if its client is too slow. Returns whether it has to be watched any longer."""
        ...


class Connections:
    """Counts connections by address and the wider networks it is in, and ends those whose clients are too slow.

    A stream is no connection in this sense: the hub counts streams.

    Shape: `network` returns the network by which a peer's address is counted, "" for a peer that is not counted.
    `refused` is called with the name of the limit for each connection or request that is refused.
    """

    def __init__(self, per_address: int, network: Callable[[str], str], refused: Callable[[str], None]) -> None:
        self._network = network
        self.refused = refused
        self.open = Places(per_address)
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, host: str) -> str | None:
        """Count a connection. Returns the network that `leave` is called with, or None if it has too many."""
        network = self._network(host)
        if not self.open.has_room(network):
            return None
        self.open.enter(network)
        return network

    def leave(self, network: str) -> None:
        """Forget a connection of a network that is counted."""
        self.open.leave(network)

    def watch(self, connection: Watched) -> None:
        """Check the connection's progress with every sweep, until it says that this is no longer needed."""
        self._watched.add(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._watched = {connection for connection in self._watched if connection.check_progress(now)}
        self._timer = loop.call_later(SWEEP_S, self._sweep) if self._watched else None
