import pytest
from hypothesis import given
from hypothesis import strategies as st

from allim.hub import ZERO, Position

positions = st.builds(Position, st.integers(0, 10**15 - 1), st.integers(0, 10**9 - 1))


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("0-0", ZERO),
        ("1-0", Position(1, 0)),
        ("0-1", Position(0, 1)),
        ("1763692800000-12", Position(1763692800000, 12)),
        ("999999999999999-999999999", Position(999999999999999, 999999999)),
    ],
)
def test_the_text_form_reads_and_writes(text: str, position: Position) -> None:
    assert Position.parse(text) == position
    assert str(position) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "1",
        "1-",
        "-1",
        "1-2-3",
        "01-2",
        "1-02",
        "00-0",
        "+1-2",
        "-1-2",
        "1--2",
        " 1-2",
        "1-2 ",
        "1-2\n",
        "1 - 2",
        "1_0-2",
        "1.0-2",
        "1e3-0",
        "0x1-0",
        "a-b",
        "١-٢",
        "1-2\0",
        "1–2",
        "1000000000000000-0",
        "1-1000000000",
        "9" * 5000 + "-0",
    ],
)
def test_anything_but_the_text_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a position is"):
        Position.parse(text)


@given(positions)
def test_reading_what_was_written_gives_the_same(position: Position) -> None:
    assert Position.parse(str(position)) == position


def test_order_is_by_number_and_not_by_text() -> None:
    texts = ["9-0", "10-0", "10-2", "10-10", "100-0"]

    assert sorted(map(Position.parse, reversed(texts))) == [Position.parse(text) for text in texts]


@pytest.mark.parametrize(
    ("now_ms", "following"),
    [(1001, Position(1001, 0)), (1000, Position(1000, 8)), (999, Position(1000, 8)), (0, Position(1000, 8))],
    ids=["time went on", "time stands still", "time went back", "time is lost"],
)
def test_the_hybrid_clock_never_goes_back(now_ms: int, following: Position) -> None:
    assert Position(1000, 7).after(now_ms) == following


@given(st.lists(st.integers(0, 2000), min_size=2))
def test_positions_rise_strictly_whatever_the_time_does(times_ms: list[int]) -> None:
    given_out = [ZERO]
    for now_ms in times_ms:
        given_out.append(given_out[-1].after(now_ms))

    assert given_out == sorted(set(given_out))
