"""Search along a sort: the sorts' indexes hold the names as well, so that rows which are passed over are not read.

The index over a person's rows in any state goes by id, which is how they are asked for.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_READY = sa.text("state = 'ready'")
_SORTS = {
    "ix_files_ready_by_created_at": "created_at",
    "ix_files_ready_by_size": "size_bytes",
    "ix_files_ready_by_content_type": "content_type",
}


def upgrade() -> None:
    _create("ix_files_owner_id_id", ["owner_id", "id"])
    _drop("ix_files_owner_id_created_at_id")
    for name, column in _SORTS.items():
        _replace(name, ["owner_id", column, "id", "name_folded"])


def downgrade() -> None:
    for name, column in reversed(_SORTS.items()):
        _replace(name, ["owner_id", column, "id"])
    _create("ix_files_owner_id_created_at_id", ["owner_id", "created_at", "id"])
    _drop("ix_files_owner_id_id")


def _replace(name: str, columns: list[str]) -> None:
    """A sort's index: on PostgreSQL, lists keep the old one until the new one is there, also if this is interrupted."""
    if op.get_bind().dialect.name == "postgresql":
        _create(f"{name}_new", columns, where=_READY)
        _drop(f"{name}_old")
        op.execute(f"ALTER INDEX {name} RENAME TO {name}_old")
        op.execute(f"ALTER INDEX {name}_new RENAME TO {name}")
        _drop(f"{name}_old")
    else:
        _drop(name)
        _create(name, columns, where=_READY)


def _create(name: str, columns: list[str], *, where: sa.TextClause | None = None) -> None:
    if op.get_bind().dialect.name == "postgresql":
        # Without a lock on writes; what an interrupted attempt left is not usable and goes first.
        _drop(name)
        with op.get_context().autocommit_block():
            op.create_index(name, "files", columns, postgresql_where=where, postgresql_concurrently=True)
    else:
        op.create_index(name, "files", columns, sqlite_where=where)


def _drop(name: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        with op.get_context().autocommit_block():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
    else:
        op.drop_index(name, table_name="files")
