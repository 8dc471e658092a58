import pytest

from allim.hub import Position, Reading
from allim.hub.resume import Reset, Verdict, judge, parse_last_event_id

NOW = Position(10_000_000, 5)
FLOOR = Position(9_000_000, 0)

TOPICS = ["a", "b"]


def reading(*trimmed: str, expired: tuple[str, ...] = (), floor: Position = FLOOR) -> Reading:
    return Reading(NOW, floor, (), NOW, 0, trimmed, expired, complete=True)


def all_reset(reason: str, after: Position | None) -> Verdict:
    return Verdict("reset", (Reset("a", reason), Reset("b", reason)), after)  # type: ignore[arg-type]


@pytest.mark.parametrize("last_event_id", [None, ""])
def test_no_last_event_id_is_a_new_stream(last_event_id: str | None) -> None:
    assert judge(last_event_id, TOPICS, reading("a")) == Verdict("new", (), None)


@pytest.mark.parametrize("last_event_id", ["garbage", "1", "01-0", "9" * 99 + "-0", " "])
def test_an_unreadable_one_is_malformed(last_event_id: str) -> None:
    assert judge(last_event_id, TOPICS, reading()) == all_reset("malformed", None)


@pytest.mark.parametrize("after", [Position(10_000_000, 6), Position(10_000_001, 0)])
def test_one_not_given_out_yet_is_ahead(after: Position) -> None:
    assert judge(str(after), TOPICS, reading()) == all_reset("ahead", None)


def test_one_from_before_the_origin_is_of_another_history() -> None:
    after = Position(8_999_999, 9)

    assert judge(str(after), TOPICS, reading()) == all_reset("origin", after)


def test_a_topic_whose_history_was_removed_is_named_and_the_others_are_not() -> None:
    after = Position(9_499_999, 0)

    verdict = judge(str(after), TOPICS, reading(expired=("b",)))

    assert verdict == Verdict("reset", (Reset("b", "expired"),), after)


def test_a_trimmed_topic_is_named_and_the_others_are_not() -> None:
    after = Position(9_600_000, 0)

    verdict = judge(str(after), TOPICS, reading("a"))

    assert verdict == Verdict("reset", (Reset("a", "trimmed"),), after)


@pytest.mark.parametrize("after", [NOW, Position(9_500_000, 0), Position(9_700_000, 3)])
def test_everything_there_is_complete(after: Position) -> None:
    assert judge(str(after), TOPICS, reading()) == Verdict("complete", (), after)


def test_the_origin_itself_is_complete() -> None:
    assert judge(str(FLOOR), TOPICS, reading()) == Verdict("complete", (), FLOOR)


# Where two reasons hold, the first of malformed, ahead, origin is given; expired and trimmed are each topic's own.


def test_ahead_comes_before_origin() -> None:
    beyond = Position(NOW.ms + 1, 0)

    verdict = judge(str(beyond), TOPICS, reading(floor=Position(NOW.ms + 2, 0)))

    assert verdict == all_reset("ahead", None)


def test_origin_comes_before_expired_and_trimmed() -> None:
    after = Position(1, 0)

    assert judge(str(after), TOPICS, reading("a", expired=("b",))) == all_reset("origin", after)


def test_each_topic_is_named_with_its_own_reason() -> None:
    after = Position(9_400_000, 0)

    verdict = judge(str(after), TOPICS, reading("a", expired=("b",)))

    assert verdict == Verdict("reset", (Reset("b", "expired"), Reset("a", "trimmed")), after)


@pytest.mark.parametrize(
    ("text", "position"), [(None, None), ("", None), ("x", None), ("1-2", Position(1, 2)), ("1-2\n", None)]
)
def test_a_last_event_id_is_a_position_or_nothing(text: str | None, position: Position | None) -> None:
    assert parse_last_event_id(text) == position
