"""Judges what a storm logged: is every accepted event in every follower's log, once, in order, or told as lost?

Pure: logs in, a report out. It knows positions and the contract of docs/protocol.md, and nothing of how allim works.

A frame with an id, whatever its type, says "everything of your topics up to here has been written or told". So the
log is walked from id to id: an event that lies between two of them and did not come is a hole, unless a reset or gap
that names its topic came first.
"""

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from statistics import median
from typing import Literal, NamedTuple

from allim.hub import ZERO, Position

SHOWN = 12  # violations of one rule that are printed

OPEN, HEARTBEAT, GAP, CLOSE, EVENT = "stream.open", "heartbeat", "stream.gap", "stream.close", "event"
CONNECT, STATUS, END, MALFORMED = "connect", "status", "end", "malformed"  # what is no frame

GOES_ON_S = 10.0  # a try of a publish, whoever waits for it
AFTER_PAUSE_S = 5.0  # in which what a follower did not read may end it
FEW_PAGES, FULL_ENOUGH = 8, 0.4
SIGNED_OUT_S = 5.0  # without faults
LATE_CLOCK_S = 1.0  # between an announcement's position and its being dropped on the way


class Entry(NamedTuple):
    """One line of a follower's log: a frame, or something that happened to its connection.

    Shape: `position` is the frame's id, or the last event ID sent by CONNECT; `number` the event's; `topics` those a
    gap, or the resets of an opening, name, with their `reasons`; `said` the replica of an opening, its verdict in
    `resume`; the reason of a close or an end, the status, or what was malformed.
    Units: `at` in Unix seconds.
    """

    at: float
    kind: str
    position: Position | None = None
    number: int = 0
    topics: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    said: str = ""
    resume: str = ""

    def __str__(self) -> str:
        parts = [f"{self.at:.3f}", self.kind, str(self.position or "")]
        parts += [f"#{self.number}"] if self.kind == EVENT else []
        parts += [self.resume, self.said, *map("=".join, zip(self.topics, self.reasons, strict=False))]
        return " ".join(part for part in parts if part)


@dataclass
class FollowerLog:
    """One client over all its connections, in the order things happened.

    Shape: `paused` are the times in which it did not read or was away.
    Units: `left_at` Unix seconds, when it left for good.
    """

    name: str
    topics: tuple[str, ...]
    behind_nginx: bool = True
    entries: list[Entry] = field(default_factory=list)
    paused: "list[Span]" = field(default_factory=list)
    left_at: float = float("inf")


class Publish(NamedTuple):
    """One publish over all its attempts.

    Shape: `events` are topic and number, the number being in the data; `positions` those of the answer.
    Units: `began` and `ended` in Unix seconds.
    """

    key: str | None
    events: tuple[tuple[str, int], ...]
    result: Literal["ok", "refused", "unknown"]
    positions: tuple[Position, ...]
    began: float
    ended: float
    said: str = ""


class Span(NamedTuple):
    """A time in which the world was allowed to break something. `replica` is empty for all of them."""

    since: float
    until: float
    replica: str = ""

    def touches(self, since: float, until: float) -> bool:
        return self.since <= until and since <= self.until


class Mark(NamedTuple):
    """A moment at which everything worked again. Followers have `limit_s` from then on to have caught up.

    Who had not when the next fault came, `undisturbed_until`, is judged by a later mark. `position` is the newest
    that the broker had given out, where that is known: its clock may be another than the followers'.
    """

    at: float
    what: str
    limit_s: float
    undisturbed_until: float = float("inf")
    position: Position | None = None


class Page(NamedTuple):
    """A page of history that a replica read.

    Shape: `complete` when nothing was left after it; at most so many events and about so many bytes were asked for.
    """

    topics: int
    events: int
    size: int
    max_events: int
    max_bytes: int
    complete: bool

    @property
    def filled(self) -> float:
        """The share of what was asked for that came."""
        return max(self.events / self.max_events, self.size / self.max_bytes)


class Refusal(NamedTuple):
    """Somebody was told to wait for a limit. Units: Unix seconds; `period_s` is the limit's period."""

    at: float
    who: str
    retry_after_s: float
    period_s: float


class SignOut(NamedTuple):
    """Somebody signed out, and what that was answered."""

    who: str
    status: int
    at: float


