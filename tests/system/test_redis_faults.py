"""Faults between replicas and Redis: no stream is closed, and nothing accepted is lost, doubled or out of order."""

import asyncio
import contextlib
import itertools
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import redis.asyncio as redis_aio
from harness.proxy import FaultProxy, fault_proxy
from harness.replicas import PUBLISH_KEY, Reader, Replica, replica, token, token_for_topics
from harness.servers import Redis, redis_server
from harness.waiting import until

from allim.client import Message
from allim.hub import Position

pytestmark = pytest.mark.anyio

PULSE_S = 0.5
PATIENCE_S = 2.4 * PULSE_S  # a link that brings no pulse for so long is replaced
SLACK_S = 3.0
RECOVERY_S = PATIENCE_S + SLACK_S  # after Redis answers again; 15 s at the default pulse of 5 s
PUBLISH_DEADLINE_S = 10.0
HANG_S = 12.0  # longer than a publish waits
RESPONSIVE_S = 1.0  # the slowest answer of a replica or Redis under work; tests of others share the processors

EVENT = "t"


# Two replicas over one Redis, publishers and readers ---------------------------------------------------------------


@dataclass
class Pair:
    """Two replicas over one Redis, each by a way of its own that can be broken."""

    redis: Redis
    one: Replica
    two: Replica
    way_of_one: FaultProxy
    way_of_two: FaultProxy

    @property
    def replicas(self) -> tuple[Replica, Replica]:
        return self.one, self.two

    def heal(self) -> None:
        self.way_of_one.heal()
        self.way_of_two.heal()

    def command(self, *words: str) -> Any:
        with self.redis.client() as client:
            return client.execute_command(*words)

    def subscribed(self) -> int:
        """Links that Redis knows of."""
        with self.redis.client() as client:
            return len(client.client_list(_type="pubsub"))


@contextmanager
def pair_of_replicas(pulse_s: float = PULSE_S) -> Iterator[Pair]:
    with (
        redis_server() as server,
        fault_proxy(server.port) as way_of_one,
        fault_proxy(server.port) as way_of_two,
        _replica_behind(way_of_one, pulse_s) as one,
        _replica_behind(way_of_two, pulse_s) as two,
    ):
        yield Pair(server, one, two, way_of_one, way_of_two)


def _replica_behind(way: FaultProxy, pulse_s: float) -> contextlib.AbstractContextManager[Replica]:
    url = f"redis://127.0.0.1:{way.port}/0"
    return replica(
        redis_url=url,
        heartbeat_s=max(1.0, pulse_s),
        pulse_s=pulse_s,
        history_events=20_000,
        drain_s=0,
        publisher_memory_mb=1000,  # by default half of Redis' memory, which a test makes small
    )


@pytest.fixture(scope="module")
def started() -> Iterator[Pair]:
    with pair_of_replicas() as pair:
        yield pair


@pytest.fixture
async def pair(started: Pair) -> AsyncIterator[Pair]:
    """Both ready, and healed afterwards."""
    await until_ready(started)
    yield started
    started.heal()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {PUBLISH_KEY}"}
    async with httpx.AsyncClient(headers=headers, timeout=PUBLISH_DEADLINE_S + 5) as client:
        yield client


def is_ready(member: Replica) -> bool:
    return httpx.get(f"{member.url}/readyz").status_code == 200


async def until_ready(pair: Pair) -> None:
    await until(lambda: all(map(is_ready, pair.replicas)), 2 * RECOVERY_S, "both replicas ready")


