"""Search in names: a trigram index, on PostgreSQL only, made while files are being written."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import DBAPIError

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_NAME = "ix_files_name_trigrams"


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    with op.get_context().autocommit_block():
        _create_extension()
        # Without a lock on writes; what an interrupted attempt left is not usable and goes first.
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_NAME}")
        op.create_index(
            _NAME,
            "files",
            ["name_folded"],
            postgresql_using="gin",
            postgresql_ops={"name_folded": "gin_trgm_ops"},
            postgresql_where=sa.text("state = 'ready'"),
            postgresql_concurrently=True,
        )


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        # The extension stays: others may use it.
        op.drop_index(_NAME, table_name="files")


def _create_extension() -> None:
    try:
        op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    except DBAPIError as exc:
        raise SystemExit(
            "The search in names needs PostgreSQL's extension pg_trgm, and this role could not create it"
            f" ({type(exc.orig).__name__}). Have an administrator install PostgreSQL's contrib modules where they are"
            " missing and run in this database, once: CREATE EXTENSION pg_trgm;  Then run this migration again."
        ) from exc
