"""Accounts and snapshots."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("password_hash", sa.String(255), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_accounts"),
        sa.UniqueConstraint("email", name="uq_accounts_email"),
    )
    op.create_table(
        "snapshots",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("account_id", sa.String(128), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("requested_at", sa.Double(), nullable=False),
        sa.Column("generated_at", sa.Double(), nullable=True),
        sa.Column("snapshot_count", sa.Integer(), nullable=True),
        sa.Column("server_id", sa.String(255), nullable=True),
        sa.Column("sha256", sa.String(64), nullable=True),
        sa.Column("content", sa.Text(), nullable=True),
        sa.Column("announced_at", sa.Double(), nullable=True),
        sa.Column("owner", sa.String(300), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", sa.Double(), nullable=False),
        sa.Column("sweep_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_snapshots"),
        sa.UniqueConstraint("account_id", "snapshot_count", name="uq_snapshots_account_id_snapshot_count"),
    )
    op.create_index("ix_snapshots_newest", "snapshots", ["account_id", "requested_at", "id"])
    unannounced = sa.text("announced_at IS NULL")
    op.create_index(
        "ix_snapshots_unannounced",
        "snapshots",
        ["sweep_at"],
        sqlite_where=unannounced,
        postgresql_where=unannounced,
    )
    op.create_table(
        "snapshot_counts",
        sa.Column("account_id", sa.String(128), nullable=False),
        sa.Column("generated", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", name="pk_snapshot_counts"),
    )