class Follower:
    """A stream that is read all the time, as a browser does."""

    def __init__(self, stream: Reader, opening: Message) -> None:
        self.opening = opening
        self._stream = stream
        self._reading = asyncio.create_task(stream.rest(600.0))

    @property
    def messages(self) -> list[Message]:
        return self._stream.messages

    def of(self, type_: str) -> list[Message]:
        return [message for message in self.messages if message.type == type_]

    @property
    def ended(self) -> bool:
        return self._reading.done()

    @property
    def data(self) -> list[Any]:
        return [message.data for message in self.of(EVENT)]

    @property
    def gaps(self) -> list[Any]:
        return [message.data for message in self.of("stream.gap")]

    async def until_heard(self, data: object, timeout_s: float = RECOVERY_S) -> None:
        await until(lambda: data in self.data, timeout_s, f"{data!r} heard, the last was {self.data[-1:]}")

    def assert_whole(self) -> None:
        """Still open, and no position went back or came twice."""
        assert not self.ended, f"the stream ended after {self.messages[-1:]}"
        ids = [Position.parse(text.decode()) for text in re.findall(rb"^id: (.+)$", self._stream.raw, re.MULTILINE)]
        assert all(earlier < later for earlier, later in itertools.pairwise(ids))

    async def stop(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


@asynccontextmanager
async def following(
    where: Replica, who: str, *topics: str, last_event_id: str | None = None, receive_bytes: int | None = None
) -> AsyncIterator[Follower]:
    """Follow a user's stream; whatever happens meanwhile, it must be whole at the end."""
    query = f"?topics={','.join(topics)}" if topics else ""
    claims = token_for_topics(who, *topics)
    async with await Reader.open(
        where.url, claims, query=query, last_event_id=last_event_id, receive_bytes=receive_bytes
    ) as stream:
        assert stream.status == 200
        follower = Follower(stream, await stream.next("stream.open"))
        try:
            yield follower
            follower.assert_whole()
        except AssertionError as error:
            error.add_note("the stream had ended" if follower.ended else "the stream was still open")
            raise
        finally:
            await follower.stop()


def event(topic: str, data: object) -> dict[str, object]:
    return {"topic": topic, "type": EVENT, "data": data}


async def publish(http: httpx.AsyncClient, where: Replica, body: object, key: str | None = None) -> httpx.Response:
    headers = {"idempotency-key": key} if key else {}
    return await http.post(f"{where.url}/api/publish", json=body, headers=headers)


async def confirm(
    http: httpx.AsyncClient, where: Replica, body: object, key: str, timeout_s: float = 2 * PUBLISH_DEADLINE_S
) -> httpx.Response:
    """Publish under a key, again and again, until it is confirmed."""

    async def accepted() -> httpx.Response | None:
        answer = await publish(http, where, body, key)
        assert answer.status_code in (202, 503), answer.text
        return answer if answer.status_code == 202 else None

    answer = await until(accepted, timeout_s, f"{key} confirmed")
    assert answer is not None
    return answer


def assert_refused_for_now(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["retryable"] is True


@dataclass
class Load:
    """Numbered events, 1,000 in a second, each batch under a key and tried until it is confirmed."""

    http: httpx.AsyncClient
    where: Replica
    topics: Sequence[str]
    padding: str = ""
    per_batch: int = 100
    every_s: float = 0.1
    sent: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        while not self.ended.is_set():
            next_at = time.monotonic() + self.every_s
            await self.send_batch()
            await asyncio.sleep(next_at - time.monotonic())

    async def send_batch(self) -> None:
        numbers = range(self.sent, self.sent + self.per_batch)
        batch = [event(self.topics[n % len(self.topics)], [n, self.padding]) for n in numbers]
        await confirm(self.http, self.where, batch, f"{self.topics[0]}-{self.sent}")
        self.sent += self.per_batch

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.run())
            yield
            self.ended.set()

    def heard_by(self, follower: Follower) -> list[int]:
        return [number for number, _ in follower.data]

    async def until_all_heard(self, *followers: Follower, timeout_s: float = RECOVERY_S) -> float:
        """Seconds until every follower has the last one; then each has all of them, in order."""
        began = time.monotonic()
        await until(lambda: all(len(f.data) >= self.sent for f in followers), timeout_s, f"{self.sent} events heard")
        took_s = time.monotonic() - began
        for follower in followers:
            assert self.heard_by(follower) == list(range(self.sent))
            assert follower.gaps == []
        return took_s


def show(what: str, seconds: float, limit_s: float) -> None:
    print(f"{what}: {seconds:.2f} s (at most {limit_s:.2f} s)")  # noqa: T201 - shown by `pytest -s`, and on failure


# Redis does not answer ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def hanging(server: Redis, how: str, seconds: float) -> AsyncIterator[None]:
    """Redis keeps its connections and answers nobody, for so long."""
    ends_at = time.monotonic() + seconds
    if how == "stopped":
        server.process.send_signal(signal.SIGSTOP)
    else:
        with server.client() as client:
            client.client_pause(int(seconds * 1000), all=True)
    try:
        yield
        await asyncio.sleep(ends_at - time.monotonic())
    finally:
        server.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("how", ["stopped", "paused"])
async def test_while_redis_hangs_streams_stay_and_publishes_are_refused_in_time_and_stored_once(
    pair: Pair, http: httpx.AsyncClient, who: str, how: str
) -> None:
    topic = f"user:{who}"
    keyed = {f"{who}-{number}": event(topic, f"kept {number}") for number in range(5)}

    async def timed(body: object, key: str | None) -> tuple[httpx.Response, float]:
        began = time.monotonic()
        return await publish(http, pair.one, body, key), time.monotonic() - began

    async with following(pair.one, who) as first, following(pair.two, who) as second:
        await confirm(http, pair.one, event(topic, "before"), f"{who}-before")
        async with hanging(pair.redis, how, HANG_S):
            began = time.monotonic()
            asked = [asyncio.create_task(timed(body, key)) for key, body in keyed.items()]
            asked.append(asyncio.create_task(timed(event(topic, "perhaps"), None)))
            await until(
                lambda: not any(map(is_ready, pair.replicas)), PATIENCE_S + SLACK_S, "both replicas not ready"
            )
            show(f"redis {how}: readiness red", time.monotonic() - began, PATIENCE_S + SLACK_S)
            for answer, took_s in await asyncio.gather(*asked):
                assert_refused_for_now(answer)
                assert took_s < PUBLISH_DEADLINE_S + 1
                last_refused_s = took_s
            show(f"redis {how}: publish refused", last_refused_s, PUBLISH_DEADLINE_S)
        beats = [len(follower.of("heartbeat")) for follower in (first, second)]
        answered_at = time.monotonic()

        retried = await asyncio.gather(*(confirm(http, pair.two, body, key) for key, body in keyed.items()))
        kept = {body["data"]: answer.json()["id"] for body, answer in zip(keyed.values(), retried, strict=True)}
        await until(lambda: all(set(kept) <= set(f.data) for f in (first, second)), RECOVERY_S, "what was accepted")
        heard_s = time.monotonic() - answered_at
        await until_ready(pair)
        ready_s = time.monotonic() - answered_at
        show(f"redis {how} for {HANG_S:.0f} s: all heard again", heard_s, RECOVERY_S)
        show(f"redis {how} for {HANG_S:.0f} s: both ready again", ready_s, RECOVERY_S)

        for key, body in keyed.items():
            for member in pair.replicas:
                assert (await publish(http, member, body, key)).json()["id"] == kept[body["data"]]
        await confirm(http, pair.two, event(topic, "after"), f"{who}-after")
        for follower in (first, second):
            await follower.until_heard("after")
            positions = {message.data: message.id for message in follower.of(EVENT)}
            assert len(follower.data) == len(positions), "something came twice"
            assert kept.items() <= positions.items()
            assert positions.keys() - kept.keys() - {"perhaps"} == {"before", "after"}
            assert follower.gaps == []
        assert ready_s < RECOVERY_S
        assert min(beats) >= HANG_S - 2, "the heartbeat went on"


async def test_a_full_redis_refuses_publishes_and_nothing_else_and_keeps_its_history(
    pair: Pair, http: httpx.AsyncClient, who: str
) -> None:
    topic = f"user:{who}"
    async with following(pair.two, who) as follower:
        await confirm(http, pair.one, [event(topic, number) for number in range(100)], who)
        await follower.until_heard(99)
        pair.command("CONFIG", "SET", "maxmemory", "1mb")
        try:
            for member in pair.replicas:
                assert_refused_for_now(await publish(http, member, event(topic, "too much"), f"{who}-more"))
            # Longer than a link is left alone that brings no pulses.
            beats = len(follower.of("heartbeat"))
            await until(lambda: len(follower.of("heartbeat")) >= beats + 3, what="heartbeats go on")
            async with following(pair.one, who, last_event_id=follower.opening.id) as late:
                await late.until_heard(99)
                assert late.data == list(range(100))
                assert late.opening.data["resume"] == "complete"
        finally:
            pair.command("CONFIG", "SET", "maxmemory", "0")
        began = time.monotonic()
        await confirm(http, pair.one, event(topic, "more"), f"{who}-more")
        show("redis had been full: publish accepted", time.monotonic() - began, RECOVERY_S)
        await follower.until_heard("more")
        async with following(pair.two, who, last_event_id=follower.opening.id) as late:
            await late.until_heard("more")
            assert late.opening.data["resume"] == "complete"
            assert late.data == follower.data == [*range(100), "more"]
        assert follower.gaps == []


async def test_flushed_scripts_refuse_no_publish(pair: Pair, http: httpx.AsyncClient, who: str) -> None:
    async with following(pair.two, who) as follower:
        for number in range(10):
            pair.command("SCRIPT", "FLUSH")
            answers = [
                publish(http, member, event(f"user:{who}", number), f"{who}-{number}") for member in pair.replicas
            ]
            assert [answer.status_code for answer in await asyncio.gather(*answers)] == [202, 202]
        await follower.until_heard(9)

        assert (follower.data, follower.gaps) == (list(range(10)), [])


# Redis cuts connections --------------------------------------------------------------------------------------------


async def test_links_killed_again_and_again_under_load_leave_no_hole_and_no_double(
    pair: Pair, http: httpx.AsyncClient, who: str
) -> None:
    topics = [f"{topic}:{who}" for topic in ("user", "killed-a", "killed-b")]
    load = Load(http, pair.one, topics)
    repairs = [member.metric("allim_link_repairs_total") for member in pair.replicas]
    async with following(pair.one, who, *topics[1:]) as first, following(pair.two, who, *topics[1:]) as second:
        async with load.running():
            for _ in range(10):
                await asyncio.sleep(0.3)
                pair.command("CLIENT", "KILL", "TYPE", "pubsub")
        took_s = await load.until_all_heard(first, second)

    show(f"links killed 10 times during {load.sent} events: all heard", took_s, RECOVERY_S)
    assert load.sent > 2000
    for member, before in zip(pair.replicas, repairs, strict=True):
        assert member.metric("allim_link_repairs_total") >= before + 3


async def test_commands_killed_during_publishes_with_keys_are_confirmed_and_stored_once(
    pair: Pair, http: httpx.AsyncClient, who: str
) -> None:
    confirmed: dict[str, str] = {}
    ended = asyncio.Event()

    async def publisher(name: str) -> None:
        number = 0
        while not ended.is_set():
            data = f"{name}-{number}"
            answer = await confirm(http, pair.one, event(f"user:{who}", data), f"{who}-{data}")
            confirmed[data] = answer.json()["id"]
            number += 1

    async with following(pair.two, who) as follower:
        async with asyncio.TaskGroup() as publishers:
            for name in "abcdefgh":
                publishers.create_task(publisher(name))
            for _ in range(30):
                await asyncio.sleep(0.1)
                pair.command("CLIENT", "KILL", "TYPE", "normal")
            ended.set()
        await until(lambda: len(follower.data) >= len(confirmed), RECOVERY_S, "every confirmed event heard")
        again = await publish(http, pair.two, event(f"user:{who}", "a-0"), f"{who}-a-0")

        assert again.json()["id"] == confirmed["a-0"]
        assert [(message.data, message.id) for message in follower.of(EVENT)] == sorted(
            confirmed.items(), key=lambda item: Position.parse(item[1])
        )
        assert len(confirmed) > 100
        assert follower.gaps == []


async def test_a_link_cut_for_its_full_output_buffer_loses_nothing(
    pair: Pair, http: httpx.AsyncClient, who: str
) -> None:
    """The replica stands still under load, so what Redis has for it grows over the limit."""
    load = Load(http, pair.one, [f"user:{who}"], padding="x" * 20_000, per_batch=50, every_s=0.0)
    async with following(pair.two, who) as follower:
        pair.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 64kb 0 0")
        pair.two.process.send_signal(signal.SIGSTOP)
        try:
            while pair.subscribed() == 2:
                await load.send_batch()
                assert load.sent < 5000, "Redis did not cut the link"
            for _ in range(3):
                await load.send_batch()
        finally:
            pair.two.process.send_signal(signal.SIGCONT)
            pair.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 32mb 8mb 60")
        await load.send_batch()
        took_s = await load.until_all_heard(follower)

    show(f"link cut for its full output buffer: {load.sent / 50:.0f} MB heard", took_s, RECOVERY_S)


# The way between is broken -----------------------------------------------------------------------------------------


async def test_dropped_messages_are_found_by_the_topics_next_event(
    pair: Pair, http: httpx.AsyncClient, who: str
) -> None:
    """An event that did not come is read from history, or told as a gap before a later one of its topic."""
    topics = [f"dropped-{letter}:{who}" for letter in "abcde"]
    numbers = iter(range(10_000))
    async with following(pair.two, who, *topics) as follower:
        dropped = pair.way_of_two.dropped
        pair.way_of_two.drop_messages(0.3, seed=14)
        for _ in range(100):
            number = next(numbers)
            assert (await publish(http, pair.one, event(topics[number % 5], number))).status_code == 202
        pair.way_of_two.heal()
        dropped = pair.way_of_two.dropped - dropped
        for number in [next(numbers) for _ in topics]:
            await publish(http, pair.one, event(topics[number % 5], number))
            await follower.until_heard(number)

        print(f"{dropped} of 100 messages dropped, {len(follower.gaps)} told as gaps")  # noqa: T201 - as in `show`
        assert dropped > 10
        for index, topic in enumerate(topics):
            assert_followed_or_told(follower.messages, topic, list(range(index, 105, 5)))


async def test_a_dropped_message_is_found_by_the_repair_of_the_link(
    pair: Pair, http: httpx.AsyncClient, who: str
) -> None:
    """Nothing follows in its topic; the stream has written something newer of another, so it comes too late."""
    topics = [f"silent:{who}", f"loud:{who}"]
    repairs = pair.two.metric("allim_link_repairs_total")
    async with following(pair.two, who, *topics) as follower:
        dropped = pair.way_of_two.dropped
        pair.way_of_two.drop_messages(1.0)
        await confirm(http, pair.one, event(topics[0], "lost"), f"{who}-lost")
        await until(lambda: pair.way_of_two.dropped >= dropped + 2, what="the message dropped, and a pulse after it")
        pair.way_of_two.heal()
        await confirm(http, pair.one, event(topics[1], "newer"), f"{who}-newer")
        await follower.until_heard("newer")
        assert follower.data == ["newer"]
        pair.command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: pair.two.metric("allim_link_repairs_total") > repairs, RECOVERY_S, "repaired")
        await until(lambda: follower.gaps, RECOVERY_S, "told as a gap")

        assert follower.gaps == [{"topics": [topics[0]], "reason": "trimmed"}]
        await confirm(http, pair.one, event(topics[0], "next"), f"{who}-next")
        await follower.until_heard("next")


