"""Two streams join a topic that nobody here waited for: neither's history may hide what the other has not read."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from harness.streams import ListStream, hub_settings

from allim.brokers.memory import MemoryLedger
from allim.hub import Hub, Position, Reading
from allim.telemetry import Metrics
from tests.hub.histories import History

pytestmark = pytest.mark.anyio


class SlowLedger(MemoryLedger):
    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, asyncio.Event] = {}

    async def admit(self, holder: Any, stream: str, *rest: Any, **more: Any) -> Any:
        admission = await super().admit(holder, stream, *rest, **more)
        if gate := self.gates.get(stream):
            await gate.wait()
        return admission


class Clocked(History):
    async def read(self, topics: Sequence[str], after: Position | None, max_events: int, max_bytes: int) -> Reading:
        return await super().read(topics, after or self.now, max_events, max_bytes)


async def test_the_first_to_have_joined_hides_nothing_from_one_who_read_before_it() -> None:
    history, ledger = Clocked(), SlowLedger()
    hub = Hub(history, ledger, Metrics(), hub_settings())
    early, late = ListStream("a"), ListStream("a")
    ledger.gates[early.id] = asyncio.Event()
    history.now = Position(90, 0)
    joining = asyncio.create_task(hub.join(early, None))
    await asyncio.sleep(0.01)  # has read, and is not admitted yet
    event = history.add("a", 95)  # announced, and still on the link

    begin = await hub.join(late, None)
    await hub.follow(late, begin)
    hub._dispatcher.on_events([event])
    ledger.gates[early.id].set()
    await hub.follow(early, await joining)

    assert late.opening is not None
    assert late.opening.position == Position(95, 0)
    assert early.opening is not None
    assert early.opening.position == Position(90, 0)
    assert early.data == [95]