@dataclass
class Evidence:
    """All a storm logged.

    Shape: `forgotten` are the times in which the broker may have lost its memory, and idempotency keys with it;
    `dropping` those in which announcements to a replica were dropped on the way. There a hole may be told later:
    before the topic's next event. See "Not promised" in docs/protocol.md. `broker_s` gives the newest time that the
    broker's clock had shown at a moment, where that is another clock than the followers'; `dropping` is in its time.
    `keeps_s` is how long history is kept at least. `pages`, `refusals` and `sign_outs` are what a simulation sees
    besides, `kept` what history holds at the end.
    """

    publishes: Sequence[Publish]
    followers: Sequence[FollowerLog]
    marks: Sequence[Mark] = ()
    forgotten: Sequence[Span] = ()
    dropping: Sequence[Span] = ()
    broker_s: Callable[[float], float] = float
    keeps_s: float = float("inf")
    pages: Sequence[Page] = ()
    refusals: Sequence[Refusal] = ()
    sign_outs: Sequence[SignOut] = ()
    kept: "Sequence[Stored]" = ()


RULES = {
    "framing": "the first frame is stream.open with an id, nothing follows stream.close, every frame is well formed",
    "order": "positions strictly rise on a connection and over its successors",
    "holes": "an accepted event comes, or a reset or gap names its topic first",
    "doubles": "an event is at one position, and once in a log",
    "phantoms": "what comes was published, accepted, and of a topic the follower follows",
    "positions": "an event is where its publisher was told it is",
    "batches": "a batch is stored whole or not at all",
    "origin": "who was there when the broker lost its memory is told so for every topic",
    "recovery": "every follower catches up in time",
    "slow": "only a follower that does not read is ended as a slow reader",
    "cost": "a page of history is full, unless it is the last: cost is linear in what is delivered",
    "rates": "nobody waits longer for a limit than its period",
    "ended": "who has signed out gets nothing more",
}


