"""Lists of files: an index for each sort over the ready rows, and on PostgreSQL texts in the order of code points."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_READY = sa.text("state = 'ready'")
_INDEXES = {
    "ix_files_ready_by_name": "name_folded",
    "ix_files_ready_by_created_at": "created_at",
    "ix_files_ready_by_size": "size_bytes",
    "ix_files_ready_by_content_type": "content_type",
}


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        _compare_texts("C")
        # Without a lock on writes; what an interrupted attempt left is not usable and goes first.
        with op.get_context().autocommit_block():
            for name, column in _INDEXES.items():
                op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
                op.create_index(
                    name, "files", ["owner_id", column, "id"], postgresql_where=_READY, postgresql_concurrently=True
                )
    else:
        for name, column in _INDEXES.items():
            op.create_index(name, "files", ["owner_id", column, "id"], sqlite_where=_READY)


def downgrade() -> None:
    for name in reversed(_INDEXES):
        op.drop_index(name, table_name="files")
    if op.get_bind().dialect.name == "postgresql":
        _compare_texts("default")


def _compare_texts(collation: str) -> None:
    # Neither rewrites the table; SQLite compares by code points anyway.
    op.execute(
        f'ALTER TABLE files ALTER COLUMN name_folded TYPE text COLLATE "{collation}",'
        f' ALTER COLUMN content_type TYPE varchar(255) COLLATE "{collation}"'
    )