def assert_followed_or_told(messages: Sequence[Message], topic: str, published: Sequence[int]) -> None:
    """Every event of the topic came in order, or a gap named the topic before a later one came."""
    missing = list(published)
    told = False
    for message in messages:
        if message.type == "stream.gap":
            told = told or topic in message.data["topics"]
        elif message.type == EVENT and message.data in published:
            skipped = missing[: missing.index(message.data)]
            assert told or not skipped, f"{topic}: {skipped} missing before {message.data}"
            missing = missing[len(skipped) + 1 :]
            told = False
    assert missing == []


async def test_a_half_open_link_is_replaced_and_what_others_published_meanwhile_arrives(
    pair: Pair, http: httpx.AsyncClient, who: str
) -> None:
    """The path has forgotten the replica's connections: nobody closes them, new ones work."""
    numbers = list(range(50))
    repairs = pair.two.metric("allim_link_repairs_total")
    async with following(pair.two, who) as follower:
        began = time.monotonic()
        pair.way_of_two.black_hole(present_only=True)
        await confirm(http, pair.one, [event(f"user:{who}", number) for number in numbers], who)
        await until(
            lambda: pair.two.metric("allim_link_repairs_total") > repairs, PATIENCE_S + 1, "the link replaced"
        )
        show("half-open link: replaced", time.monotonic() - began, PATIENCE_S + 1)
        await follower.until_heard(49)
        took_s = time.monotonic() - began
        show("half-open link: all heard", took_s, RECOVERY_S)

        assert took_s < RECOVERY_S
        assert (follower.data, follower.gaps) == (numbers, [])


