"""What requests to this room send, and what its answers hold."""

import json

from allim.domains.snapshots.store import Snapshot
from allim.http.bodies import Body, utc


class NewSnapshot(Body):
    """`POST /api/accounts/me/snapshots`: nothing to choose yet."""


class SnapshotView(Body):
    """A snapshot as its account sees it; what is not known before it is generated is null."""

    id: str
    status: str
    requested_at: str
    generated_at: str | None
    snapshot_count: int | None
    server_id: str | None
    sha256: str | None


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


def whole(snapshot: Snapshot) -> dict[str, object]:
    """The snapshot with its content; its `sha256` is that of the content in canonical JSON."""
    content = None if snapshot.content is None else json.loads(snapshot.content)
    return {**view(snapshot).model_dump(), "content": content}
