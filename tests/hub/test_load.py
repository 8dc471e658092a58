"""When a replica has no room for one more stream."""

import os
from pathlib import Path

import pytest

from allim.hub import load
from allim.hub.load import MAX_LAG_S, Load, limit_bytes, resident_bytes


def test_an_idle_replica_has_room() -> None:
    assert Load(max_bytes=1000, resident=lambda: 1000).excess() is None


def test_an_event_loop_that_is_late_again_and_again_is_too_much() -> None:
    seen = Load()

    for late_s, told in ((9, None), (MAX_LAG_S, None), (9, None), (1.1 * MAX_LAG_S, "lag"), (0, None), (9, None)):
        seen.note(late_s)
        assert seen.excess() == told


def test_memory_over_its_limit_is_too_much_as_long_as_it_is() -> None:
    held = 1001
    seen = Load(max_bytes=1000, resident=lambda: held)
    assert seen.excess() is None, "nobody has looked yet"

    seen.note(0.0)
    assert seen.excess() == "memory"

    held = 1000
    seen.note(0.0)
    assert seen.excess() is None


def test_without_a_limit_nobody_asks_how_much_memory_there_is() -> None:
    def resident() -> int:
        raise AssertionError("asked")

    seen = Load(resident=resident)
    seen.note(0.0)

    assert seen.excess() is None


def test_this_process_holds_some_memory_and_may_hold_more() -> None:
    assert 1_000_000 < resident_bytes() < limit_bytes()


@pytest.mark.parametrize(("said", "expected"), [("123456789\n", 123_456_789), ("max\n", None), (None, None)])
def test_the_limit_is_the_containers_if_it_has_one_and_else_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, expected: int | None
) -> None:
    limit = tmp_path / "memory.max"
    if said is not None:
        limit.write_text(said)
    monkeypatch.setattr(load, "_CGROUP_MAX", limit)

    assert limit_bytes() == (expected or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def test_where_the_system_does_not_tell_nothing_is_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_STATM", tmp_path / "missing")
    seen = Load(max_bytes=1)
    seen.note(0.0)

    assert seen.excess() is None