async def test_a_black_hole_costs_readiness_and_after_it_everything_arrives(
    pair: Pair, http: httpx.AsyncClient, who: str
) -> None:
    load = Load(http, pair.one, [f"user:{who}"])
    async with following(pair.two, who) as follower:
        pair.way_of_two.black_hole()
        async with load.running():
            await until(lambda: not is_ready(pair.two), PATIENCE_S + SLACK_S, "the replica not ready")
            await asyncio.sleep(PATIENCE_S)
            assert is_ready(pair.one)
        pair.way_of_two.heal()
        took_s = await load.until_all_heard(follower)

    show(f"black hole over: {load.sent} events heard", took_s, RECOVERY_S)


@pytest.mark.parametrize("receive_bytes", [None, 16_384], ids=["", "with a small window"])
async def test_a_reading_reader_gets_all_of_three_megabytes_that_its_replica_missed(
    pair: Pair, http: httpx.AsyncClient, who: str, receive_bytes: int | None
) -> None:
    """As much as 12 s of 250 KB/s, over ten times the stream's buffer: it reads, so it is no slow reader."""
    load = Load(http, pair.one, [f"user:{who}"], padding="x" * 50_000, per_batch=10)
    ended = pair.two.metric("allim_streams_closed_total", reason="slow_reader")
    async with following(pair.two, who, receive_bytes=receive_bytes) as follower:
        pair.way_of_two.black_hole()
        for _ in range(6):
            await load.send_batch()
        pair.way_of_two.heal()
        took_s = await load.until_all_heard(follower)
        assert pair.two.metric("allim_streams_closed_total", reason="slow_reader") == ended

    show("3 MB missed: all heard", took_s, RECOVERY_S)


