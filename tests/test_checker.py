"""The checker itself: for each rule a log that breaks it is caught, and what the contract allows passes."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, takewhile

import pytest
from harness.checker import (
    CLOSE,
    CONNECT,
    END,
    EVENT,
    GAP,
    HEARTBEAT,
    MALFORMED,
    OPEN,
    STATUS,
    Entry,
    Evidence,
    FollowerLog,
    Mark,
    Page,
    Publish,
    Refusal,
    Report,
    SignOut,
    Span,
    Stored,
    check,
)
from hypothesis import given
from hypothesis import strategies as st

from allim.hub import Position

TOPICS = ("user:a", "system")


def at(second: float) -> Position:
    return Position(round(second * 1000), 0)


def ok(number: int, second: float, topic: str = "system", key: str | None = None) -> Publish:
    return Publish(key, ((topic, number),), "ok", (at(second),), second, second)


def connect(second: float, last: float | None = None) -> Entry:
    return Entry(second, CONNECT, None if last is None else at(last))


def opening(second: float, position: float, resume: str = "complete", *topics: str, reason: str = "origin") -> Entry:
    return Entry(second, OPEN, at(position), 0, topics, (reason,) * len(topics), "replica-1", resume)


def event(second: float, number: int, position: float | None = None) -> Entry:
    return Entry(second, EVENT, at(second if position is None else position), number)


def heartbeat(second: float, position: float | None = None) -> Entry:
    return Entry(second, HEARTBEAT, at(second if position is None else position))


def gap(second: float, *topics: str, reason: str = "origin") -> Entry:
    return Entry(second, GAP, None, 0, topics, (reason,) * len(topics))


def close(second: float) -> Entry:
    return Entry(second, CLOSE, said="rotate", resume="true")


def end(second: float) -> Entry:
    return Entry(second, END)


NEW = (connect(1), opening(1, 1, "new"))


def judge(publishes: list[Publish], *entries: Entry, **more: object) -> Report:
    log = FollowerLog("a", TOPICS, entries=list(entries))
    return check(Evidence(publishes, [log], **more))  # type: ignore[arg-type]


def broken(report: Report) -> set[str]:
    return {rule for rule, found in report.violations.items() if found}


# -- What the contract allows ---------------------------------------------------------------------------------

THREE = [ok(1, 2), ok(2, 3, "user:a"), ok(3, 4)]


def test_a_quiet_life() -> None:
    report = judge(THREE, *NEW, event(2, 1), event(3, 2), heartbeat(3.5), event(4, 3), close(5), end(5))

    assert report.clean, str(report)
    assert (report.accepted, report.delivered, report.reconnects) == (3, 3, 0)
    assert report.closes == {"rotate": 1}


def test_a_resume_from_a_heartbeat() -> None:
    back = connect(4.5, 3.5), opening(4.5, 3.5), event(4.6, 3, 4)

    report = judge(THREE, *NEW, event(2, 1), event(3, 2), heartbeat(3.5), end(3.6), *back)

    assert report.clean, str(report)
    assert report.reconnects == 1


def test_what_came_before_the_stream_and_after_its_last_id_is_not_its_matter() -> None:
    assert judge([ok(1, 0.5), ok(2, 9)], *NEW, heartbeat(2)).clean


def test_what_others_follow_is_not_its_matter() -> None:
    assert judge([ok(1, 2, "user:b")], *NEW, heartbeat(3)).clean


def test_a_gap_that_names_the_topic_comes_first() -> None:
    report = judge(THREE, *NEW, event(2, 1), gap(3.5, "user:a"), event(4, 3))

    assert report.clean, str(report)
    assert (report.lost_and_told, report.gaps) == (1, {"origin": 1})


def test_a_reset_covers_what_was_lost_before_another_topics_event() -> None:
    """The reset stands in the opening; older events of other topics come before the first kept one of its topic."""
    lost, kept = [ok(number, 2 + number / 10, "user:a") for number in range(1, 5)], ok(9, 3, "user:a")
    back = connect(4, 1), opening(4, 1, "reset", "user:a", reason="trimmed"), event(4, 7, 2.05), event(4, 9, 3)

    report = judge([*lost, ok(7, 2.05), kept], *NEW, end(2), *back)

    assert report.clean, str(report)
    assert (report.lost_and_told, report.resets) == (4, {"trimmed": 1})


def test_an_unknown_publish_came_or_did_not() -> None:
    unknown = [Publish(None, (("system", number),), "unknown", (), 2, 3) for number in (1, 2)]

    report = judge(unknown, *NEW, event(2, 1), heartbeat(3))

    assert report.clean, str(report)
    assert (report.unknown, report.unknown_stored) == (2, 1)


def test_a_retry_over_a_loss_of_all_keys_may_be_a_double() -> None:
    publish = Publish("k", (("system", 1),), "ok", (at(4),), 2, 4)

    assert judge([publish], *NEW, event(2, 1), gap(3, *TOPICS), event(4, 1), forgotten=[Span(2.5, 2.6)]).clean


def test_a_try_that_nobody_waited_for_may_be_a_double_after_a_loss_of_all_keys() -> None:
    publish = Publish("k", (("system", 1),), "ok", (at(2),), 2, 2, "TimeoutError")
    log = *NEW, event(2, 1), gap(3, *TOPICS), event(4, 1)

    assert judge([publish], *log, forgotten=[Span(2.5, 2.6)]).clean
    assert "doubles" in broken(judge([publish._replace(said="")], *log, forgotten=[Span(2.5, 2.6)]))


def test_an_opening_that_only_says_when_to_come_back_is_no_stream() -> None:
    """nginx's answer while no replica takes streams: a status, no frame, the end."""
    away = connect(2, 1), Entry(2, STATUS, said="200"), end(2)

    assert judge([ok(1, 2.5)], *NEW, end(1.5), *away, connect(3, 1), opening(3, 1), event(3, 1, 2.5)).clean


