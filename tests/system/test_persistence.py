"""Redis is killed and comes back with all, with some or with nothing of what it had; its disk is full; and what a
publish is worth at each durability."""

import asyncio
import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness.redis_sets import APPEND_ALWAYS, APPEND_EVERYSEC, VALKEY, Node, node, pair
from harness.replicas import PUBLISH_KEY, ROOT, SECRET, Replica
from harness.waiting import until
from harness.witnesses import assert_batches_are_whole, history, publishing, witnessing

from allim.hub import Position
from tests.system.pairs import TOPICS, publish, publish_until_accepted, two_replicas

pytestmark = pytest.mark.anyio

PUBLISH_DEADLINE_S = 10.0
DISK_BYTES = 4 * 1024 * 1024


# Killed and started again --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("durable", "durability"), [(False, "memory"), (True, "disk")])
async def test_with_every_write_on_disk_nothing_accepted_is_lost_and_no_batch_is_half(
    durable: bool, durability: str
) -> None:
    """kill -9 twice under load, `appendfsync always`. Only `ALLIM_REDIS_DURABLE` may say that nothing was lost."""
    with (
        node(*APPEND_ALWAYS) as redis,
        two_replicas(redis.url, redis_durable=durable, durability=durability) as (one, two),
    ):
        urls = [one.url, two.url]
        early = publish(one, "early")
        async with witnessing(one.url, "42") as first, witnessing(two.url, "42") as second:
            async with publishing(urls, "user:42", name="a") as a, publishing(urls, "system", name="b") as b:
                for _ in range(2):
                    answered = len(a.accepted)
                    await until(lambda answered=answered: len(a.accepted) >= answered + 10, 30)  # type: ignore[misc]
                    redis.kill()
                    await asyncio.to_thread(redis.start)
            end = publish_until_accepted(one, "end")
            for follower in (first, second):
                await follower.until_data("end")
                follower.positions()
                assert not follower.ended

            kept = await history(two.url, "42")
            batches = [message.data for message in kept if isinstance(message.data, list)]
            ids = {message.id for message in kept}
            assert a.durabilities == b.durabilities == {durability}
            assert len(ids) == len(kept)
            assert ids == {early, end} | a.positions | b.positions
            assert sorted(batches) == sorted(a.data + b.data)
            for url in urls:
                async with witnessing(url, "42", early) as resumed:
                    await resumed.until_data("end")
                    if durable:
                        assert (resumed.opening["resume"], resumed.resets) == ("complete", {})
                    else:
                        assert resumed.resets == dict.fromkeys(TOPICS, "origin")
            for follower in (first, second):
                if durable:
                    assert follower.gaps == []
                    assert [message.id for message in follower.events] == [message.id for message in kept[1:]]
                else:
                    assert set(follower.gaps) == {(frozenset(TOPICS), "origin")}


def lose_everything(redis: Node, _: dict[Path, int]) -> None:
    redis.empty()


def lose_the_tail(_: Node, sizes: dict[Path, int]) -> None:
    """What a power loss does to pages that were not synced yet."""
    for path, size in sizes.items():
        os.truncate(path, size)


def append_only_sizes(redis: Node) -> dict[Path, int]:
    return {path: path.stat().st_size for path in redis.folder.glob("appendonlydir/*.incr.aof")}