async def test_a_sign_out_that_a_black_holed_replica_misses_ends_the_streams_with_the_repair(
    pair: Pair, http: httpx.AsyncClient, who: str
) -> None:
    mine, other = token(who), token(who)
    async with await Reader.open(pair.two.url, mine) as stream, await Reader.open(pair.two.url, other) as untouched:
        await stream.next("stream.open")
        await untouched.next("stream.open")
        pair.way_of_two.black_hole()
        answer = await http.delete(f"{pair.one.url}/api/session", headers={"authorization": f"Bearer {mine}"})
        assert answer.status_code == 204
        await until(lambda: not is_ready(pair.two), PATIENCE_S + SLACK_S, "the replica not ready")
        began = time.monotonic()
        pair.way_of_two.heal()
        ended = asyncio.create_task(stream.rest(RECOVERY_S))
        await until(lambda: is_ready(pair.two), RECOVERY_S, "the link stands again")
        repaired_at = time.monotonic()
        rest = await ended

        show("sign-out missed in a black hole: streams ended", time.monotonic() - began, RECOVERY_S)
        assert time.monotonic() - repaired_at < PULSE_S + 0.25
        assert rest[-1].data == {"reason": "signed_out", "reconnect": False}
        await confirm(http, pair.one, event(f"user:{who}", "still there"), who)
        assert (await untouched.next(EVENT)).data == "still there"