@dataclass
class Report:
    """What was found: violations by rule, and figures."""

    violations: dict[str, list[str]] = field(default_factory=lambda: {rule: [] for rule in RULES})
    accepted: int = 0
    refused: int = 0
    unknown: int = 0
    unknown_stored: int = 0
    delivered: int = 0
    lost_and_told: int = 0
    dropped_and_untold: int = 0
    resets: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    gaps: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    closes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    reconnects: int = 0
    recoveries: dict[str, list[float]] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        return not any(self.violations.values())

    def __str__(self) -> str:
        lines = [
            f"accepted {self.accepted}, refused {self.refused}, "
            f"unknown {self.unknown} ({self.unknown_stored} of them stored)",
            f"delivered {self.delivered}, told as lost {self.lost_and_told}, "
            f"dropped on the way and not told for a reconnect {self.dropped_and_untold}",
            f"reconnects {self.reconnects}, closes {_counts(self.closes)}, "
            f"resets {_counts(self.resets)}, gaps {_counts(self.gaps)}",
        ]
        lines += [
            f"recovery after {what}: median {median(times):.2f} s, longest {max(times):.2f} s, {len(times)} followers"
            for what, times in self.recoveries.items()
            if times
        ]
        for rule, found in self.violations.items():
            if found:
                lines.append(f"VIOLATED {len(found)} times: {RULES[rule]}")
                lines += [f"  {text}" for text in islice(found, SHOWN)]
                lines += [f"  ... and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        return "\n".join([*lines, "clean" if self.clean else "NOT CLEAN"])


def check(evidence: Evidence) -> Report:
    """Judge."""
    report = Report()
    store = _Store(evidence, report)
    for follower in evidence.followers:
        _Walk(follower, store, report).run()
    _judge_batches(store, report)
    _judge_origin(evidence, report)
    _judge_recovery(evidence, report)
    _judge_order(evidence, report)
    _judge_slow(evidence, report)
    _judge_cost(evidence, report)
    _judge_rates(evidence, report)
    _judge_sign_outs(evidence, report)
    return report


class Stored(NamedTuple):
    """An event at the position it was given; ordered by that."""

    position: Position
    topic: str
    number: int


class _Store:
    """What the broker must have held, put together from what publishers were told and what anybody saw."""

    def __init__(self, evidence: Evidence, report: Report) -> None:
        self.dropping = evidence.dropping
        self.broker_s = evidence.broker_s
        self.keeps_ms = evidence.keeps_s * 1000
        self.publish_of = {number: publish for publish in evidence.publishes for _, number in publish.events}
        self.topic_of = {number: topic for publish in evidence.publishes for topic, number in publish.events}
        self.publishes = evidence.publishes
        self.forgotten = evidence.forgotten
        self.seen: dict[int, dict[Position, str]] = defaultdict(dict)
        for follower in evidence.followers:
            for entry in follower.entries:
                if entry.kind == EVENT and entry.position is not None:
                    self.seen[entry.number].setdefault(entry.position, follower.name)
        for held in evidence.kept:
            self.seen[held.number].setdefault(held.position, "history")
        self.told = {
            follower.name: {topic for entry in follower.entries for topic in entry.topics}
            for follower in evidence.followers
        }
        self.followers = evidence.followers
        self._by_topic: dict[str, list[Stored]] = defaultdict(list)
        for publish in evidence.publishes:
            self._take(publish, report)
        for stored in self._by_topic.values():
            stored.sort()
        for number, positions in self.seen.items():
            if number not in self.publish_of:
                report.violations["phantoms"].append(f"#{number} was never published; seen {_places(positions)}")

    def of(self, topics: Iterable[str]) -> list[Stored]:
        return sorted(stored for topic in topics for stored in self._by_topic.get(topic, ()))

    def _take(self, publish: Publish, report: Report) -> None:
        count = len(publish.events)
        if publish.result == "refused":
            report.refused += count
        elif publish.result == "ok":
            report.accepted += count
        else:
            report.unknown += count
        if publish.result == "ok" and (len(publish.positions) != count or _not_rising(publish.positions)):
            report.violations["positions"].append(f"answered {publish.positions} for {count} events: {publish}")
        answered = dict(zip((number for _, number in publish.events), publish.positions, strict=False))
        for topic, number in publish.events:
            seen = self.seen.get(number, {})
            told = answered.get(number)
            self._judge(publish, number, seen, told, report)
            for position in {*seen, *([told] if told else [])}:
                self._by_topic[topic].append(Stored(position, topic, number))

    def _judge(
        self, publish: Publish, number: int, seen: dict[Position, str], told: Position | None, report: Report
    ) -> None:
        if not seen:
            return
        report.unknown_stored += publish.result == "unknown"
        if publish.result == "refused":
            report.violations["phantoms"].append(f"#{number} was refused and came: {_places(seen)}; {publish}")
        if self.may_be_doubled(number):
            return
        if len(seen) > 1:
            report.violations["doubles"].append(f"#{number} is at several positions: {_places(seen)}; {publish}")
        elif told is not None and told not in seen:
            report.violations["positions"].append(f"#{number} was told {told}, seen {_places(seen)}; {publish}")

    def may_be_doubled(self, number: int) -> bool:
        """A try that came after the broker had forgotten the key cannot be recognised. One whose answer nobody waited
        for goes on in its replica, also when another has been answered.
        """
        publish = self.publish_of.get(number)
        if publish is None or publish.key is None:
            return False
        ended = publish.ended + (GOES_ON_S if publish.said else 0.0)
        return any(span.touches(publish.began, ended) for span in self.forgotten)


class _Walk:
    """One follower's log from its beginning to its end."""

    def __init__(self, follower: FollowerLog, store: _Store, report: Report) -> None:
        self.follower = follower
        self.store = store
        self.report = report
        self.due = store.of(follower.topics)
        self.at = 0  # in `due`: the first event after the cursor
        self.cursor: Position | None = None
        self.replica = ""
        self.told: dict[str, tuple[float, str]] = {}  # topic → when, reason
        self.untold: dict[str, list[tuple[Position, str]]] = defaultdict(list)  # topic → holes that may still be told
        self.behind: dict[str, list[str]] = defaultdict(list)  # topic → those given out behind the cursor, later
        self.numbers: dict[int, Position] = {}
        self.opened = self.closed = False

    def run(self) -> None:
        connections = 0
        for index, entry in enumerate(self.follower.entries):
            match entry.kind:
                case "connect":
                    connections += 1
                    self._connect(entry, index)
                case "status":
                    if entry.said != "200" and self.follower.behind_nginx:
                        self._violated("framing", index, f"a browser gives up for good on status {entry.said}")
                case "end":
                    pass
                case "malformed":
                    self._violated("framing", index, f"malformed: {entry.said}")
                case _:
                    self._frame(entry, index)
        self.report.reconnects += max(0, connections - 1)
        for text in chain.from_iterable(self.behind.values()):
            self._violated("holes", len(self.follower.entries) - 1, f"{text}, and was never told")
        if self.cursor is None:
            self._violated("framing", len(self.follower.entries) - 1, "no stream was ever opened")

    def _connect(self, entry: Entry, index: int) -> None:
        self.opened = self.closed = False
        if entry.position != self.cursor:
            self._violated("framing", index, f"the follower itself is wrong: it stands at {self.cursor}")
        for topic in list(self.untold):  # the replica that could have told it holds this follower no more
            self.report.dropped_and_untold += len(self.untold.pop(topic))

    def _frame(self, entry: Entry, index: int) -> None:
        if self.closed:
            self._violated("framing", index, "after stream.close")
        if self.opened == (entry.kind == OPEN):
            self._violated("framing", index, "a second stream.open" if self.opened else "before stream.open")
        if entry.kind == OPEN:
            self._open(entry, index)
        elif entry.kind == GAP:
            self.report.gaps[entry.reasons[0] if entry.reasons else ""] += 1
            self._tell(entry)
        elif entry.kind == CLOSE:
            self.closed = True
            self.report.closes[entry.said] += 1
        elif entry.position is not None:
            if self.cursor is not None and entry.position <= self.cursor:
                self._violated("order", index, f"at or before {self.cursor}")
            if entry.kind == EVENT:
                self._event(entry, index)
            self._pass(entry, index)
        elif entry.kind == EVENT:
            self._violated("framing", index, "an event without an id")

    def _open(self, entry: Entry, index: int) -> None:
        self.opened = True
        self.replica = entry.said
        for reason in set(entry.reasons):
            self.report.resets[reason] += 1
        self._tell(entry)
        if entry.position is None:
            self._violated("framing", index, "stream.open without an id")
        elif self.cursor is None:
            self.cursor = entry.position
            self.at = bisect_right(self.due, (entry.position, chr(0x10FFFF), 0))
        else:
            if entry.resume == "new":
                self._violated("framing", index, f"`new`, although the last event ID was {self.cursor}")
            if entry.position < self.cursor:
                if set(entry.topics) < set(self.follower.topics):
                    self._violated("order", index, f"resumed before {self.cursor} without a reset of every topic")
                self.at = bisect_right(self.due, (entry.position, chr(0x10FFFF), 0))
            self._pass(entry, index)

    def _tell(self, entry: Entry) -> None:
        for topic, reason in zip(entry.topics, entry.reasons, strict=True):
            self.told[topic] = (entry.at, reason)
            self.report.lost_and_told += len(self.untold.pop(topic, ())) + len(self.behind.pop(topic, ()))

    def _event(self, entry: Entry, index: int) -> None:
        assert entry.position is not None
        self.report.delivered += 1
        topic = self.store.topic_of.get(entry.number)
        if topic is not None and topic not in self.follower.topics:
            self._violated("phantoms", index, f"of {topic}, which this follower does not follow")
        before = self.numbers.get(entry.number)
        self.numbers[entry.number] = entry.position
        if before is not None and (before == entry.position or not self.store.may_be_doubled(entry.number)):
            self._violated("doubles", index, f"came before, at {before}")
        if topic is None:
            return
        for position, text in self.untold.pop(topic, ()):
            if entry.position.ms - position.ms > self.store.keeps_ms:  # nothing is left to which the next one points
                self.report.dropped_and_untold += 1
            else:
                self._violated("holes", index, f"{text}, and was never told before the topic's next event")

    def _pass(self, entry: Entry, index: int) -> None:
        """The cursor moves to this id: what lies between and did not come is a hole."""
        position = entry.position
        assert position is not None
        while self.at < len(self.due) and self.due[self.at].position <= position:
            event = self.due[self.at]
            self.at += 1
            if entry.kind != EVENT or event.number != entry.number or event.position != position:
                self._missed(event, entry, index)
        if entry.kind == EVENT and (topic := self.store.topic_of.get(entry.number)) is not None:
            told = self.told.get(topic)
            if told is not None and told[1] != "origin":
                del self.told[topic]  # what is trimmed is older than what is kept
        self.cursor = position

    def _missed(self, event: Stored, entry: Entry, index: int) -> None:
        """Excused when told before, at a moment when the event existed: who then loads the state anew has it in."""
        text = f"#{event.number} of {event.topic} at {event.position} did not come"
        told = self.told.get(event.topic)
        if told is not None and event.position.ms <= self.store.broker_s(told[0]) * 1000 + 1:
            self.report.lost_and_told += 1
        elif self.store.publish_of[event.number].began > entry.at:
            self.behind[event.topic].append(text)  # by a broker that had lost its memory
        elif self._dropped(event):
            self.untold[event.topic].append((event.position, text))
        else:
            self._violated("holes", index, f"{text}, cursor was {self.cursor}; {self.store.publish_of[event.number]}")

    def _dropped(self, event: Stored) -> bool:
        at = event.position.ms / 1000
        return any(
            span.replica == self.replica and span.touches(at - LATE_CLOCK_S, at + LATE_CLOCK_S)
            for span in self.store.dropping
        )

    def _violated(self, rule: str, index: int, text: str) -> None:
        around = self.follower.entries[max(0, index - 3) : index + 3]
        context = " | ".join(str(entry) for entry in around)
        self.report.violations[rule].append(f"{self.follower.name} on {self.replica}: {text}: {context}")


def _judge_batches(store: _Store, report: Report) -> None:
    """A batch of which something was seen was stored; who never was told of a loss must have all of it."""
    for publish in store.publishes:
        if publish.result != "unknown" or len(publish.events) < 2:
            continue
        seen = [number for _, number in publish.events if number in store.seen]
        missing = [(topic, number) for topic, number in publish.events if number not in store.seen]
        if not seen:
            continue
        first, last = (f(position for number in seen for position in store.seen[number]) for f in (min, max))
        for topic, number in missing:
            if witness := _witness(store, topic, first, last):
                report.violations["batches"].append(f"{witness} saw nothing of #{number} of {topic}: {publish}")


def _witness(store: _Store, topic: str, first: Position, last: Position) -> str | None:
    """A follower of the topic that stood open over these positions and was never told of a loss."""
    for follower in store.followers:
        if topic in follower.topics and topic not in store.told[follower.name]:
            ids = [entry.position for entry in follower.entries if entry.position is not None]
            if ids and ids[0] < first and ids[-1] > last:
                return follower.name
    return None


def _judge_origin(evidence: Evidence, report: Report) -> None:
    """Each loss is told between it and the follower's last id; two in quick succession may be told at once."""
    for follower in evidence.followers:
        ids = [entry.at for entry in follower.entries if entry.position is not None and entry.kind != CONNECT]
        for lost in evidence.forgotten:
            if not ids or ids[0] >= lost.since or ids[-1] <= lost.until:
                continue
            if any(span.touches(lost.since, lost.until) for span in follower.paused):
                continue  # what it read later may be from before
            told = {
                topic
                for entry in follower.entries
                if entry.at >= lost.since
                for topic, reason in zip(entry.topics, entry.reasons, strict=True)
                if reason in ("origin", "ahead")  # ahead: of all that the broker knows after it
            }
            if untold := set(follower.topics) - told:
                after = " | ".join(str(entry) for entry in _around(follower.entries, lost.until))
                report.violations["origin"].append(f"{follower.name} was never told for {sorted(untold)}: {after}")


def _judge_recovery(evidence: Evidence, report: Report) -> None:
    """Caught up is who has an id not older than the mark: positions are the broker's time."""
    for follower in evidence.followers:
        reached = list(_rising(follower.entries))
        for mark in evidence.marks:
            if not reached or reached[0][1] > mark.at:
                continue  # it was not there yet
            index = bisect_left(reached, (mark.position or Position(math.ceil(mark.at * 1000), 0), 0.0))
            caught_up_at = reached[index][1] if index < len(reached) else float("inf")
            if min(caught_up_at, mark.at + mark.limit_s) > min(mark.undisturbed_until, follower.left_at):
                continue
            if any(span.touches(mark.at, mark.at + mark.limit_s) for span in follower.paused):
                continue
            took_s = max(0.0, caught_up_at - mark.at)
            report.recoveries.setdefault(mark.what, []).append(took_s)
            if took_s > mark.limit_s:
                last = " | ".join(str(entry) for entry in _around(follower.entries, mark.at + mark.limit_s))
                report.violations["recovery"].append(
                    f"{follower.name} took {took_s:.1f} s after {mark.what}, limit {mark.limit_s:.1f} s: {last}"
                )


def _rising(entries: Iterable[Entry]) -> Iterator[tuple[Position, float]]:
    """Each new highest id, and when it came."""
    highest = ZERO
    for entry in entries:
        if entry.position is not None and entry.kind != CONNECT and entry.position > highest:
            highest = entry.position
            yield highest, entry.at


def _judge_order(evidence: Evidence, report: Report) -> None:
    """What was published after an answer stands behind what was answered, if the broker lost nothing meanwhile."""
    answered = sorted((p for p in evidence.publishes if p.result == "ok"), key=lambda publish: publish.ended)
    newest = answered[0] if answered else None
    by_start = sorted(answered, key=lambda publish: publish.began)
    at = 0
    for publish in by_start:
        while at < len(answered) and answered[at].ended < publish.began:
            if newest is None or answered[at].positions[-1:] > newest.positions[-1:]:
                newest = answered[at]
            at += 1
        if at == 0 or newest is None or not publish.positions or publish.positions[0] > newest.positions[-1]:
            continue
        if not any(span.touches(newest.began, publish.ended) for span in evidence.forgotten):
            report.violations["order"].append(f"{publish} came after {newest}")


def _judge_slow(evidence: Evidence, report: Report) -> None:
    for follower in evidence.followers:
        for index, entry in enumerate(follower.entries):
            if entry.kind != END or entry.said != "slow_reader":
                continue
            if not any(span.touches(entry.at - AFTER_PAUSE_S, entry.at) for span in follower.paused):
                last = " | ".join(str(other) for other in follower.entries[max(0, index - 3) : index + 1])
                report.violations["slow"].append(f"{follower.name} read all the time: {last}")


def _judge_cost(evidence: Evidence, report: Report) -> None:
    """Of pages after which there was more: they may be short now and then."""
    cut = [page for page in evidence.pages if not page.complete]
    if len(cut) < FEW_PAGES:
        return
    filled = sum(min(1.0, page.filled) for page in cut) / len(cut)
    if filled < FULL_ENOUGH:
        least = min(cut, key=lambda page: page.filled)
        report.violations["cost"].append(f"{len(cut)} pages were {filled:.0%} full, such as {least}")


def _judge_rates(evidence: Evidence, report: Report) -> None:
    for refusal in evidence.refusals:
        if refusal.retry_after_s > refusal.period_s:
            report.violations["rates"].append(f"{refusal}")


def _judge_sign_outs(evidence: Evidence, report: Report) -> None:
    """Once everything works again, or at once. What a broker has forgotten it cannot know."""
    followers = {follower.name: follower for follower in evidence.followers}
    for out in evidence.sign_outs:
        if out.status != 204 or any(span.until >= out.at for span in evidence.forgotten):
            continue
        healed = [mark for mark in evidence.marks if mark.at >= out.at]
        ends_at = max([out.at + SIGNED_OUT_S, *(mark.at + mark.limit_s for mark in healed)])
        late = [
            entry for entry in followers[out.who].entries if entry.at > ends_at and entry.kind in (EVENT, HEARTBEAT)
        ]
        if late:
            report.violations["ended"].append(f"{out}, and later {late[0]}")


def _around(entries: Sequence[Entry], at: float) -> Sequence[Entry]:
    index = bisect_left(entries, at, key=lambda entry: entry.at)
    return entries[max(0, index - 5) : index + 2]


def _not_rising(positions: Sequence[Position]) -> bool:
    return any(later <= earlier for earlier, later in pairwise(positions))


def _places(positions: dict[Position, str]) -> str:
    return ", ".join(f"{position} by {name}" for position, name in positions.items())


def _counts(counted: dict[str, int]) -> str:
    return " ".join(f"{name}={count}" for name, count in sorted(counted.items())) or "none"
