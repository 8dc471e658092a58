"""The events of snapshots. Each is the same on every attempt, so its key makes it happen once."""

from typing import Annotated, NamedTuple

from pydantic import Field

from allim.catalogue import EventData, EventType
from allim.domains.snapshots.store import Snapshot
from allim.hub import Draft
from allim.identity import user_topic
from allim.times import utc

STEPS = 3


class Progress(EventData):
    """A step of a snapshot's generation is done."""

    snapshot_id: str
    step: Annotated[int, Field(ge=1, le=STEPS)]
    of: Annotated[int, Field(description="The number of steps.")]


class Generated(EventData):
    """A generated snapshot."""

    snapshot_id: str
    snapshot_count: Annotated[int, Field(ge=1, description="The account's snapshots so far, with this one.")]
    timestamp: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    server_id: Annotated[str, Field(description="The replica that generated it.")]


_ID = "0b54a6e2c3d84f17"

PROGRESS = EventType(
    name="snapshots.progress",
    model=Progress,
    topic="user:{id}",
    summary="A step of a snapshot's generation is done.",
    description="Each snapshot has three steps. `GET /api/accounts/me/snapshots/{id}` tells the state at any time.",
    example={"snapshotId": _ID, "step": 1, "of": STEPS},
)
GENERATED = EventType(
    name="snapshots.generated",
    model=Generated,
    topic="user:{id}",
    summary="A snapshot is generated and can be read.",
    description="`GET /api/accounts/me/snapshots/{id}` returns it with its content.",
    example={
        "snapshotId": _ID,
        "snapshotCount": 1,
        "timestamp": "2026-01-31T09:30:00.000Z",
        "serverId": "replica-1",
    },
)
EVENTS = (PROGRESS, GENERATED)


class Announcement(NamedTuple):
    """An event and the idempotency key under which it is published."""

    draft: Draft
    key: str


def progress(snapshot: Snapshot, step: int) -> Announcement:
    """`snapshots.progress`: `step` of `of` is done."""
    data = {"snapshotId": snapshot.id, "step": step, "of": STEPS}
    draft = Draft(user_topic(snapshot.account_id), PROGRESS.name, data)
    return Announcement(draft, f"snapshots:{snapshot.id}:progress:{step}")


def generated(snapshot: Snapshot) -> Announcement:
    """`snapshots.generated`: built from the stored row alone, so it is the same from every replica."""
    assert snapshot.generated_at is not None
    data = {
        "snapshotId": snapshot.id,
        "snapshotCount": snapshot.snapshot_count,
        "timestamp": utc(snapshot.generated_at),
        "serverId": snapshot.server_id,
    }
    draft = Draft(user_topic(snapshot.account_id), GENERATED.name, data)
    return Announcement(draft, f"snapshots:{snapshot.id}:generated")