async def test_a_link_that_trickles_loses_nothing(pair: Pair, http: httpx.AsyncClient, who: str) -> None:
    load = Load(http, pair.one, [f"user:{who}"], padding="x" * 1000)
    async with following(pair.two, who) as follower:
        pair.way_of_two.trickle(50_000)
        for _ in range(3):
            await load.send_batch()
        await asyncio.sleep(2 * PATIENCE_S)  # no pulse comes through in time: the link is replaced, and trickles too
        pair.way_of_two.heal()
        await load.send_batch()
        took_s = await load.until_all_heard(follower)

    show("link had trickled: all heard", took_s, RECOVERY_S)


async def test_a_link_that_is_a_second_late_loses_nothing(http: httpx.AsyncClient, who: str) -> None:
    """Two seconds there and back: over the patience of the other tests, under that of the default."""
    with pair_of_replicas(pulse_s=2.0) as pair:
        load = Load(http, pair.one, [f"user:{who}"])
        async with following(pair.two, who) as follower:
            pair.way_of_two.delay(1.0)
            async with load.running():
                await asyncio.sleep(3)
                assert is_ready(pair.two)
            took_s = await load.until_all_heard(follower)

        show("link a second late: all heard", took_s, 2.0)
        assert took_s < 2
        assert pair.two.metric("allim_link_repairs_total") == 0


