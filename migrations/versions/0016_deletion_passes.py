"""When what is too old was last deleted: a clock that has jumped is noticed by it."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deletion_passes",
        sa.Column("row_number", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("row_number = 1", name=op.f("ck_deletion_passes_one_row")),
        sa.PrimaryKeyConstraint("row_number", name=op.f("pk_deletion_passes")),
    )
    # The newest event is the best that is known of the time before this.
    op.execute("INSERT INTO deletion_passes SELECT 1, max(at) FROM audit_events HAVING max(at) IS NOT NULL")


def downgrade() -> None:
    op.drop_table("deletion_passes")
