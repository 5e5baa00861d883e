"""Tallies: failures of people who are not signed in, counted before they become audit events."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None
# What the downgrade deletes and nothing can make again: tables, and columns as table.column.
loses = ("audit_tallies",)


def upgrade() -> None:
    op.create_table(
        "audit_tallies",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        sa.Column("action", sa.String(length=48), nullable=False),
        sa.Column("network", sa.String(length=64), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor_email", sa.String(length=254), nullable=True),
        sa.Column("ip", sa.String(length=45), nullable=True),
        sa.Column("user_agent", sa.String(length=255), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_tallies")),
        sa.UniqueConstraint(
            "minute",
            "action",
            "network",
            "account_id",
            "reason",
            name=op.f("uq_audit_tallies_minute_action_network_account_id_reason"),
        ),
    )


def downgrade() -> None:
    op.drop_table("audit_tallies")