async def test_one_key_at_the_same_moment_on_two_replicas_whose_ways_are_cut_is_one_event(
    pair: Pair, http: httpx.AsyncClient, who: str
) -> None:
    async with following(pair.two, who) as follower:
        positions: list[str] = []
        for number in range(20):
            body, key = event(f"user:{who}", number), f"{who}-{number}"
            both = asyncio.gather(*(confirm(http, member, body, key) for member in pair.replicas * 3))
            await asyncio.sleep(number / 2000)  # at each a little later: before, while and after it is stored
            pair.way_of_one.reset()
            pair.way_of_two.cut()
            (position,) = {answer.json()["id"] for answer in await both}
            positions.append(position)
            other = await asyncio.gather(
                *(publish(http, member, {**body, "data": "another"}, key) for member in pair.replicas)
            )
            assert {answer.status_code for answer in other} <= {409, 503}
        await follower.until_heard(19)

        assert [(message.data, message.id) for message in follower.of(EVENT)] == list(enumerate(positions))
        refused = await publish(http, pair.two, event(f"user:{who}", "another"), f"{who}-0")
        assert refused.status_code == 409
        assert follower.gaps == []


async def test_five_thousand_topics_are_repaired_while_their_replica_and_redis_stay_responsive(
    pair: Pair, http: httpx.AsyncClient, who: str
) -> None:
    topics = [[f"many-{stream}-{number}:{who}" for number in range(100)] for stream in range(50)]
    named = [topic for batch in topics for topic in batch[:40]]
    async with contextlib.AsyncExitStack() as stack:
        followers = [
            await stack.enter_async_context(following(pair.two, f"{who}-{number}", *batch))
            for number, batch in enumerate(topics)
        ]
        async with sampling(pair) as worst:
            pair.way_of_two.black_hole()
            for at in (0, 1000):
                events = [event(topic, topic) for topic in named[at : at + 1000]]
                await confirm(http, pair.one, events, f"{who}-{at}")
            pair.way_of_two.heal()
            began = time.monotonic()
            await until(lambda: sum(len(f.data) for f in followers) >= len(named), RECOVERY_S, "all heard")
            took_s = time.monotonic() - began

        show("2,000 of 5,000 topics repaired", took_s, RECOVERY_S)
        show("meanwhile /healthz answered", worst["healthz"], RESPONSIVE_S)
        show("meanwhile PING answered", worst["ping"], RESPONSIVE_S)
        for follower, batch in zip(followers, topics, strict=True):
            assert (follower.data, follower.gaps) == (batch[:40], [])
        assert max(worst.values()) < RESPONSIVE_S


async def test_interleaved_topics_that_a_link_missed_come_to_all_streams_at_a_cost_linear_in_events(
    pair: Pair, http: httpx.AsyncClient, who: str
) -> None:
    topics = [f"interleaved-{number}:{who}" for number in range(20)]
    rounds = 100
    async with contextlib.AsyncExitStack() as stack:
        followers = [
            await stack.enter_async_context(following(pair.two, f"{who}-{number}", *topics)) for number in range(40)
        ]
        pair.way_of_two.black_hole()
        for at in range(0, rounds, 25):
            events = [event(topic, f"{number}") for number in range(at, at + 25) for topic in topics]
            await confirm(http, pair.one, events, f"{who}-{at}")
        pair.command("CONFIG", "RESETSTAT")
        pair.way_of_two.heal()
        await until(lambda: all(len(f.data) == rounds * len(topics) for f in followers), 120, "all heard")
        with pair.redis.client() as client:
            entries_read = client.info("commandstats")["cmdstat_xrange"]["calls"]

    for follower in followers:
        assert follower.data == [f"{number}" for number in range(rounds) for _ in topics]
        assert follower.gaps == []
    assert entries_read < len(followers) * rounds * len(topics) / 4, "each reading brings many"


