"""The product, broken on purpose: each promise must have a test that notices.

`make mutants` breaks a copy of the sources in one place at a time and runs the tests that docs/protocol.md names for
the promise; one of them must fail. `mutated` gives such a copy to the storm, whose checker must notice it as well.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 300


class Mutant(NamedTuple):
    """One place in `src/allim` where `right` is replaced by `wrong`, and the tests that must notice.

    Shape: `promise` is its number in docs/protocol.md.
    """

    name: str
    promise: int
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]


BROKER = "tests/contracts/test_broker.py::"
STREAMS = "tests/contracts/test_streams.py::"
SESSIONS = "tests/contracts/test_sessions.py::"
LEDGER = "tests/contracts/test_ledger.py::"
SSE = "tests/contracts/test_sse.py::"
REDIS = "tests/brokers/test_redis.py::"
SIMULATION = "tests/simulation/test_simulation.py::test_whatever_befalls_every_promise_is_kept"
FULL_REDIS = (
    "tests/system/test_full_redis.py::"
    "test_while_redis_is_full_sign_outs_and_kicks_end_their_streams_and_publishes_are_refused"
)
FRAMING = "tests/server/test_framing.py::"
SLOW = "tests/server/test_slow_clients.py::"

SKIP_THE_BUFFER = Mutant(
    "what arrives in the last 50 ms of catch-up is dropped",
    4,
    "hub/catch_up.py",
    "                stream.note_read(",
    "                await asyncio.sleep(0.05)\n                stream.note_read(",
    (STREAMS + "test_streams_joining_at_full_speed_get_no_hole_no_double_no_disorder",),
)
IGNORE_THE_ORIGIN = Mutant(
    "no origin begins, whatever becomes of Redis",
    4,
    "brokers/redis/lua/clock.lua",
    "  clock.floor = tick(clock, server_ms)\n",
    "  tick(clock, server_ms)\n  clock.floor = '0-0'\n",
    (REDIS + "test_a_redis_that_came_back_may_have_lost_its_end_unless_it_is_durable",),
)
ANNOUNCE_BEFORE_APPEND = Mutant(
    "an event is announced, and its publisher dies before it is stored",
    1,
    "brokers/redis/lua/publish.lua",
    "  redis.call('XADD', history, 'MAXLEN', history_events, position, 'p', prev, 'n', number, 'd', lines,"
    " unpack(first))\n",
    "  if server_ms % 5 > 0 then"
    " redis.call('XADD', history, 'MAXLEN', history_events, position, 'p', prev, 'n', number, 'd', lines,"
    " unpack(first)) end\n",
    (BROKER + "test_concurrent_publishers_lose_nothing",),
)
DROP_THE_REPAIR = Mutant(
    "a new link is taken for the old one",
    5,
    "hub/dispatcher.py",
    '            self._repair = asyncio.create_task(self._run_repair(), name="allim link repair")\n',
    "            self._in_doubt = False\n",
    ("tests/hub/test_dispatcher.py::test_what_was_written_since_the_last_pulse_is_read_again_and_is_no_gap",),
)

OF_THE_CHECKER = (SKIP_THE_BUFFER, IGNORE_THE_ORIGIN, ANNOUNCE_BEFORE_APPEND, DROP_THE_REPAIR)

# What was mended before there was a simulator, taken back: it must find each without having been told.
OF_THE_SIMULATOR = (
    Mutant(
        "a page of history ends where another topic's event comes",
        5,
        "brokers/redis/lua/read.lua",
        "while #waiting > 0 and events_left > 0 and bytes_left > 0 do\n",
        "while #waiting > 0 and events_left > 0 and bytes_left > 0\n"
        "  and (#page == 0 or page[#page][1] == waiting[#waiting].index) do\n",
        (SIMULATION,),
    ),
    Mutant(
        "a live reader is ended when events come faster than its connection takes them",
        7,
        "transports/sse/handover.py",
        "                self.hub.bring_back(self)\n",
        "                self.close(CloseReason.SLOW_READER)\n",
        (SIMULATION,),
    ),
    Mutant(
        "a limit believes whatever moment is stored",
        1,
        "brokers/redis/lua/quotas.lua",
        "tonumber(used) - math.max(0, passed))",
        "tonumber(used) - passed)",
        (SIMULATION,),
    ),
    Mutant(
        "a history is removed without a trace",
        4,
        "brokers/redis/lua/expiry.lua",
        "  clock.expired = text(removed_ms, removed_seq)\n",
        "",
        (SIMULATION,),
    ),
    Mutant(
        "a sign-out with a token that is not good yet is a sign-out of nobody",
        8,
        "access/gate.py",
        "self._tokens.verify_signature(",
        "self._tokens.verify(",
        (SIMULATION,),
    ),
    Mutant(
        "a publish that the Redis user may not finish begins, under a simulated Redis",
        2,
        "brokers/redis/lua/publish.lua",
        "  if not redis.acl_check_cmd(command, ...) then\n",
        "  if false then\n",
        (SIMULATION,),
    ),
    Mutant(
        "replicas with other settings say nothing",
        4,
        "brokers/redis/peers.py",
        "            if here != there:\n",
        "            if False:\n",
        (SIMULATION,),
    ),
    Mutant(
        "an event that comes late is dropped",
        4,
        "hub/dispatcher.py",
        "        for late in () if doubt else self._late(events, topic):\n",
        "        for late in ():\n",
        (SIMULATION,),
    ),
    Mutant(
        "an origin begins where its caller's hearing ends",
        4,
        "brokers/redis/lua/clock.lua",
        "    clock.ms, clock.seq = clock.ms + LEAP_MS, 0\n",
        "    clock.seq = clock.seq + 0\n",
        (SIMULATION,),
    ),
)

MUTANTS = (
    *OF_THE_CHECKER,
    *OF_THE_SIMULATOR,
    Mutant(
        "the level asked for is named and not waited for",
        1,
        "brokers/redis/durability.py",
        '    if durability == "replica":\n',
        '    if durability == "replica" and False:\n',
        ("tests/brokers/test_durability.py",),
    ),
    Mutant(
        "a known key is not found",
        2,
        "brokers/redis/lua/publish.lua",
        "elseif known[1] then\n",
        "elseif false then\n",
        (BROKER + "test_same_key_and_content_is_one_event_at_the_same_position",),
    ),
    Mutant(
        "another content under a known key is taken for the same",
        2,
        "brokers/redis/lua/publish.lua",
        "if known[1] and known[1] ~= fingerprint then\n",
        "if false then\n",
        (BROKER + "test_same_key_with_other_content_is_refused_and_stores_nothing",),
    ),
    Mutant(
        "a publish that the Redis user may not finish begins",
        2,
        "brokers/redis/lua/publish.lua",
        "  if not redis.acl_check_cmd(command, ...) then\n",
        "  if false then\n",
        ("tests/brokers/test_redis.py::test_a_publish_that_the_user_may_not_finish_changes_nothing",),
    ),
    Mutant(
        "what Redis refuses is asked again",
        2,
        "brokers/redis/scripts.py",
        " or (call.repeatable and not isinstance(error, Refused))",
        " or call.repeatable",
        ("tests/brokers/test_scripts.py::test_what_redis_refuses_is_not_asked_again_also_if_repeatable",),
    ),
    Mutant(
        "a stream writes what it has written",
        3,
        "hub/stream.py",
        "        if run.first <= self._last:\n",
        "        if False:\n",
        (STREAMS + "test_streams_joining_at_full_speed_get_no_hole_no_double_no_disorder",),
    ),
    Mutant(
        "the clock follows the server's",
        3,
        "brokers/redis/lua/clock.lua",
        "  if server_ms > clock.ms then\n",
        "  if true then\n",
        (BROKER + "test_positions_rise_over_all_topics_and_prev_chains_within_one",),
    ),
    Mutant(
        "trimmed history is not told",
        4,
        "brokers/redis/lua/read.lua",
        "      trimmed[#trimmed + 1] = topic.index\n",
        "",
        (STREAMS + "test_reset_exactly_when_something_after_the_position_is_gone",),
    ),
    Mutant(
        "a history is removed without a trace",
        4,
        "brokers/redis/lua/expiry.lua",
        "  clock.expired = text(removed_ms, removed_seq)\n",
        "",
        (BROKER + "test_who_stands_before_what_a_removed_history_held_is_told_and_nobody_else",),
    ),
    Mutant(
        "a history that begins anew hides the one before",
        4,
        "brokers/redis/lua/read.lua",
        "    elseif prev == '0-0' and is_text_after(removed) then\n",
        "    elseif false then\n",
        (BROKER + "test_a_history_that_begins_anew_does_not_hide_the_one_that_was_removed",),
    ),
    Mutant(
        "a hole shown by prev is passed over",
        4,
        "hub/dispatcher.py",
        "            hole = topic.last is not None and event.prev > topic.last\n",
        "            hole = False\n",
        ("tests/hub/test_dispatcher.py::test_a_hole_is_filled_before_the_event_that_shows_it",),
    ),
    Mutant(
        "what a first stream hears while it joins is taken for all there is",
        4,
        "hub/dispatcher.py",
        "        doubt = self._in_doubt or topic.last is None\n",
        "        doubt = self._in_doubt\n",
        ("tests/hub/test_dispatcher.py::test_a_hole_that_is_seen_while_the_first_stream_joins_is_filled",),
    ),
    Mutant(
        "of what comes together only the first is broadcast",
        4,
        "hub/dispatcher.py",
        "            for event in events:\n                self._broadcasts.add(event, topic)\n",
        "            self._broadcasts.add(events[0], topic)\n",
        ("tests/hub/test_broadcasts.py::test_every_stream_gets_its_topics_events_once_and_in_order",),
    ),
    Mutant(
        "a newer event overtakes a broadcast that waits",
        4,
        "hub/dispatcher.py",
        "        if self._broadcasts:\n",
        "        if False:\n",
        ("tests/hub/test_broadcasts.py::test_every_stream_gets_its_topics_events_once_and_in_order",),
    ),
    Mutant(
        "a pulse overtakes a broadcast that waits",
        4,
        "hub/broadcasts.py",
        "        if self._waiting and self._waiting[-1].due:\n",
        "        if False:\n",
        ("tests/hub/test_broadcasts.py::test_every_stream_gets_its_topics_events_once_and_in_order",),
    ),
    Mutant(
        "a silent link is waited for",
        5,
        "hub/pulse.py",
        "            await self._broker.replace_link()\n",
        "",
        (
            "tests/system/test_redis_faults.py::test_a_half_open_link_is_replaced_and_what_others_published_meanwhile_arrives",
        ),
    ),
    Mutant(
        "the opening has no id",
        6,
        "transports/sse/frames.py",
        'b"retry: %d\\nid: %b\\n%b" % (retry_ms, str(opening.position).encode(), encode("stream.open", data))',
        'b"retry: %d\\n%b" % (retry_ms, encode("stream.open", data))',
        ("tests/system/test_resume.py::test_on_another_replica",),
    ),
    Mutant(
        "a stopping replica ends its streams at once and untold",
        6,
        "hub/lifetimes.py",
        "            self._wheel.bring_forward(stream, stream.ends_at)\n",
        "            stream.close(CloseReason.CLIENT_LEFT)\n",
        (SSE + "test_sigterm_tells_every_stream_at_its_own_moment",),
    ),
    Mutant(
        "a reader that reads nothing is waited for",
        7,
        "transports/sse/handover.py",
        "                self.close(CloseReason.SLOW_READER)\n",
        "                pass\n",
        (SSE + "test_a_slow_reader_is_ended_and_nobody_else",),
    ),
    Mutant(
        "a reader whose buffer is full is ended although it reads",
        7,
        "transports/sse/handover.py",
        "                self.hub.bring_back(self)\n",
        "                self.close(CloseReason.SLOW_READER)\n",
        (SSE + "test_a_reader_that_reads_gets_a_burst_of_many_times_its_buffer_and_stays",),
    ),
    Mutant(
        "a token's end is not looked at",
        8,
        "hub/lifetimes.py",
        "        if left_s <= 2 * SLOT_S:\n",
        "        if False:\n",
        (SSE + "test_an_expired_token_ends_the_stream_and_nothing_follows",),
    ),
    Mutant(
        "a session that was ended opens streams",
        8,
        "hub/hub.py",
        "        refuse_ended(admission.state)\n",
        "",
        (SESSIONS + "test_a_kick_ends_every_session_until_now_and_no_later_one",),
    ),
    Mutant(
        "a sign-out is judged by a clock",
        8,
        "access/gate.py",
        "            identity = await self._tokens.verify_signature(self.token_of(request))\n",
        "            identity = await self._tokens.verify(self.token_of(request))\n",
        ("tests/system/test_clocks.py::test_a_sign_out_ends_a_session_whose_token_seems_to_come_from_the_future",),
    ),
    Mutant(
        "a kick has the moment that the clock says",
        8,
        "brokers/redis/lua/kick.lua",
        "math.max(moment, last + 0.000001)",
        "moment",
        (LEDGER + "test_a_kick_ends_tokens_that_name_an_earlier_one_whatever_any_clock_says",),
    ),
    Mutant(
        "a ticket opens as many streams as are asked for",
        8,
        "brokers/redis/lua/admit.lua",
        "if ticket and redis.call('EXISTS', ticket) == 1 then",
        "if false then",
        (LEDGER + "test_a_ticket_is_spent_once_by_whoever_is_first",),
    ),
    Mutant(
        "a script is sent although its user may not run it to its end",
        1,
        "brokers/redis/scripts.py",
        "        if not refused:\n            return batch\n",
        "        if True:\n            return batch\n",
        ("tests/brokers/test_rights.py::test_a_publish_that_redis_would_refuse_half_way_changes_nothing",),
    ),
    Mutant(
        "several processes without Redis serve one data folder",
        1,
        "alone.py",
        "        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "",
        ("tests/test_alone.py::test_several_workers_of_another_server_are_refused",),
    ),
    Mutant(
        "nobody asks after a repair which sessions were ended meanwhile",
        8,
        "hub/audit.py",
        "        self._due.set()\n",
        "        pass\n",
        (
            "tests/system/test_sessions.py::test_a_kick_that_a_black_holed_replica_misses_ends_its_streams_with_the_repair",
        ),
    ),
    Mutant(
        "a full Redis takes no sign-out",
        8,
        "brokers/redis/ledger.py",
        'Script("sign_out", vital=True)',
        'Script("sign_out")',
        (FULL_REDIS,),
    ),
    Mutant(
        "a full Redis takes no order to end streams",
        8,
        "hub/sessions.py",
        'Publication([entry], None, "", vital=True)',
        'Publication([entry], None, "")',
        (FULL_REDIS,),
    ),
    Mutant(
        "more is read while requests wait for an earlier answer",
        7,
        "server/limits.py",
        "        if not self.waiting:\n            super().resume_reading()",
        "        super().resume_reading()",
        (FRAMING + "test_a_thousand_requests_sent_ahead_are_answered_in_order",),
    ),
    Mutant(
        "a body may take as long as it likes",
        7,
        "server/limits.py",
        "            self.refuse_body(refusals.SLOW_BODY)\n            return False\n",
        "            return True\n",
        (SLOW + "test_a_body_of_which_a_byte_comes_now_and_then_ends",),
    ),
    Mutant(
        "an order to end a session is not obeyed",
        8,
        "hub/stream.py",
        "        if control.subject != self.subject or not concerned:",
        "        if True:",
        (SSE + "test_sign_out_ends_the_sessions_streams",),
    ),
)


@contextmanager
def mutated(mutant: Mutant) -> Iterator[Path]:
    """A copy of the sources with the mutant in it: a folder for PYTHONPATH."""
    folder = Path(tempfile.mkdtemp(prefix="allim-mutant-"))
    try:
        shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
        file = folder / "src" / "allim" / mutant.file
        source = file.read_text("utf-8")
        assert source.count(mutant.right) == 1, f"{mutant.name}: {mutant.file} has changed, so must the mutant"
        file.write_text(source.replace(mutant.right, mutant.wrong), "utf-8")
        yield folder / "src"
    finally:
        shutil.rmtree(folder)


def survives(mutant: Mutant) -> bool:
    """Whether the tests that must notice it pass all the same."""
    with mutated(mutant) as sources:
        environ = {**os.environ, "PYTHONPATH": str(sources)}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests]
        ended = subprocess.run(
            command, cwd=ROOT, env=environ, timeout=TIMEOUT_S, check=False, capture_output=True, text=True
        )
        assert ended.returncode in {0, 1}, ended.stdout + ended.stderr  # 1: tests ran, and some failed
        return ended.returncode == 0


def main() -> int:
    """Try every mutant; the number of those that survive."""
    survivors = 0
    for mutant in MUTANTS:
        alive = survives(mutant)
        survivors += alive
        print(f"{'SURVIVES' if alive else 'caught  '}  promise {mutant.promise}: {mutant.name}", flush=True)  # noqa: T201
    return survivors


if __name__ == "__main__":
    sys.exit(main())
