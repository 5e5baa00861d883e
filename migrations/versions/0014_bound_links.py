"""Links that confirm an address are bound to a password, and mails are counted by network as well.

Links and jobs of before have no version: they are for the newest registration, since a new one ended those of others.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None
# What the downgrade deletes and nothing can make again: tables, and columns as table.column.
loses = ("email_tokens.password_version", "mail_jobs.password_version")


def upgrade() -> None:
    op.add_column("email_tokens", sa.Column("password_version", sa.Integer))
    op.add_column("email_tokens", sa.Column("failures", sa.Integer, nullable=False, server_default="0"))
    op.add_column("mail_jobs", sa.Column("network", sa.String(64)))
    op.add_column("mail_jobs", sa.Column("password_version", sa.Integer))


def downgrade() -> None:
    op.drop_column("mail_jobs", "password_version")
    op.drop_column("mail_jobs", "network")
    op.drop_column("email_tokens", "failures")
    op.drop_column("email_tokens", "password_version")
