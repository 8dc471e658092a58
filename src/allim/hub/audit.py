"""Check after each repair of the link that no stream of an ended session goes on: the order to end it may be lost."""

import asyncio
from collections.abc import Sequence

import structlog

from allim.errors import Unavailable
from allim.hub.close_reason import CloseReason
from allim.hub.ledger import Ledger, SessionState
from allim.hub.registry import Registry
from allim.hub.stream import Stream

log = structlog.get_logger(__name__)

STREAMS_PER_STEP = 500
RETRY_S = 0.5


class Audit:
    """Looks up the sessions of all streams in the ledger, and closes the streams of those that have ended."""

    def __init__(self, ledger: Ledger, registry: Registry) -> None:
        self._ledger = ledger
        self._registry = registry
        self._due = asyncio.Event()

    def request(self) -> None:
        """Ask for an audit. Returns at once."""
        self._due.set()

    async def run(self) -> None:
        """Audit all streams whenever it was asked for."""
        while True:
            await self._due.wait()
            self._due.clear()
            streams = list(self._registry)
            for at in range(0, len(streams), STREAMS_PER_STEP):
                await self._check(streams[at : at + STREAMS_PER_STEP])

    async def _check(self, streams: Sequence[Stream]) -> None:
        while True:
            try:
                states = await self._ledger.session_states(streams)
                break
            except Unavailable as error:
                log.warning("audit waits for the ledger", error=error.detail)
                await asyncio.sleep(RETRY_S)
        for stream, state in zip(streams, states, strict=True):
            if state is not SessionState.GOOD:
                stream.close(CloseReason(state))