def test_a_dropped_announcement_may_be_told_before_the_topics_next_event() -> None:
    dropped = Span(1, 3, "replica-1")
    log = *NEW, event(3, 2), gap(4, "system", reason="trimmed"), event(4, 3)

    assert judge(THREE, *log, dropping=[dropped]).clean
    assert broken(judge(THREE, *log)) == {"holes"}
    assert broken(judge(THREE, *log, dropping=[dropped._replace(replica="replica-2")])) == {"holes"}
    assert broken(judge(THREE, *log, dropping=[Span(9, 10, "replica-1")])) == {"holes"}


def test_a_dropped_announcement_is_forgotten_with_its_replica() -> None:
    log = *NEW, event(3, 2), end(3), connect(3.5, 3), opening(3.5, 3), event(4, 3)

    report = judge(THREE, *log, dropping=[Span(1, 3, "replica-1")])

    assert report.clean, str(report)
    assert report.dropped_and_untold == 1


def test_a_dropped_announcement_is_not_found_when_its_history_has_expired() -> None:
    log = *NEW, event(3, 2), event(4, 3)
    dropped = Span(1, 3, "replica-1")

    report = judge(THREE, *log, dropping=[dropped], keeps_s=1.5)

    assert report.clean, str(report)
    assert report.dropped_and_untold == 1
    assert broken(judge(THREE, *log, dropping=[dropped], keeps_s=2.5)) == {"holes"}


def test_a_position_behind_the_reader_may_be_told_when_it_was_given_out_later() -> None:
    """By a broker that had lost its memory, and whose clock lags behind."""
    late = Publish(None, (("system", 1),), "ok", (at(2),), 4, 4)

    assert judge([late], *NEW, heartbeat(3), gap(5, "system"), heartbeat(6)).clean
    assert broken(judge([late], *NEW, heartbeat(3), heartbeat(6))) == {"holes"}


