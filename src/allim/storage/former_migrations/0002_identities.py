"""Accounts that providers sign in to: with an identity, without a password, perhaps without an email."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("accounts") as accounts:  # SQLite cannot alter a column: the table is copied
        accounts.alter_column("email", existing_type=sa.String(254), nullable=True)
        accounts.alter_column("password_hash", existing_type=sa.String(255), nullable=True)
    op.create_table(
        "identities",
        sa.Column("issuer", sa.String(255), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("account_id", sa.String(128), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("issuer", "subject", name="pk_identities"),
    )
