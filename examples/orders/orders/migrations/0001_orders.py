"""Orders."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = branch_labels = depends_on = None


def upgrade() -> None:
    op.create_table(
        "allim_orders",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("customer", sa.String(255), nullable=False, index=True),
        sa.Column("item", sa.String(100), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("placed_at", sa.Double(), nullable=False),
    )
