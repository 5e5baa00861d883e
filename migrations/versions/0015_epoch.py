"""The epoch of an installation, by which the store tells an older copy of the database from its owner.

A database that was downgraded and upgraded again has lost it, and is behind its store until `flask files adopt`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None
# What the downgrade deletes and nothing can make again: tables, and columns as table.column.
loses = ("installation.epoch", "installation.epoch_token")


def upgrade() -> None:
    op.add_column("installation", sa.Column("epoch", sa.BigInteger, nullable=False, server_default=sa.text("0")))
    op.add_column("installation", sa.Column("epoch_token", sa.Uuid))


def downgrade() -> None:
    op.drop_column("installation", "epoch_token")
    op.drop_column("installation", "epoch")