def test_a_loss_is_told_also_by_an_id_ahead_of_all_that_the_broker_knows() -> None:
    back = connect(3.5, 1.5), opening(3.5, 3.4, "reset", *TOPICS, reason="ahead")

    assert judge([], *NEW, heartbeat(1.5), end(2), *back, heartbeat(4), forgotten=[Span(2, 3)]).clean


def test_who_does_not_read_may_be_ended_and_need_not_catch_up() -> None:
    log = FollowerLog("a", TOPICS, entries=[*NEW, Entry(3, END, said="slow_reader")], paused=[Span(1, 2.5)])

    report = check(Evidence([], [log], marks=[Mark(2, "a cut", 4)]))

    assert report.clean, str(report)


def test_who_has_left_for_good_need_not_catch_up() -> None:
    log = FollowerLog("a", TOPICS, entries=[*NEW, end(3)], left_at=3)

    assert check(Evidence([], [log], marks=[Mark(2, "a cut", 4)])).clean


def test_a_broker_with_another_clock_is_judged_by_its_positions() -> None:
    """Its clock is ten seconds behind; the heartbeat that comes first is from before the mark."""
    mark = Mark(13, "a cut", 4, position=at(4))

    report = judge([], connect(11), opening(11, 1, "new"), heartbeat(14, 3.5), heartbeat(15, 5), marks=[mark])

    assert report.recoveries == {"a cut": [2]}
    lost = judge(
        [ok(1, 12)._replace(positions=(at(2),))],
        *(connect(11), opening(11, 1, "new"), gap(12.5, "system"), heartbeat(13, 3)),
        broker_s=lambda moment: moment - 10,
    )
    assert lost.clean, str(lost)


FULL = Page(topics=5, events=8, size=100, max_events=8, max_bytes=4096, complete=False)


def test_pages_may_be_full_of_events_or_of_bytes_and_short_at_the_end() -> None:
    large = FULL._replace(events=1, size=4000)
    last = FULL._replace(events=0, size=0, complete=True)

    assert judge([], *NEW, pages=[FULL, large, last] * 10).clean


# -- What it forbids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "entries"),
    [
        pytest.param("holes", [event(2, 1), event(4, 3)], id="an event is missing"),
        pytest.param("holes", [event(2, 1), heartbeat(3.5)], id="a heartbeat claims what did not come"),
        pytest.param(
            "holes",
            [event(2, 1), end(2), connect(3.5, 2), opening(3.5, 3.2), event(4, 3)],
            id="a resume begins after what was missed",
        ),
        pytest.param("holes", [event(2, 1), event(4, 3), gap(4.1, "user:a")], id="a gap comes too late"),
        pytest.param("holes", [event(2, 1), gap(2.5, "user:a"), event(4, 3)], id="a gap came before the event"),
        pytest.param("holes", [event(2, 1), gap(3.5, "system"), event(4, 3)], id="a gap names another topic"),
        pytest.param("order", [event(2, 1), event(4, 3), event(4.1, 2, 3)], id="an event comes late"),
        pytest.param("order", [event(2, 1), heartbeat(2.1, 1.9)], id="a heartbeat goes back"),
        pytest.param("order", [event(2, 1), heartbeat(2.1, 2)], id="a heartbeat repeats an id"),
        pytest.param(
            "order", [event(2, 1), end(2), connect(2.5, 2), opening(2.5, 1.5)], id="a resume begins before its id"
        ),
        pytest.param("doubles", [event(2, 1), event(2, 1)], id="an event comes twice"),
        pytest.param(
            "doubles", [event(2, 1), end(2), connect(2, 2), opening(2, 2), event(2, 1)], id="and over a resume"
        ),
        pytest.param("doubles", [event(2, 1), event(2.5, 1)], id="an event is at two positions"),
        pytest.param("positions", [event(2.1, 1)], id="not where its publisher was told"),
        pytest.param("phantoms", [event(1.5, 77)], id="nobody published it"),
        pytest.param("framing", [close(2), heartbeat(3)], id="a frame after the close"),
        pytest.param("framing", [close(2), close(2)], id="a second close"),
        pytest.param("framing", [end(1), connect(1.5, 1), heartbeat(1.6)], id="a heartbeat before the opening"),
        pytest.param("framing", [end(1), connect(1.5, 1), gap(1.6, "system")], id="a gap before the opening"),
        pytest.param("framing", [opening(1.5, 1.5)], id="a second opening"),
        pytest.param("framing", [end(1), connect(1.5, 1), opening(1.5, 1, "new")], id="a resume taken for new"),
        pytest.param("framing", [end(1), connect(1.5, 1), Entry(2, OPEN, said="r")], id="an opening without an id"),
        pytest.param("framing", [Entry(2, EVENT, None, 1)], id="an event without an id"),
        pytest.param("framing", [Entry(2, MALFORMED, said="id:")], id="no frame at all"),
        pytest.param("framing", [Entry(2, STATUS, said="503")], id="a status a browser gives up on"),
    ],
)
def test_it_is_caught(rule: str, entries: list[Entry]) -> None:
    assert rule in broken(judge(THREE, *NEW, *entries))


