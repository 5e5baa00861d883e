"""Quota and counters of owners, in a table of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "storage_accounts",
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("quota_bytes", sa.BigInteger(), nullable=True),
        sa.Column("used_bytes", sa.BigInteger(), nullable=False),
        sa.Column("reserved_bytes", sa.BigInteger(), nullable=False),
        sa.Column("object_count", sa.BigInteger(), nullable=True),
        sa.Column("may_store", sa.Boolean(), nullable=False),
        sa.CheckConstraint(
            "quota_bytes >= 0 AND used_bytes >= 0 AND reserved_bytes >= 0 AND object_count >= 0",
            name=op.f("ck_storage_accounts_not_negative"),
        ),
        sa.PrimaryKeyConstraint("owner_id", name=op.f("pk_storage_accounts")),
    )
    if op.get_bind().dialect.name == "postgresql":
        # Until the columns are gone, an upload of the version before would change numbers that are moved already.
        op.execute("LOCK TABLE users")
    # A negative count stems from a process that did not count yet; after NULL the next upload counts.
    op.execute(
        "INSERT INTO storage_accounts (owner_id, quota_bytes, used_bytes, reserved_bytes, object_count, may_store)"
        " SELECT id, quota_bytes, used_bytes, reserved_bytes, CASE WHEN file_count >= 0 THEN file_count END,"
        " disabled_at IS NULL FROM users"
    )
    with op.batch_alter_table("users") as users:
        users.drop_constraint(op.f("ck_users_bytes"), type_="check")
        users.drop_column("quota_bytes")
        users.drop_column("used_bytes")
        users.drop_column("reserved_bytes")
        users.drop_column("file_count")


def downgrade() -> None:
    op.add_column("users", sa.Column("quota_bytes", sa.BigInteger(), nullable=True))
    op.add_column("users", sa.Column("used_bytes", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("users", sa.Column("reserved_bytes", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("users", sa.Column("file_count", sa.BigInteger(), nullable=True))
    if op.get_bind().dialect.name == "postgresql":
        op.execute("LOCK TABLE storage_accounts")
    op.execute(
        "UPDATE users SET (quota_bytes, used_bytes, reserved_bytes, file_count) ="
        " (SELECT s.quota_bytes, s.used_bytes, s.reserved_bytes, s.object_count FROM storage_accounts AS s"
        " WHERE owner_id = users.id) WHERE id IN (SELECT owner_id FROM storage_accounts)"
    )
    with op.batch_alter_table("users") as users:
        users.alter_column("used_bytes", existing_type=sa.BigInteger(), existing_nullable=False, server_default=None)
        users.alter_column(
            "reserved_bytes", existing_type=sa.BigInteger(), existing_nullable=False, server_default=None
        )
        users.create_check_constraint(op.f("ck_users_bytes"), "used_bytes >= 0 AND reserved_bytes >= 0")
    op.drop_table("storage_accounts")
