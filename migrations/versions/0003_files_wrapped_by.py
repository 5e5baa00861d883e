"""Which rows depend on which key: an index, made on PostgreSQL while files are being written."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_HAS_KEY = sa.text("encrypted_data_key IS NOT NULL")


def upgrade() -> None:
    columns = ["key_provider", "key_ref", "id"]
    if op.get_bind().dialect.name == "postgresql":
        # Without a lock on writes; what an interrupted attempt left is not usable and goes first.
        with op.get_context().autocommit_block():
            op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_files_wrapped_by")
            op.create_index(
                "ix_files_wrapped_by", "files", columns, postgresql_where=_HAS_KEY, postgresql_concurrently=True
            )
    else:
        op.create_index("ix_files_wrapped_by", "files", columns, sqlite_where=_HAS_KEY)


def downgrade() -> None:
    op.drop_index("ix_files_wrapped_by", table_name="files")