def test_a_trimmed_gap_excuses_nothing_after_the_topics_next_event() -> None:
    """What is trimmed is older than what is kept, so a hole behind a kept event is a hole."""
    publishes = [ok(1, 2), ok(2, 3), ok(3, 4)]

    assert judge(publishes, *NEW, gap(5, "system", reason="trimmed"), event(5, 3, 4)).clean
    late = judge(publishes, *NEW, gap(5, "system", reason="trimmed"), event(5, 1, 2), event(5, 3, 4))
    assert broken(late) == {"holes"}


def test_a_stream_that_never_opened_is_caught() -> None:
    assert broken(judge([], connect(1), end(1))) == {"framing"}


def test_a_refused_event_that_comes_is_caught() -> None:
    refused = Publish(None, (("system", 1),), "refused", (), 2, 2)

    assert broken(judge([refused], *NEW, event(2, 1))) == {"phantoms"}


def test_a_foreign_event_is_caught() -> None:
    assert broken(judge([ok(1, 2, "user:b")], *NEW, event(2, 1))) == {"phantoms"}


def test_a_double_without_a_loss_of_keys_is_caught() -> None:
    publish = Publish("k", (("system", 1),), "ok", (at(4),), 2, 4)
    log = *NEW, event(2, 1), gap(3, *TOPICS), event(4, 1)

    assert "doubles" in broken(judge([publish], *log))
    assert "doubles" in broken(judge([publish], *log, forgotten=[Span(5, 6)]))
    assert "doubles" in broken(judge([publish._replace(key=None)], *log, forgotten=[Span(2.5, 2.6)]))


def test_followers_that_see_an_event_at_different_positions_are_caught() -> None:
    unknown = Publish(None, (("system", 1),), "unknown", (), 2, 3)
    logs = [FollowerLog(name, TOPICS, entries=[*NEW, event(2 + place, 1)]) for place, name in enumerate("ab")]

    assert "doubles" in broken(check(Evidence([unknown], logs)))


def test_an_unknown_event_that_one_saw_is_missed_by_the_other() -> None:
    unknown = Publish(None, (("system", 1),), "unknown", (), 2, 3)
    saw = FollowerLog("a", TOPICS, entries=[*NEW, event(2, 1)])
    missed = FollowerLog("b", TOPICS, entries=[*NEW, heartbeat(3)])

    assert broken(check(Evidence([unknown], [saw, missed]))) == {"holes"}


def test_half_a_batch_is_caught() -> None:
    batch = Publish(
        None, tuple((topic, n) for n, topic in enumerate(("system", "user:a", "system"), 1)), "unknown", (), 2, 3
    )
    whole = *NEW, event(2, 1), event(2.1, 2), event(2.2, 3), heartbeat(3)

    assert judge([batch], *whole).clean
    assert broken(judge([batch], *NEW, event(2, 1), event(2.2, 3), heartbeat(3))) == {"batches"}


