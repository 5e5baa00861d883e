"""Folds stored names again: widths and the dots of Turkish letters do not matter any more.

Texts are folded here as vault.core.text did when this was written. Rows are changed in short transactions while people
work on PostgreSQL, and what an interrupted attempt has done is not done again.
"""

import unicodedata
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

# Five parameters each; old versions of SQLite take 999.
_BATCH = 190
_files = sa.table("files", sa.column("id"), sa.column("name"), sa.column("name_folded"))
_users = sa.table("users", sa.column("id"), sa.column("email"), sa.column("full_name"), sa.column("search_text"))
_WIDTHS = {
    code: int(unicodedata.decomposition(chr(code)).split()[1], 16)
    for code in (0x3000, *range(0xFF01, 0xFFEF))
    if unicodedata.decomposition(chr(code)).startswith(("<wide>", "<narrow>"))
}


def upgrade() -> None:
    _fold_all(_fold)


def downgrade() -> None:
    _fold_all(_fold_before)


def _fold_all(fold: Callable[[str], str]) -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    with op.get_context().autocommit_block() if on_postgresql else nullcontext():
        _refold(_files, _files.c.name_folded, (_files.c.name,), lambda row: fold(row.name))
        columns = (_users.c.email, _users.c.full_name)
        _refold(_users, _users.c.search_text, columns, lambda row: fold(f"{row.email}\n{row.full_name}"))


def _refold(
    table: sa.TableClause, folded: sa.ColumnClause[Any], columns: tuple[Any, ...], fold: Callable[[Any], str]
) -> None:
    every = sa.select(table.c.id, folded.label("folded"), *columns).order_by(table.c.id).limit(_BATCH)
    batch = every
    while rows := op.get_bind().execute(batch).all():
        changed = {row.id: new for row in rows if (new := fold(row)) != row.folded}
        if changed:
            # Beside a client that renames the file, that name counts.
            as_read = sa.case({row.id: row.folded for row in rows if row.id in changed}, value=table.c.id)
            update = sa.update(table).where(table.c.id.in_(changed), folded == as_read)
            op.get_bind().execute(update.values({folded: sa.case(changed, value=table.c.id)}))
        # Not from the start again, or it would take the square of their number.
        batch = every.where(table.c.id > rows[-1].id)


def _fold_before(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _fold(text: str) -> str:
    folded = unicodedata.normalize("NFC", text.translate(_WIDTHS)).casefold()
    return unicodedata.normalize("NFC", folded.replace("i\u0307", "i").replace("\u0131", "i"))
