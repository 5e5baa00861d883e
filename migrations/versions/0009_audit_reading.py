"""The audit log, by each of its filters: an index whose rest is the order of the list."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_COLUMNS = ("actor_id", "action", "target_id", "outcome")


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        # Without a lock on writes; what an interrupted attempt left is not usable and goes first.
        with op.get_context().autocommit_block():
            for column in _COLUMNS:
                op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_name(column)}")
                op.create_index(_name(column), "audit_events", [column, "at", "id"], postgresql_concurrently=True)
    else:
        for column in _COLUMNS:
            op.create_index(_name(column), "audit_events", [column, "at", "id"])


def downgrade() -> None:
    for column in reversed(_COLUMNS):
        op.drop_index(_name(column), table_name="audit_events")


def _name(column: str) -> str:
    return f"ix_audit_events_{column}_at_id"
