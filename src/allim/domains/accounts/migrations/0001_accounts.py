"""Accounts, the identities that sign in to them, and their sessions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "allim_accounts",
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("email", sa.String(254), nullable=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("password_hash", sa.String(255), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_allim_accounts"),
        sa.UniqueConstraint("email", name="uq_allim_accounts_email"),
    )
    op.create_table(
        "allim_accounts_identities",
        sa.Column("issuer", sa.String(255), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("account_id", sa.String(128), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("issuer", "subject", name="pk_allim_accounts_identities"),
    )
    op.create_table(
        "allim_accounts_sessions",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("account_id", sa.String(128), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("after_kick", sa.Double(), nullable=True),
        sa.Column("address", sa.String(64), nullable=True),
        sa.Column("agent", sa.String(64), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_allim_accounts_sessions"),
    )
    for column in ("account_id", "created_at"):
        op.create_index(f"ix_allim_accounts_sessions_{column}", "allim_accounts_sessions", [column])
