"""Retired keys, and which rows depend on which key."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "retired_keys",
        sa.Column("key_ref", sa.String(length=255), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key_ref", name=op.f("pk_retired_keys")),
    )
    op.create_index(
        "ix_files_wrapped_by",
        "files",
        ["key_provider", "key_ref", "id"],
        postgresql_where=sa.text("encrypted_data_key IS NOT NULL"),
        sqlite_where=sa.text("encrypted_data_key IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_files_wrapped_by", table_name="files")
    op.drop_table("retired_keys")