@pytest.mark.parametrize(
    ("options", "lose", "kept"),
    [
        pytest.param((), lose_everything, [], id="no-persistence"),
        pytest.param(APPEND_EVERYSEC, lose_the_tail, ["kept"], id="everysec"),
    ],
)
async def test_what_may_be_lost_is_told_to_everybody(
    options: tuple[str, ...], lose: Callable[[Node, dict[Path, int]], None], kept: list[str]
) -> None:
    """No last event ID from before may earn `complete`, no open stream may go on untold, positions go on rising."""
    with node(*options) as redis, two_replicas(redis.url) as (one, two):
        async with witnessing(one.url, "42") as first, witnessing(two.url, "42") as second:
            before = [publish(one, "kept")]
            sizes = append_only_sizes(redis)
            before += [publish(two, f"lost {number}") for number in range(10)]
            for follower in (first, second):
                await follower.until_data("lost 9")
                heard = follower.last_event_id
                await until(lambda follower=follower, heard=heard: follower.last_event_id != heard)  # type: ignore[misc]
            last_event_ids = [*before, first.last_event_id, second.last_event_id]
            redis.kill()
            lose(redis, sizes)
            await asyncio.to_thread(redis.start)
            for follower in (first, second):
                await follower.until_told(TOPICS)

            after = [publish_until_accepted(replica, "after") for replica in (one, two)]
            assert len(set(after)) == 1
            for follower in (first, second):
                await follower.until_data("after")
                follower.positions()
                assert (follower.gaps, follower.ended) == ([(frozenset(TOPICS), "origin")], False)
            assert Position.parse(after[0]) > max(map(Position.parse, last_event_ids))
            assert [message.data for message in await history(one.url, "42")] == [*kept, "after"]
            for replica, last_event_id in itertools.product((one, two), last_event_ids):
                async with witnessing(replica.url, "42", last_event_id) as resumed:
                    assert resumed.resets == dict.fromkeys(TOPICS, "origin")
                    assert resumed.opening["resume"] == "reset"
            async with witnessing(two.url, "42", first.last_event_id) as resumed:
                assert (resumed.opening["resume"], resumed.resets) == ("complete", {})


async def test_what_was_lost_while_no_replica_ran_is_told_on_resume() -> None:
    """Nobody who heard the lost events is left to say so. Newer events have passed their positions."""
    with node(*APPEND_EVERYSEC) as redis:
        with two_replicas(redis.url) as (one, _):
            kept = publish(one, "kept")
            sizes = append_only_sizes(redis)
            lost = publish(one, "lost")
        redis.kill()
        lose_the_tail(redis, sizes)
        redis.start()
        with two_replicas(redis.url) as (one, two):
            after = publish(two, "after")
            assert [message.id for message in await history(one.url, "42")] == [kept, after]
            for last_event_id in (kept, lost):
                async with witnessing(one.url, "42", last_event_id) as resumed:
                    assert resumed.resets == dict.fromkeys(TOPICS, "origin")
            async with witnessing(one.url, "42", after) as resumed:
                assert (resumed.opening["resume"], resumed.resets) == ("complete", {})


