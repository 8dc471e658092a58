"""When a replica has no room for one more stream."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.streams import hub_settings

from allim.errors import TooMany, Unavailable
from allim.hub import capacity
from allim.hub.capacity import MAX_LAG_S, Capacity, limit_bytes, resident_bytes
from allim.telemetry import Metrics


def capacity_of(resident: Callable[[], int] | None = None, **settings: float) -> Capacity:
    return Capacity(hub_settings(**settings), Metrics(), resident)


def test_an_idle_replica_has_room() -> None:
    assert capacity_of(lambda: 1000, memory_max_bytes=1000).excess(0) is None


def test_an_event_loop_that_is_late_again_and_again_is_too_much() -> None:
    seen = capacity_of()

    for late_s, told in ((9, None), (MAX_LAG_S, None), (9, None), (1.1 * MAX_LAG_S, "lag"), (0, None), (9, None)):
        seen.note_lag(late_s)
        assert seen.excess(0) == told


def test_memory_over_its_limit_is_too_much_as_long_as_it_is() -> None:
    held = 1001
    seen = capacity_of(lambda: held, memory_max_bytes=1000)
    assert seen.excess(0) is None, "nobody has looked yet"

    seen.note_lag(0.0)
    assert seen.excess(0) == "memory"

    held = 1000
    seen.note_lag(0.0)
    assert seen.excess(0) is None


def test_without_a_limit_nobody_asks_how_much_memory_there_is() -> None:
    def resident() -> int:
        raise AssertionError("asked")

    seen = capacity_of(resident)
    seen.note_lag(0.0)

    assert seen.excess(0) is None


def test_streams_and_those_of_an_address_have_limits() -> None:
    seen = capacity_of(streams_per_replica=3, streams_per_address=2)
    for _ in range(2):
        seen.check(2, "192.0.2.1")
        seen.enter("192.0.2.1")

    with pytest.raises(TooMany):
        seen.check(2, "192.0.2.1")
    seen.check(2, "192.0.2.2")
    with pytest.raises(Unavailable):
        seen.check(3, "192.0.2.2")
    seen.leave("192.0.2.1")
    seen.check(2, "192.0.2.1")


def test_this_process_holds_some_memory_and_may_hold_more() -> None:
    assert 1_000_000 < resident_bytes() < limit_bytes()


@pytest.mark.parametrize(("said", "expected"), [("123456789\n", 123_456_789), ("max\n", None), (None, None)])
def test_the_limit_is_the_containers_if_it_has_one_and_else_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, expected: int | None
) -> None:
    limit = tmp_path / "memory.max"
    if said is not None:
        limit.write_text(said)
    monkeypatch.setattr(capacity, "_CGROUP_MAX", limit)

    assert limit_bytes() == (expected or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def test_where_the_system_does_not_tell_nothing_is_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "_STATM", tmp_path / "missing")
    seen = capacity_of(memory_max_bytes=1)
    seen.note_lag(0.0)

    assert seen.excess(0) is None
