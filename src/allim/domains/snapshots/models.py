"""The bodies of requests and answers."""

import json
from typing import Any, Literal

from allim.domains.snapshots.store import Snapshot
from allim.http.bodies import Body, Instant
from allim.times import utc


class NewSnapshot(Body):
    """`POST /api/accounts/me/snapshots`: nothing to choose yet."""


class SnapshotView(Body):
    """A snapshot as its account sees it; what is not known before it is generated is null."""

    id: str
    status: Literal["pending", "generated"]
    requested_at: Instant
    generated_at: Instant | None
    snapshot_count: int | None
    server_id: str | None
    sha256: str | None


class SnapshotPage(Body):
    """A part of the list, newest first; `nextCursor` is null on the last one."""

    items: list[SnapshotView]
    next_cursor: str | None


class WholeSnapshot(SnapshotView):
    """A snapshot with its content; its `sha256` is that of the content in canonical JSON."""

    content: dict[str, Any] | None


def view(snapshot: Snapshot) -> SnapshotView:
    """The snapshot without its content and without what only workers need."""
    return SnapshotView.model_construct(
        id=snapshot.id,
        status=snapshot.status,
        requested_at=utc(snapshot.requested_at),
        generated_at=None if snapshot.generated_at is None else utc(snapshot.generated_at),
        snapshot_count=snapshot.snapshot_count,
        server_id=snapshot.server_id,
        sha256=snapshot.sha256,
    )


def whole(snapshot: Snapshot) -> WholeSnapshot:
    """The snapshot with its content."""
    content = None if snapshot.content is None else json.loads(snapshot.content)
    return WholeSnapshot.model_construct(**dict(view(snapshot)), content=content)
