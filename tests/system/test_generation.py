"""A replica that dies while it generates a snapshot costs time, and nothing else."""

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from harness.cluster import Cluster, cluster
from harness.replicas import Reader
from harness.waiting import until

from allim.client import Message

pytestmark = pytest.mark.anyio

STEP_MS = 3000
TAKEN_OVER_WITHIN_S = 30 + 3 * STEP_MS / 1000


@pytest.fixture
def slow() -> Iterator[Cluster]:
    with cluster(replicas=3, snapshot_step_ms=STEP_MS) as started:
        yield started


def owner_of(database: Path, snapshot_id: str) -> str | None:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        row = connection.execute(
            "SELECT owner FROM allim_work_jobs WHERE arguments = ?", (f'["{snapshot_id}"]',)
        ).fetchone()
    finally:
        connection.close()
    return row[0].partition(":")[0] if row and row[0] else None


async def test_a_snapshot_whose_replica_is_killed_is_generated_elsewhere_and_told_once(slow: Cluster) -> None:
    account = {"email": "slow@example.org", "name": "Slow", "password": "long enough"}
    signed_in = httpx.post(f"{slow.url}/api/accounts", json=account, timeout=60).json()
    headers = {"authorization": f"Bearer {signed_in['token']}"}
    (snapshot,) = httpx.get(f"{slow.url}/api/accounts/me/snapshots", headers=headers).json()["items"]
    await until(lambda: bool(owner_of(slow.database, snapshot["id"])), what="somebody at work")
    worker = slow.member(owner_of(slow.database, snapshot["id"]) or "")
    # Not on the worker itself: its streams would end with it.
    streams = [await Reader.open(member.url, signed_in["token"]) for member in slow.others(worker.name)]
    await streams[0].next("snapshots.progress")

    with worker.down():
        killed_at = time.monotonic()
        done = [await stream.next("snapshots.generated", TAKEN_OVER_WITHIN_S) for stream in streams]
        took_s = time.monotonic() - killed_at
        httpx.post(f"{slow.others(worker.name)[0].url}/api/accounts/me/snapshots", headers=headers)
        await asyncio.gather(*(stream.next("snapshots.generated", 20) for stream in streams))

    print(f"taken over and generated {took_s:.1f} s after the kill")  # noqa: T201
    for stream, message in zip(streams, done, strict=True):
        told = [heard for heard in stream.messages if _is_of(heard, snapshot["id"])]
        assert [heard.data["step"] for heard in told if heard.type == "snapshots.progress"] == [1, 2, 3]
        assert [heard for heard in told if heard.type == "snapshots.generated"] == [message]
        assert message.data["serverId"] in {member.name for member in slow.others(worker.name)}
        assert message.data["snapshotCount"] == 1
        stream.abort()


def _is_of(message: Message, snapshot_id: str) -> bool:
    return message.type.startswith("snapshots.") and message.data["snapshotId"] == snapshot_id
