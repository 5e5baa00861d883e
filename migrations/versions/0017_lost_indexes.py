"""Indexes that migrations before this have made and that several upgrades beside each other have lost, on PostgreSQL.

An upgrade that began late dropped, as the rest of an interrupted one, what another had just made. From now on only one
upgrade runs.
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

# Each that is made concurrently, by its name: what follows CREATE INDEX CONCURRENTLY name ON.
_INDEXES = {
    "ix_audit_events_action_at_id": "audit_events (action, at, id)",
    "ix_audit_events_actor_id_at_id": "audit_events (actor_id, at, id)",
    "ix_audit_events_outcome_at_id": "audit_events (outcome, at, id)",
    "ix_audit_events_target_id_at_id": "audit_events (target_id, at, id)",
    "ix_files_name_trigrams": "files USING gin (name_folded gin_trgm_ops) WHERE state = 'ready'",
    "ix_files_owner_id_id": "files (owner_id, id)",
    "ix_files_ready_by_content_type": "files (owner_id, content_type, id, name_folded) WHERE state = 'ready'",
    "ix_files_ready_by_created_at": "files (owner_id, created_at, id, name_folded) WHERE state = 'ready'",
    "ix_files_ready_by_name": "files (owner_id, name_folded, id) WHERE state = 'ready'",
    "ix_files_ready_by_size": "files (owner_id, size_bytes, id, name_folded) WHERE state = 'ready'",
    "ix_files_wrapped_by": "files (key_provider, key_ref, id) WHERE encrypted_data_key IS NOT NULL",
    "ix_mail_jobs_recipient_key_kind_created_at": "mail_jobs (recipient_key, kind, created_at)",
    "ix_users_admins": "users (created_at, id) WHERE role = 'admin'",
    "ix_users_created_at_id": "users (created_at, id)",
    "ix_users_disabled": "users (created_at, id) WHERE disabled_at IS NOT NULL",
    "ix_users_search_trigrams": "users USING gin (search_text gin_trgm_ops)",
}
_WHOLE = sa.text(
    "SELECT relname FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid"
    " WHERE indisvalid AND relnamespace = current_schema()::regnamespace"
)


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    whole = set(op.get_bind().scalars(_WHOLE))
    with op.get_context().autocommit_block():
        for name, definition in _INDEXES.items():
            if name not in whole:
                op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
                op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {definition}")


def downgrade() -> None:
    """Keep the indexes: the schema of before has them."""
