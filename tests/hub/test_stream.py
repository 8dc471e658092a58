"""A stream's position rises, and only by the stream's own methods."""

from collections.abc import Sequence

import pytest
from harness.streams import ListStream

from allim.hub import ZERO, Event, Position, Run, encode
from tests.hub.histories import keep_in


def run_of(*milliseconds: int) -> Run:
    return Run([Event("a", Position(ms, 0), ZERO, encode("t", ms)) for ms in milliseconds])


def live_stream(at: int = 0) -> ListStream:
    stream = ListStream("a")
    stream.backlog = None
    stream.pass_to(Position(at, 0))
    return stream


def test_a_stream_passes_to_a_later_position_and_never_back() -> None:
    stream = live_stream(at=5)

    assert stream.pass_to(Position(6, 0))
    assert not stream.pass_to(Position(6, 0))
    assert not stream.pass_to(Position(5, 9))
    assert stream.last == Position(6, 0)


def test_nothing_else_sets_the_position() -> None:
    with pytest.raises(AttributeError):
        live_stream().last = Position(9, 0)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("at", "written"), [(0, [1, 2, 3]), (1, [2, 3]), (3, []), (9, [])], ids=["all", "the rest", "none", "long past"]
)
def test_a_live_stream_writes_what_it_does_not_have_and_tells_how_many(at: int, written: Sequence[int]) -> None:
    stream = live_stream(at)

    assert stream.deliver(run_of(1, 2, 3)) == len(written)
    assert stream.data == written
    assert stream.last == Position(max(at, 3), 0)


def test_a_run_that_a_stream_has_nothing_of_is_written_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Sequence[Event]] = []
    stream, run = live_stream(), run_of(1, 2)
    monkeypatch.setattr(stream, "write", keep_in(written))

    stream.deliver(run)

    assert written[0] is run.events


def test_a_stream_that_catches_up_keeps_what_is_announced_and_writes_what_it_missed() -> None:
    stream = ListStream("a")

    assert stream.deliver(run_of(3, 4)) == 0
    stream.deliver_missed(run_of(1, 2))

    assert (stream.data, stream.last) == ([1, 2], Position(2, 0))
    assert stream.backlog is not None
    assert [event.position.ms for event in stream.backlog.pop_all()] == [3, 4]
