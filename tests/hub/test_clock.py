"""The clock that replicas share, under a wall clock and a broker's clock that are stepped."""

import asyncio

import pytest
from harness.streams import ListStream, hub_settings, identity
from harness.waiting import until
from structlog.testing import capture_logs

from allim.brokers.memory import MemoryBroker, MemoryLedger
from allim.hub import CloseReason, Hub
from allim.hub.clock import SharedClock
from allim.telemetry import Metrics


class Machine:
    """A machine's two clocks."""

    def __init__(self) -> None:
        self.wall = 1_000_000.0
        self.monotonic = 50.0

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def clock(machine: Machine) -> SharedClock:
    return SharedClock(lambda: machine.wall, lambda: machine.monotonic)


def test_it_is_this_machines_clock_until_the_broker_has_answered(machine: Machine, clock: SharedClock) -> None:
    machine.passes(7)

    assert clock() == machine.wall


def test_it_is_the_brokers_clock_at_the_middle_of_a_question(machine: Machine, clock: SharedClock) -> None:
    asked_at = machine.monotonic
    machine.passes(0.4)

    ahead_s = clock.set(2_000_000.0, asked_at)
    machine.passes(10)

    assert clock() == pytest.approx(2_000_010.2)
    assert ahead_s == pytest.approx(machine.wall - 10 - 2_000_000.2)


def test_a_step_of_this_machines_clock_does_not_move_it(machine: Machine, clock: SharedClock) -> None:
    before = clock()
    machine.wall += 3600

    assert clock() == before


def test_an_answer_that_took_long_does_not_set_it(machine: Machine, clock: SharedClock) -> None:
    asked_at, before = machine.monotonic, clock()
    machine.passes(1.5)

    clock.set(before + 60, asked_at)

    assert clock() == before + 1.5


def test_a_clock_that_differs_is_warned_of_once_until_it_is_right_again(machine: Machine, clock: SharedClock) -> None:
    with capture_logs() as logs:
        for broker_s in (machine.wall - 90, machine.wall - 91, machine.wall, machine.wall + 90):
            clock.set(broker_s, machine.monotonic)

    assert [round(entry["ahead_s"]) for entry in logs] == [90, -90]


@pytest.mark.anyio
@pytest.mark.parametrize("step_s", [3600, -3600])
async def test_a_step_of_the_wall_clock_neither_ends_a_stream_nor_keeps_it(machine: Machine, step_s: int) -> None:
    settings = hub_settings(heartbeat_s=0.4, pulse_s=0.2)
    hub = Hub(MemoryBroker(), MemoryLedger(), Metrics(), settings, wall=lambda: machine.wall)
    async with hub.running():
        lasting, brief = (
            ListStream(who=identity(session=session, expires_at=machine.wall + left_s))
            for session, left_s in (("lasting", 1800), ("brief", 2))
        )
        for stream in (lasting, brief):
            await hub.follow(stream, await hub.join(stream, None))
        machine.wall += step_s

        await until(lambda: brief.ended)
        await asyncio.sleep(0.5)  # the time in which nothing must happen

        assert (brief.close_reason, lasting.ended) == (CloseReason.TOKEN_EXPIRED, False)