@asynccontextmanager
async def sampling(pair: Pair) -> AsyncIterator[dict[str, float]]:
    """The slowest answers of the second replica's `/healthz` and of Redis while the context lasts."""
    worst: dict[str, float] = {}
    ended = asyncio.Event()

    async def sample(name: str, ask: Callable[[], Any]) -> None:
        await ask()  # makes the connection
        while not ended.is_set():
            began = time.monotonic()
            await ask()
            worst[name] = max(worst.get(name, 0.0), time.monotonic() - began)
            await asyncio.sleep(0.01)

    async with (
        httpx.AsyncClient() as http,
        redis_aio.Redis(port=pair.redis.port, socket_timeout=5) as client,
        asyncio.TaskGroup() as samplers,
    ):
        samplers.create_task(sample("healthz", lambda: http.get(f"{pair.two.url}/healthz")))
        samplers.create_task(sample("ping", client.ping))
        try:
            yield worst
        finally:
            ended.set()


# Redis forgets -----------------------------------------------------------------------------------------------------


async def test_an_emptied_redis_is_told_to_every_open_stream_and_to_those_who_resume(
    pair: Pair, http: httpx.AsyncClient, who: str
) -> None:
    topics = {f"user:{who}", "system", f"flushed:{who}"}
    async with (
        following(pair.one, who, f"flushed:{who}") as first,
        following(pair.two, who, f"flushed:{who}") as second,
    ):
        lost = (await confirm(http, pair.one, event(f"user:{who}", "lost"), f"{who}-lost")).json()["id"]
        await second.until_heard("lost")
        pair.command("FLUSHALL")
        began = time.monotonic()
        await until(lambda: first.gaps and second.gaps, RECOVERY_S, "told as a gap")
        show("redis emptied: told", time.monotonic() - began, RECOVERY_S)
        async with following(pair.two, who, f"flushed:{who}", last_event_id=lost) as late:
            assert late.opening.data["resume"] == "reset"
            assert {(r["topic"], r["reason"]) for r in late.opening.data["resets"]} == {(t, "origin") for t in topics}
            later = (await confirm(http, pair.one, event(f"user:{who}", "later"), f"{who}-later")).json()["id"]
            for follower in (first, second, late):
                await follower.until_heard("later")

        assert Position.parse(later) > Position.parse(lost)
        for follower in (first, second):
            assert [(set(gap["topics"]), gap["reason"]) for gap in follower.gaps] == [(topics, "origin")]
            assert follower.data[-1] == "later"
        assert late.gaps == []


async def test_what_is_published_into_an_emptied_redis_comes_after_the_gap(
    pair: Pair, http: httpx.AsyncClient, who: str
) -> None:
    """Nobody has noticed yet when the first publish comes: it is the one that notices."""
    async with following(pair.one, who) as first, following(pair.two, who) as second:
        for number in range(5):
            pair.command("FLUSHALL")
            await confirm(http, pair.one, event(f"user:{who}", number), f"{who}-{number}")
            for follower in (first, second):
                await follower.until_heard(number)

        for follower in (first, second):
            told = [message.type for message in follower.messages if message.type in (EVENT, "stream.gap")]
            assert told == ["stream.gap", EVENT] * 5
            assert follower.data == list(range(5))


async def test_positions_never_go_back_over_an_emptied_redis_whose_clock_is_behind(
    http: httpx.AsyncClient, who: str
) -> None:
    """Its own replicas: their positions stay a minute ahead for the rest of their lives."""
    with pair_of_replicas() as pair:
        async with following(pair.two, who) as follower:
            pair.command("HSET", "allim:{0}:clock", "ms", str(int(time.time() * 1000) + 60_000))
            ahead = (await confirm(http, pair.one, event(f"user:{who}", "ahead"), f"{who}-ahead")).json()["id"]
            await follower.until_heard("ahead")
            pair.command("FLUSHALL")
            await until(lambda: follower.gaps, RECOVERY_S, "told as a gap")
            later = [
                (await confirm(http, member, event(f"user:{who}", name), f"{who}-{name}")).json()["id"]
                for name, member in (("one", pair.one), ("two", pair.two))
            ]
            await follower.until_heard("two")

            positions = [Position.parse(text) for text in (ahead, *later)]
            assert positions == sorted(set(positions))
            assert follower.data == ["ahead", "one", "two"]
