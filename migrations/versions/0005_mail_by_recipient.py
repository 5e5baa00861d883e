"""How many mails of a kind an address was sent lately: an index, made on PostgreSQL while mails are being queued."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_NAME = "ix_mail_jobs_recipient_key_kind_created_at"


def upgrade() -> None:
    columns = ["recipient_key", "kind", "created_at"]
    if op.get_bind().dialect.name == "postgresql":
        # Without a lock on writes; what an interrupted attempt left is not usable and goes first.
        with op.get_context().autocommit_block():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_NAME}")
            op.create_index(_NAME, "mail_jobs", columns, postgresql_concurrently=True)
    else:
        op.create_index(_NAME, "mail_jobs", columns)


def downgrade() -> None:
    op.drop_index(_NAME, table_name="mail_jobs")
