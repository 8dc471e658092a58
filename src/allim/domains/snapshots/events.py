"""The events of snapshots. Each is the same on every attempt, so its key makes it happen once."""

from typing import NamedTuple

from allim.domains.snapshots.store import Snapshot
from allim.hub import Draft
from allim.identity import user_topic
from allim.times import utc

STEPS = 3


class Announcement(NamedTuple):
    """An event and the idempotency key under which it is published."""

    draft: Draft
    key: str


def progress(snapshot: Snapshot, step: int) -> Announcement:
    """`snapshots.progress`: `step` of `of` is done."""
    data = {"snapshotId": snapshot.id, "step": step, "of": STEPS}
    draft = Draft(user_topic(snapshot.account_id), "snapshots.progress", data)
    return Announcement(draft, f"snapshots:{snapshot.id}:progress:{step}")


def generated(snapshot: Snapshot) -> Announcement:
    """`snapshots.generated`: built from the stored row alone, whoever announces it."""
    assert snapshot.generated_at is not None
    data = {
        "snapshotId": snapshot.id,
        "snapshotCount": snapshot.snapshot_count,
        "timestamp": utc(snapshot.generated_at),
        "serverId": snapshot.server_id,
    }
    draft = Draft(user_topic(snapshot.account_id), "snapshots.generated", data)
    return Announcement(draft, f"snapshots:{snapshot.id}:generated")
