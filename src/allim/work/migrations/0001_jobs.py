"""Jobs of background work."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "allim_work_jobs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("key", sa.String(255), nullable=True),
        sa.Column("arguments", sa.Text(), nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("written_at", sa.Double(), nullable=False),
        sa.Column("owner", sa.String(300), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_allim_work_jobs"),
        sa.UniqueConstraint("name", "key", name="uq_allim_work_jobs_name_key"),
    )
    is_open = sa.text("state = 'open'")
    for column in ("due_at", "written_at"):
        op.create_index(
            f"ix_allim_work_jobs_{column}",
            "allim_work_jobs",
            [column],
            sqlite_where=is_open,
            postgresql_where=is_open,
        )
    op.create_index("ix_allim_work_jobs_ended_at", "allim_work_jobs", ["ended_at"])
