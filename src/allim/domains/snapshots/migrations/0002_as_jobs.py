"""Pending snapshots become jobs; a snapshot has no lease of its own any more."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_LEASE = ("owner", "lease_until", "attempts", "next_attempt_at", "sweep_at")


def upgrade() -> None:
    # Identifiers are of the URL-safe alphabet, so they need no escapes in JSON.
    op.execute(
        sa.text(
            "INSERT INTO allim_work_jobs (id, name, arguments, state, due_at, written_at, attempts, failures)"
            " SELECT id, 'snapshots.generate', '[\"' || id || '\"]', 'open', requested_at, requested_at, 0, 0"
            " FROM allim_snapshots WHERE announced_at IS NULL"
        )
    )
    op.drop_index("ix_allim_snapshots_unannounced", "allim_snapshots")
    with op.batch_alter_table("allim_snapshots") as snapshots:
        for column in _LEASE:
            snapshots.drop_column(column)
