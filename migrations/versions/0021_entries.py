"""Folders, versions and trash: `files` becomes sealed objects and the entries of each person's tree.

Within one person's files, namesakes get a number: `name (2).ext`. So do `.` and `..`, which are no names any more. An
event tells each person's count.
"""

import unicodedata
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby, islice
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import DBAPIError

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None
loses = ("erasures",)
moved = {"files": "objects"}

_BATCH = 5_000
_READY = sa.text("state = 'ready'")
_UNSETTLED = sa.text("state <> 'ready'")
_HAS_KEY = sa.text("encrypted_data_key IS NOT NULL")
_IS_TOP = "kind IN ('root', 'trash')"
# Sealed digests of files that later versions wrote; this revision's predecessor cannot open them.
_SECOND_FORM_BYTES = 68


def _on_postgresql() -> bool:
    return bool(op.get_bind().dialect.name == "postgresql")


def _text(length: int | None = None) -> sa.types.TypeEngine[str]:
    collation = "C" if _on_postgresql() else None
    return sa.Text(collation=collation) if length is None else sa.String(length, collation=collation)


def upgrade() -> None:
    if _on_postgresql():
        _create_extension()
        op.execute("LOCK TABLE files")
    _take_memory()
    with op.batch_alter_table("storage_accounts") as accounts:
        accounts.add_column(sa.Column("folder_count", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
        accounts.create_check_constraint(op.f("ck_storage_accounts_folders_not_negative"), "folder_count >= 0")
    _create_objects()
    _create_erasures()
    _create_entries()
    op.execute(
        "INSERT INTO objects (id, entry_id, owner_id, version_no, content_type, state, size_bytes, object_size_bytes,"
        " reserved_bytes, object_id, header, encrypted_data_key, key_provider, key_ref, wrapped_at, sealed_digest,"
        " lease_until, modified_at, created_at)"
        " SELECT id, id, owner_id, CASE WHEN state = 'ready' THEN 1 ELSE 0 END, content_type, state, size_bytes,"
        " object_size_bytes, reserved_bytes, object_id, header, encrypted_data_key, key_provider, key_ref, wrapped_at,"
        " sealed_digest, lease_until, created_at, created_at FROM files"
    )
    _make_tops()
    numbered = _number_namesakes()
    op.execute(
        "INSERT INTO entries (id, owner_id, parent_id, kind, name, name_folded, content_type, size_bytes, current_id,"
        " last_version_no, version, modified_at, created_at, updated_at, hidden)"
        " SELECT f.id, f.owner_id, t.id, 'file', COALESCE(n.name, f.name), COALESCE(n.name_folded, f.name_folded),"
        " f.content_type, f.size_bytes, f.id, 1, f.version, f.created_at, f.created_at, f.updated_at, false"
        " FROM files AS f JOIN entries AS t ON t.owner_id = f.owner_id AND t.kind = 'root'"
        " LEFT JOIN numbered_files AS n ON n.id = f.id WHERE f.state = 'ready'"
    )
    numbered.drop(op.get_bind())
    if _on_postgresql():
        _add_keys()
    _index_objects()
    _index_entries()
    op.drop_table("files")
    _stop_older_versions()
    if _on_postgresql():
        # Without statistics the first lists would read whole tables, until autovacuum comes by.
        op.execute("ANALYZE objects, entries")


def downgrade() -> None:
    bind = op.get_bind()
    newer = bind.scalar(
        sa.text(
            "SELECT EXISTS (SELECT 1 FROM entries WHERE kind = 'folder' OR hidden)"
            " OR EXISTS (SELECT 1 FROM objects WHERE state = 'ready'"
            " AND (superseded_at IS NOT NULL OR length(sealed_digest) = :bytes))"
        ),
        {"bytes": _SECOND_FORM_BYTES},
    )
    if newer:
        raise SystemExit(
            "Nothing was changed: there are folders, versions, trash, or files written since the upgrade, which the"
            " older version cannot read. Restore the backup from before the upgrade instead."
        )
    op.drop_table("files")
    _create_files()
    op.execute(
        "INSERT INTO files (id, owner_id, name, name_folded, content_type, state, version, size_bytes,"
        " object_size_bytes, reserved_bytes, object_id, header, encrypted_data_key, key_provider, key_ref, wrapped_at,"
        " sealed_digest, lease_until, created_at, updated_at)"
        " SELECT o.id, o.owner_id, COALESCE(e.name, ''), COALESCE(e.name_folded, ''), o.content_type, o.state,"
        " COALESCE(e.version, 1), o.size_bytes, o.object_size_bytes, o.reserved_bytes, o.object_id, o.header,"
        " o.encrypted_data_key, o.key_provider, o.key_ref, o.wrapped_at, o.sealed_digest, o.lease_until, o.created_at,"
        " COALESCE(e.updated_at, o.created_at)"
        " FROM objects AS o LEFT JOIN entries AS e ON e.current_id = o.id"
    )
    _index_files()
    op.drop_table("entries")
    op.drop_table("erasures")
    op.drop_table("objects")
    with op.batch_alter_table("storage_accounts") as accounts:
        accounts.drop_constraint(op.f("ck_storage_accounts_folders_not_negative"), type_="check")
        accounts.drop_column("folder_count")


def _take_memory() -> None:
    """Let sorts of this transaction stay in memory: of a million rows they take some 100 MB."""
    if _on_postgresql():
        for name, size in (("maintenance_work_mem", "256MB"), ("work_mem", "64MB")):
            op.execute(
                f"SELECT set_config('{name}', '{size}', true)"
                f" WHERE pg_size_bytes(current_setting('{name}')) < pg_size_bytes('{size}')"
            )
    else:
        # In KiB; until this connection closes.
        op.execute("PRAGMA cache_size = -262144")


def _stop_older_versions() -> None:
    """Leave what an older version looks at when it starts: a file under a key that is missing, whose ref says why."""
    files = op.create_table(
        "files",
        sa.Column("key_provider", sa.String(16), nullable=False),
        sa.Column("key_ref", sa.String(255), nullable=False),
        sa.Column("encrypted_data_key", sa.Text(), nullable=True),
        sa.Column("state", sa.String(16), nullable=False),
    )
    why = "none: this database was upgraded to folders and versions (0021), so start that version or a later one"
    op.bulk_insert(files, [{"key_provider": "local", "key_ref": why, "encrypted_data_key": "", "state": "ready"}])


def _create_extension() -> None:
    try:
        op.execute("CREATE EXTENSION IF NOT EXISTS btree_gin")
    except DBAPIError as exc:
        raise SystemExit(
            "The search in names needs PostgreSQL's extension btree_gin, and this role could not create it"
            f" ({type(exc.orig).__name__}). Have an administrator install PostgreSQL's contrib modules where they are"
            " missing and run in this database, once: CREATE EXTENSION btree_gin;  Then run this migration again."
        ) from exc


def _key_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("object_id", sa.Uuid(), nullable=False),
        sa.Column("header", sa.LargeBinary(96), nullable=False),
        sa.Column("encrypted_data_key", sa.Text(), nullable=True),
        sa.Column("key_provider", sa.String(16), nullable=False),
        sa.Column("key_ref", sa.String(255), nullable=False),
        sa.Column("wrapped_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sealed_digest", sa.LargeBinary(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
    ]


def _size_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("object_size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("reserved_bytes", sa.BigInteger(), nullable=False),
    ]


def _keys(*keys: sa.Constraint) -> Sequence[sa.Constraint]:
    """Return keys for a new table. On PostgreSQL `_add_keys` makes them after the rows, at a tenth of the time; SQLite
    cannot add them."""
    return () if _on_postgresql() else keys


def _add_keys() -> None:
    for table in ("objects", "entries"):
        op.create_primary_key(op.f(f"pk_{table}"), table, ["id"])
    op.create_unique_constraint(op.f("uq_objects_object_id"), "objects", ["object_id"])
    for column, table in (("parent_id", "entries"), ("current_id", "objects")):
        name = op.f(f"fk_entries_{column}_{table}")
        op.create_foreign_key(name, "entries", table, [column], ["id"], ondelete="RESTRICT")


def _create_objects() -> None:
    op.create_table(
        "objects",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("entry_id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("version_no", sa.Integer(), nullable=False),
        sa.Column("content_type", sa.String(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        *_size_columns(),
        *_key_columns(),
        sa.Column("modified_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('pending', 'ready', 'shredded')", name=op.f("ck_objects_state")),
        sa.CheckConstraint(
            "(state = 'shredded') = (encrypted_data_key IS NULL)", name=op.f("ck_objects_shredded_has_no_key")
        ),
        sa.CheckConstraint(
            "state <> 'ready' OR (size_bytes IS NOT NULL AND object_size_bytes IS NOT NULL"
            " AND sealed_digest IS NOT NULL AND version_no >= 1)",
            name=op.f("ck_objects_ready_is_complete"),
        ),
        *_keys(
            sa.PrimaryKeyConstraint("id", name=op.f("pk_objects")),
            sa.UniqueConstraint("object_id", name=op.f("uq_objects_object_id")),
        ),
    )


def _index_objects() -> None:
    _index("uq_objects_version", "objects", "entry_id", "version_no", where=_READY, unique=True)
    _index("ix_objects_owner_id_id", "objects", "owner_id", "id")
    _index("ix_objects_superseded", "objects", "owner_id", where=sa.text("superseded_at IS NOT NULL"))
    _index("ix_objects_unsettled", "objects", "state", "lease_until", where=_UNSETTLED)
    _index("ix_objects_wrapped_by", "objects", "key_provider", "key_ref", "id", where=_HAS_KEY)


def _create_erasures() -> None:
    op.create_table(
        "erasures",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("entry_id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("version_no", sa.Integer(), nullable=False),
        sa.Column("object_id", sa.Uuid(), nullable=False),
        sa.Column("commitment", sa.LargeBinary(32), nullable=False),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasures")),
    )
    _index("ix_erasures_entry_id", "erasures", "entry_id")


def _create_entries() -> None:
    op.create_table(
        "entries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("name_folded", _text(), nullable=False),
        sa.Column("content_type", _text(255), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("current_id", sa.Uuid(), nullable=True),
        sa.Column("last_version_no", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("modified_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("trashed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("restore_parent_id", sa.Uuid(), nullable=True),
        sa.Column("restore_path", sa.JSON(), nullable=True),
        sa.Column("hidden", sa.Boolean(), nullable=False),
        sa.Column("work", sa.String(8), nullable=True),
        sa.CheckConstraint("kind IN ('folder', 'file', 'root', 'trash')", name=op.f("ck_entries_kind")),
        sa.CheckConstraint(f"({_IS_TOP}) = (parent_id IS NULL)", name=op.f("ck_entries_only_tops_have_no_parent")),
        sa.CheckConstraint(
            "(kind = 'file') = (current_id IS NOT NULL) AND (kind = 'file') = (content_type IS NOT NULL)"
            " AND (kind = 'file') = (size_bytes IS NOT NULL)",
            name=op.f("ck_entries_only_files_have_content"),
        ),
        sa.CheckConstraint("work IN ('hide', 'unhide', 'purge')", name=op.f("ck_entries_work")),
        *_keys(
            sa.PrimaryKeyConstraint("id", name=op.f("pk_entries")),
            sa.ForeignKeyConstraint(
                ["parent_id"], ["entries.id"], name=op.f("fk_entries_parent_id_entries"), ondelete="RESTRICT"
            ),
            sa.ForeignKeyConstraint(
                ["current_id"], ["objects.id"], name=op.f("fk_entries_current_id_objects"), ondelete="RESTRICT"
            ),
        ),
    )


def _index_entries() -> None:
    in_folder = sa.text("trashed_at IS NULL")
    listed = sa.text(f"kind = 'file' AND {'NOT hidden' if _on_postgresql() else 'hidden = 0'}")
    hidden = sa.text("hidden" if _on_postgresql() else "hidden = 1")
    _index("uq_entries_name", "entries", "parent_id", "name_folded", where=in_folder, unique=True)
    _index("uq_entries_top", "entries", "owner_id", "kind", where=sa.text(_IS_TOP), unique=True)
    _index("ix_entries_parent_id", "entries", "parent_id")
    _index("ix_entries_current_id", "entries", "current_id")
    _index("ix_entries_work", "entries", "work", where=sa.text("work IS NOT NULL"))
    _index("ix_entries_trashed", "entries", "owner_id", "trashed_at", "id", where=sa.text("trashed_at IS NOT NULL"))
    _index("ix_entries_hidden", "entries", "owner_id", "created_at", "id", "size_bytes", where=hidden)
    for name, column in (("name", "name_folded"), ("created_at", "created_at"), ("size", "size_bytes")):
        _index(f"ix_entries_in_folder_by_{name}", "entries", "parent_id", "kind", column, "id", where=in_folder)
    _index("ix_entries_files_by_name", "entries", "owner_id", "name_folded", "id", "parent_id", where=listed)
    for name, column in (("created_at", "created_at"), ("size", "size_bytes"), ("content_type", "content_type")):
        columns = ("owner_id", column, "id", "name_folded", "parent_id")
        _index(f"ix_entries_files_by_{name}", "entries", *columns, where=listed)
    if _on_postgresql():
        op.create_index(
            "ix_entries_name_trigrams",
            "entries",
            ["owner_id", "name_folded"],
            postgresql_using="gin",
            postgresql_ops={"name_folded": "gin_trgm_ops"},
            postgresql_where=listed,
        )


def _index(name: str, table: str, *columns: str, where: sa.TextClause | None = None, unique: bool = False) -> None:
    op.create_index(name, table, list(columns), unique=unique, postgresql_where=where, sqlite_where=where)


_entries = sa.table(
    "entries",
    sa.column("id", sa.Uuid()),
    sa.column("owner_id", sa.Uuid()),
    sa.column("parent_id", sa.Uuid()),
    sa.column("kind"),
    sa.column("name"),
    sa.column("name_folded"),
    sa.column("last_version_no"),
    sa.column("version"),
    sa.column("modified_at", sa.DateTime(timezone=True)),
    sa.column("created_at", sa.DateTime(timezone=True)),
    sa.column("updated_at", sa.DateTime(timezone=True)),
    sa.column("hidden", sa.Boolean()),
)


def _make_tops() -> None:
    """Make a root and a trash for each account."""
    users = sa.table("users", sa.column("id", sa.Uuid()), sa.column("created_at", sa.DateTime(timezone=True)))
    bind = op.get_bind()
    for batch in _batches(bind.execute(sa.select(users.c.id, users.c.created_at)).all()):
        bind.execute(
            sa.insert(_entries),
            [
                {
                    "id": uuid.uuid4(),
                    "owner_id": row.id,
                    "kind": kind,
                    "name": "",
                    "name_folded": "",
                    "last_version_no": 0,
                    "version": 1,
                    "modified_at": row.created_at,
                    "created_at": row.created_at,
                    "updated_at": row.created_at,
                    "hidden": False,
                }
                for row in batch
                for kind in ("root", "trash")
            ],
        )


_files = sa.table(
    "files",
    sa.column("id", sa.Uuid()),
    sa.column("owner_id", sa.Uuid()),
    sa.column("name"),
    sa.column("name_folded"),
    sa.column("state"),
    sa.column("created_at"),
)
_IS_FILE = _files.c.state == "ready"
_RANKED = (
    sa.select(
        _files.c.id,
        _files.c.owner_id,
        _files.c.name,
        _files.c.name_folded,
        sa.func.row_number()
        .over(partition_by=(_files.c.owner_id, _files.c.name_folded), order_by=(_files.c.created_at, _files.c.id))
        .label("place"),
    )
    .where(_IS_FILE)
    .subquery()
)
_NAMESAKES = (
    sa.select(_RANKED.c.id, _RANKED.c.owner_id, _RANKED.c.name, _RANKED.c.name_folded)
    .where(sa.or_(_RANKED.c.place > 1, _RANKED.c.name.in_([".", ".."])))
    .order_by(_RANKED.c.owner_id, _RANKED.c.name_folded, _RANKED.c.place)
)


def _number_namesakes() -> sa.Table:
    """Return a table with other names, by a number, for all but the oldest of equal names, made set by set."""
    bind = op.get_bind()
    numbered = sa.Table(
        "numbered_files",
        sa.MetaData(),
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("owner_id", sa.Uuid()),
        sa.Column("name", sa.String(255)),
        sa.Column("name_folded", _text()),
        sa.Column("round", sa.Integer()),
        sa.Index("ix_numbered_files", "owner_id", "name_folded"),
        prefixes=["TEMPORARY"],
    )
    numbered.create(bind)
    # A number that is taken, or given twice, waits for the next round's.
    other = numbered.alias()
    is_before = sa.or_(other.c.round < numbered.c.round, other.c.id < numbered.c.id)
    waits = sa.select(numbered.c.id).where(
        numbered.c.round == sa.bindparam("round"),
        sa.or_(
            sa.exists().where(_same_name(_files, numbered), _IS_FILE),
            sa.exists().where(_same_name(other, numbered), is_before),
        ),
    )
    waiting: Sequence[Any] = bind.execute(_NAMESAKES).all()
    counts = Counter(row.owner_id for row in waiting)
    number = 0
    while waiting:
        number += 1
        for batch in _batches(_numbered_rows(waiting, number)):
            bind.execute(sa.insert(numbered), batch)
        ids = set(bind.scalars(waits, {"round": number}))
        for some in _batches(ids):
            bind.execute(sa.delete(numbered).where(numbered.c.id.in_(some)))
        waiting = [row for row in waiting if row.id in ids]
    _tell(counts)
    return numbered


def _same_name(one: sa.FromClause, other: sa.FromClause) -> sa.ColumnElement[bool]:
    return sa.and_(one.c.owner_id == other.c.owner_id, one.c.name_folded == other.c.name_folded)


def _numbered_rows(waiting: Sequence[Any], number_of_round: int) -> Iterator[dict[str, Any]]:
    """Yield rows of `numbered_files`: the first of equal names gets 2, in later rounds 3, 5, 9 …"""
    for _, namesakes in groupby(waiting, key=lambda row: (row.owner_id, row.name_folded)):
        for number, row in enumerate(namesakes, 1 + 2 ** (number_of_round - 1)):
            name = _numbered(row.name, number)
            facts = {"id": row.id, "owner_id": row.owner_id, "round": number_of_round}
            yield {**facts, "name": name, "name_folded": _fold(name)}


def _tell(counts: Mapping[uuid.UUID, int]) -> None:
    """Write an event for each person whose files got other names."""
    events = sa.table(
        "audit_events",
        sa.column("id", sa.Uuid()),
        sa.column("at", sa.DateTime(timezone=True)),
        sa.column("action"),
        sa.column("target_type"),
        sa.column("target_id", sa.Uuid()),
        sa.column("outcome"),
        sa.column("details", sa.JSON()),
    )
    now = datetime.now(UTC) if _on_postgresql() else datetime.now(UTC).replace(tzinfo=None)
    for batch in _batches(counts.items()):
        op.get_bind().execute(
            sa.insert(events),
            [
                {
                    "id": uuid.uuid4(),
                    "at": now,
                    "action": "files.renamed",
                    "target_type": "user",
                    "target_id": owner_id,
                    "outcome": "ok",
                    "details": {"files": count},
                }
                for owner_id, count in batch
            ],
        )


def _batches(rows: Iterable[Any]) -> Iterator[list[Any]]:
    left = iter(rows)
    while batch := list(islice(left, _BATCH)):
        yield batch


def _numbered(name: str, number: int) -> str:
    """As vault.files.placing did when this was written."""
    dot = name.rfind(".")
    stem, extension = (name[:dot], name[dot:]) if dot > 0 and len(name) - dot <= 32 else (name, "")
    ending = f" ({number}){extension}"
    return stem[: 255 - len(ending)] + ending


_WIDTHS = {
    code: int(unicodedata.decomposition(chr(code)).split()[1], 16)
    for code in (0x3000, *range(0xFF01, 0xFFEF))
    if unicodedata.decomposition(chr(code)).startswith(("<wide>", "<narrow>"))
}


def _fold(text: str) -> str:
    """As vault.core.text did when this was written."""
    folded = unicodedata.normalize("NFC", text.translate(_WIDTHS)).casefold()
    return unicodedata.normalize("NFC", folded.replace("i\u0307", "i").replace("\u0131", "i"))


def _create_files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("name_folded", _text(), nullable=False),
        sa.Column("content_type", _text(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        *_size_columns(),
        *_key_columns(),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("state IN ('pending', 'ready', 'shredded')", name=op.f("ck_files_state")),
        sa.CheckConstraint(
            "(state = 'shredded') = (encrypted_data_key IS NULL)", name=op.f("ck_files_shredded_has_no_key")
        ),
        sa.CheckConstraint(
            "state <> 'ready' OR (size_bytes IS NOT NULL AND object_size_bytes IS NOT NULL"
            " AND sealed_digest IS NOT NULL)",
            name=op.f("ck_files_ready_is_complete"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
        sa.UniqueConstraint("object_id", name=op.f("uq_files_object_id")),
    )


def _index_files() -> None:
    _index("ix_files_owner_id_id", "files", "owner_id", "id")
    _index("ix_files_unsettled", "files", "state", "lease_until", where=_UNSETTLED)
    _index("ix_files_wrapped_by", "files", "key_provider", "key_ref", "id", where=_HAS_KEY)
    _index("ix_files_ready_by_name", "files", "owner_id", "name_folded", "id", where=_READY)
    for name, column in (("created_at", "created_at"), ("size", "size_bytes"), ("content_type", "content_type")):
        _index(f"ix_files_ready_by_{name}", "files", "owner_id", column, "id", "name_folded", where=_READY)
    if _on_postgresql():
        op.create_index(
            "ix_files_name_trigrams",
            "files",
            ["name_folded"],
            postgresql_using="gin",
            postgresql_ops={"name_folded": "gin_trgm_ops"},
            postgresql_where=_READY,
        )
