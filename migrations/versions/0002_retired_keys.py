"""Retired keys."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
# What the downgrade deletes and nothing can make again: tables, and columns as table.column.
loses = ("retired_keys",)


def upgrade() -> None:
    op.create_table(
        "retired_keys",
        sa.Column("key_ref", sa.String(length=255), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key_ref", name=op.f("pk_retired_keys")),
    )


def downgrade() -> None:
    op.drop_table("retired_keys")
