"""Lists of everybody, and search in addresses and names: what administrators ask for.

The texts that are searched are folded here as vault.core.text did when this was written. Indexes are made while people
sign in, and what an interrupted attempt has done is not done again.
"""

import unicodedata

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# Three parameters each; old versions of SQLite take 999.
_BATCH = 300
_CREATED = ["created_at", "id"]
_INDEXES = {
    "ix_users_created_at_id": None,
    "ix_users_admins": "role = 'admin'",
    "ix_users_disabled": "disabled_at IS NOT NULL",
}
_TRIGRAMS = "ix_users_search_trigrams"
_users = sa.table(
    "users", sa.column("id"), sa.column("email"), sa.column("full_name"), sa.column("search_text", sa.Text)
)


def upgrade() -> None:
    if "search_text" not in {column["name"] for column in sa.inspect(op.get_bind()).get_columns("users")}:
        op.add_column("users", sa.Column("search_text", sa.Text, nullable=False, server_default=""))
    if op.get_bind().dialect.name == "postgresql":
        # Without a lock on writes; what an interrupted attempt left is not usable and goes first.
        with op.get_context().autocommit_block():
            _fold()
            for name, where in _INDEXES.items():
                op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
                condition = None if where is None else sa.text(where)
                op.create_index(name, "users", _CREATED, postgresql_where=condition, postgresql_concurrently=True)
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {_TRIGRAMS}")
            op.create_index(
                _TRIGRAMS,
                "users",
                ["search_text"],
                postgresql_using="gin",
                postgresql_ops={"search_text": "gin_trgm_ops"},
                postgresql_concurrently=True,
            )
    else:
        _fold()
        for name, where in _INDEXES.items():
            op.create_index(name, "users", _CREATED, sqlite_where=None if where is None else sa.text(where))


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index(_TRIGRAMS, table_name="users")
    for name in reversed(_INDEXES):
        op.drop_index(name, table_name="users")
    op.drop_column("users", "search_text")


def _fold() -> None:
    """Give every account that has none its text; whatever is written from now on brings its own."""
    missing = (
        sa.select(_users.c.id, _users.c.email, _users.c.full_name)
        .where(_users.c.search_text == "")
        .order_by(_users.c.id)
        .limit(_BATCH)
    )
    batch = missing
    while rows := op.get_bind().execute(batch).all():
        texts = {row.id: unicodedata.normalize("NFC", f"{row.email}\n{row.full_name}").casefold() for row in rows}
        update = sa.update(_users).where(_users.c.id.in_(texts), _users.c.search_text == "")
        op.get_bind().execute(update.values(search_text=sa.case(texts, value=_users.c.id)))
        # Not from the start again, or it would take the square of their number.
        batch = missing.where(_users.c.id > rows[-1].id)
