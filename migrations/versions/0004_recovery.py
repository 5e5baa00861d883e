"""Recovery: what a mailed token needs for a change of address, whom a mail is for, and password attempts."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
# What the downgrade deletes and nothing can make again: tables, and columns as table.column.
loses = ("password_attempts", "email_tokens.session_id", "mail_jobs.recipient_key")


def upgrade() -> None:
    op.create_table(
        "password_attempts",
        sa.Column("account_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("network_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("counted_from", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_attempt_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("delayed_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("signed_in_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("account_key", "network_key", name=op.f("pk_password_attempts")),
    )
    op.create_index("ix_password_attempts_last_attempt_at", "password_attempts", ["last_attempt_at"])

    with op.batch_alter_table("email_tokens") as tokens:
        tokens.add_column(sa.Column("email", sa.String(length=254), nullable=True))
        tokens.add_column(sa.Column("session_id", sa.Uuid(), nullable=True))
    op.execute("UPDATE email_tokens SET email = (SELECT email FROM users WHERE users.id = email_tokens.user_id)")
    with op.batch_alter_table("email_tokens") as tokens:
        tokens.alter_column("email", existing_type=sa.String(length=254), nullable=False)

    op.add_column("users", sa.Column("password_version", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("mail_jobs", sa.Column("recipient_key", sa.String(length=512), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("mail_jobs") as jobs:
        jobs.drop_column("recipient_key")
    with op.batch_alter_table("users") as users:
        users.drop_column("password_version")
    with op.batch_alter_table("email_tokens") as tokens:
        tokens.drop_column("session_id")
        tokens.drop_column("email")
    op.drop_index("ix_password_attempts_last_attempt_at", table_name="password_attempts")
    op.drop_table("password_attempts")