async def test_a_batch_that_was_half_on_disk_is_not_there_and_its_retry_is_whole() -> None:
    """The append-only file ends in the middle of a batch, as after a power loss."""
    with node(*APPEND_ALWAYS) as redis, two_replicas(redis.url, redis_durable=True) as (one, two):
        batch = [("user:42", "t", [0, index]) for index in range(50)]
        publish(one, "before")
        [(path, without)] = append_only_sizes(redis).items()
        first = one.publish(*batch, idempotency_key="batch")
        redis.kill()
        os.truncate(path, (without + append_with(path, b"[0,49]")) // 2)
        redis.start()

        assert [message.data for message in await history(two.url, "42")] == ["before"]
        again = two.publish(*batch, idempotency_key="batch")
        stored = await history(one.url, "42")
        assert (first.status_code, again.status_code) == (202, 202)
        assert [message.id for message in stored[1:]] == again.json()["ids"]
        assert_batches_are_whole([message.data for message in stored[1:]], 50)
        assert Position.parse(again.json()["ids"][0]) > Position.parse(first.json()["ids"][-1])


def append_with(path: Path, text: bytes) -> int:
    """Where the text ends in a file."""
    return path.read_bytes().index(text) + len(text)


# A full disk ---------------------------------------------------------------------------------------------------


@contextmanager
def small_disk() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="allim-disk-"))
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if not mounted or mounted.returncode:
        folder.rmdir()
        pytest.skip("a small disk needs the right to mount (root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def fill(disk: Path) -> Path:
    """Take all the space that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


async def test_a_full_disk_refuses_publishes_and_nothing_else() -> None:
    """Streams live, are opened and catch up, the replicas stay ready; with space again all is as before."""
    with (
        small_disk() as disk,
        node(*APPEND_EVERYSEC, "--auto-aof-rewrite-percentage", "0", folder=disk) as redis,
        two_replicas(redis.url) as (one, two),
    ):
        async with witnessing(one.url, "42") as follower:
            position = publish(one, "before")
            filler = fill(disk)
            refused = await until(lambda: refusal(one), 20, "a publish refused for the full disk")
            beats = follower.heartbeats
            await until(lambda: follower.heartbeats >= beats + 2, what="heartbeats while the disk is full")
            async with witnessing(two.url, "42", position) as resumed:
                assert (resumed.opening["resume"], resumed.resets) == ("complete", {})
                await until(lambda: len(resumed.events) >= resumed.opening["replayed"], what="catch-up")
            ready = [httpx.get(f"{to.url}/readyz").status_code for to in (one, two)]
            filler.unlink()
            publish_until_accepted(two, "after")
            await follower.until_data("after")
            follower.positions()

            assert int(refused.headers["retry-after"]) > 0
            assert ready == [200, 200]
            assert one.metric("allim_link_repairs_total") == 0
            assert (follower.gaps, follower.ended) == ([], False)
            assert [message.id for message in await history(one.url, "42")] == [
                message.id for message in follower.events
            ]


def refusal(to: Replica) -> Any:
    """Keep Redis writing until it says that it cannot."""
    answer = to.publish(("user:42", "t", "x" * 1000))
    assert answer.status_code in (202, 503), answer.text
    return answer if answer.status_code == 503 else None


# Durability ----------------------------------------------------------------------------------------------------


def refused_start(**settings: object) -> str:
    """What a replica says that does not start."""
    with tempfile.TemporaryDirectory(prefix="allim-refused-") as folder:
        environ = {
            **os.environ,
            "ALLIM_DATA_DIR": folder,
            "ALLIM_SECRET_KEY": SECRET,
            "ALLIM_PUBLISH_KEYS": f"tests:{PUBLISH_KEY}",
            **{f"ALLIM_{name.upper()}": str(value) for name, value in settings.items()},
        }
        command = [sys.executable, "-m", "allim", "serve", "--port", "0"]
        done = subprocess.run(command, env=environ, cwd=ROOT, timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.parametrize("options", [(), APPEND_EVERYSEC], ids=["no-persistence", "everysec"])
async def test_disk_is_refused_at_the_start_where_redis_cannot(options: tuple[str, ...]) -> None:
    with node(*options) as redis:
        said = refused_start(redis_url=redis.url, durability="disk")

    assert "Traceback" not in said
    [line] = [line for line in said.splitlines() if "ALLIM_DURABILITY" in line]
    assert "disk" in line


async def test_disk_is_confirmed_by_waitaof_where_redis_knows_it() -> None:
    with (
        node(*APPEND_EVERYSEC, program=VALKEY) as redis,
        two_replicas(redis.url, durability="disk") as (one, _),
    ):
        async with publishing([one.url], "user:42") as publisher:
            await until(lambda: len(publisher.accepted) >= 3)

        assert publisher.durabilities == {"disk"}
        assert publisher.slowest_s < 1


async def test_replica_is_named_and_promised_only_while_a_replica_confirms() -> None:
    """With the replica stopped a publish is not confirmed; its retry, once the replica is back, is the same event."""
    with pair() as redis, two_replicas(redis.master.url, durability="replica") as (one, two):
        answer = one.publish(("user:42", "t", "before"))
        assert (answer.status_code, answer.json()["durability"]) == (202, "replica")
        async with witnessing(two.url, "42") as follower:
            redis.replica.freeze()
            refused = one.publish(("user:42", "t", "during"), idempotency_key="during")
            redis.replica.thaw()
            confirmed = {publish_until_accepted(to, "during") for to in (two, one)}
            await follower.until_data("during")

            assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
            assert refused.elapsed.total_seconds() < PUBLISH_DEADLINE_S + 1
            assert len(confirmed) == 1
            assert [message.id for message in follower.events] == list(confirmed)
            assert [message.data for message in await history(one.url, "42")] == ["before", "during"]
