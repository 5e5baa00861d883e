"""How many files a person has: each account's own next upload counts them, so nothing is rewritten here."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("users", sa.Column("file_count", sa.BigInteger))


def downgrade() -> None:
    op.drop_column("users", "file_count")