def test_a_batch_whose_positions_do_not_rise_is_caught() -> None:
    batch = Publish("k", (("system", 1), ("system", 2)), "ok", (at(3), at(2)), 2, 3)

    assert "positions" in broken(judge([batch], *NEW))


def test_a_loss_must_be_told_to_who_was_there() -> None:
    lost = Span(2, 3)

    told = judge([], *NEW, heartbeat(1.5), gap(3.5, *TOPICS), heartbeat(4), forgotten=[lost])
    assert told.clean, str(told)
    for log in (
        [heartbeat(1.5), heartbeat(4)],
        [heartbeat(1.5), gap(3.5, "system"), heartbeat(4)],
        [heartbeat(1.5), gap(1.9, *TOPICS), heartbeat(4)],
        [heartbeat(1.5), gap(3.5, *TOPICS, reason="trimmed"), heartbeat(4)],
    ):
        assert broken(judge([], *NEW, *log, forgotten=[lost])) == {"origin"}


def test_a_loss_is_no_matter_of_who_came_later() -> None:
    assert judge([], connect(4), opening(4, 4, "new"), heartbeat(9), forgotten=[Span(2, 3)]).clean


def test_recovery_is_measured_from_the_mark() -> None:
    report = judge([], *NEW, heartbeat(2), heartbeat(6), marks=[Mark(3, "a cut", 4)])

    assert report.clean, str(report)
    assert report.recoveries == {"a cut": [3]}


def test_an_id_from_before_the_mark_is_no_recovery() -> None:
    """Something came, but it does not reach up to the moment of healing."""
    assert broken(judge([], *NEW, heartbeat(4, 2.5), heartbeat(9), marks=[Mark(3, "a cut", 4)])) == {"recovery"}


def test_a_follower_that_never_recovers_is_caught() -> None:
    assert broken(judge([], *NEW, heartbeat(2), marks=[Mark(3, "a cut", 4)])) == {"recovery"}


def test_the_next_fault_ends_the_judging_of_the_last() -> None:
    assert judge([], *NEW, heartbeat(2), heartbeat(9), marks=[Mark(3, "a cut", 4, undisturbed_until=5)]).clean


def test_a_reader_that_reads_is_no_slow_reader() -> None:
    slow = *NEW, Entry(30, END, said="slow_reader")

    assert broken(judge([], *slow)) == {"slow"}
    log = FollowerLog("a", TOPICS, entries=list(slow), paused=[Span(1, 9)])
    assert broken(check(Evidence([], [log]))) == {"slow"}


def test_pages_that_are_short_although_more_is_there_are_caught() -> None:
    assert broken(judge([], *NEW, pages=[FULL._replace(events=1)] * 10)) == {"cost"}


def test_a_wait_that_is_longer_than_the_limits_period_is_caught() -> None:
    assert judge([], *NEW, refusals=[Refusal(2, "p", retry_after_s=9.9, period_s=10)]).clean
    assert broken(judge([], *NEW, refusals=[Refusal(2, "p", retry_after_s=10.1, period_s=10)])) == {"rates"}


def test_a_stream_that_outlives_its_sign_out_is_caught() -> None:
    out = SignOut("a", 204, 2)
    lives = *NEW, heartbeat(9)

    assert broken(judge([], *lives, sign_outs=[out])) == {"ended"}
    assert judge([], *lives, sign_outs=[out._replace(status=503)]).clean
    assert judge([], *lives, sign_outs=[out], marks=[Mark(4, "a cut", 6)]).clean  # its replica may hear of it late
    assert broken(judge([], *lives, heartbeat(11), sign_outs=[out], marks=[Mark(4, "a cut", 6)])) == {"ended"}


def test_a_position_below_an_earlier_answer_is_caught() -> None:
    early, late = ok(1, 5), ok(2, 4)._replace(began=6, ended=6.5)
    log = *NEW, event(6.5, 2, 4), event(6.6, 1, 5)

    assert broken(judge([early, late], *log)) == {"order"}
    assert not broken(judge([early, late._replace(began=4.9)], *log))  # at the same time as the other


def test_an_event_that_history_holds_twice_is_caught() -> None:
    publish = Publish("k", (("system", 1),), "ok", (at(2),), 2, 2)
    kept = [Stored(at(2), "system", 1), Stored(at(2.5), "system", 1)]

    assert "doubles" in broken(judge([publish], *NEW, event(2, 1), kept=kept))


# -- Any history, one frame wrong -----------------------------------------------------------------------------


def history(rng: random.Random) -> Evidence:
    """A clean one: followers that come, go, resume, are told of losses, and otherwise get everything."""
    numbers = count(1)
    topics = ["system", *(f"user:{name}" for name in "abc")]
    publishes = [ok(next(numbers), 10 + moment, rng.choice(topics)) for moment in range(rng.randint(5, 40))]
    return Evidence(publishes, [_life(name, publishes, rng) for name in "abc"])


def _life(name: str, publishes: list[Publish], rng: random.Random) -> FollowerLog:
    log = FollowerLog(name, (f"user:{name}", "system"), entries=[connect(1), opening(1, 1, "new")])
    mine = [publish for publish in publishes if publish.events[0][0] in log.topics]
    cursor = 1.0
    for publish in mine:
        (_, number), position = publish.events[0], publish.positions[0].ms / 1000
        happens = rng.random()
        if happens < 0.15:
            log.entries.append(end(position))
            log.entries += connect(position, cursor), opening(position, cursor)
        elif happens < 0.3:
            log.entries.append(heartbeat(position - 0.5))
            cursor = position - 0.5
        if rng.random() < 0.1:
            log.entries.append(gap(position + 0.1, *log.topics))
        else:
            log.entries.append(event(position + 0.2, number, position))
            cursor = position
    log.entries.append(heartbeat(100))
    return log


def _events(evidence: Evidence) -> Iterator[tuple[int, int]]:
    """Those that no gap excuses: none follows before the next id."""
    for which, follower in enumerate(evidence.followers):
        entries = follower.entries
        for index, entry in enumerate(entries):
            after = takewhile(lambda later: later.kind not in (EVENT, HEARTBEAT), entries[index + 1 :])
            if entry.kind == EVENT and not any(later.kind == GAP for later in after):
                yield which, index


def drop(entries: list[Entry], index: int) -> None:
    del entries[index]


def repeat(entries: list[Entry], index: int) -> None:
    entries.insert(index + 1, entries[index])


def delay(entries: list[Entry], index: int) -> None:
    """To the end, after the last heartbeat."""
    entries.append(entries.pop(index))


def move(entries: list[Entry], index: int) -> None:
    entry = entries[index]
    assert entry.position is not None
    entries[index] = entry._replace(position=Position(entry.position.ms + 1, 7))


@given(seed=st.integers(0, 2**32))
def test_a_clean_history_passes(seed: int) -> None:
    report = check(history(random.Random(seed)))

    assert report.clean, str(report)


@pytest.mark.parametrize("mutate", [drop, repeat, delay, move])
@given(seed=st.integers(0, 2**32))
def test_one_wrong_frame_is_caught(mutate: Callable[[list[Entry], int], None], seed: int) -> None:
    rng = random.Random(seed)
    evidence = history(rng)
    events = list(_events(evidence))
    if not events:
        return
    which, index = rng.choice(events)
    follower = evidence.followers[which]
    mutated = replace(follower, entries=list(follower.entries))
    mutate(mutated.entries, index)
    logs = [mutated if log is follower else log for log in evidence.followers]

    assert not check(replace(evidence, followers=logs)).clean
