"""The table of entries: the folders and files of each person's tree, with its two tops."""

import enum
import uuid
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from vault.core.db import Base, UuidKey

# Compared by code points everywhere, as in SQLite and Python.
_FOLDED = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_MEDIA_TYPE = sa.String(255).with_variant(sa.String(255, collation="C"), "postgresql")
_IS_TOP = "kind IN ('root', 'trash')"
_IN_FOLDER = "trashed_at IS NULL"
_LISTED = "kind = 'file' AND NOT hidden"


def _partial(name: str, *columns: str, where: str, unique: bool = False) -> sa.Index:
    # SQLite has no booleans, and matches a condition as it is spelled.
    on_sqlite = where.replace("NOT hidden", "hidden = 0").replace("hidden_only", "hidden = 1")
    return sa.Index(
        name,
        *columns,
        unique=unique,
        postgresql_where=sa.text(where.replace("hidden_only", "hidden")),
        sqlite_where=sa.text(on_sqlite),
    )


class EntryKind(enum.StrEnum):
    """`root` holds a person's folders and files, `trash` what they threw away."""

    FOLDER = "folder"
    FILE = "file"
    ROOT = "root"
    TRASH = "trash"


class Work(enum.StrEnum):
    """What a task still owes an entry with very many below it."""

    HIDE = "hide"
    UNHIDE = "unhide"
    PURGE = "purge"


class Entry(UuidKey, Base):
    """One folder or file. A file's API id is this id; its content is the object `current_id`.

    `version` counts changes of the facts, `last_version_no` contents. The trash holds the tops of what was thrown away:
    `trashed_at` marks them, `restore_parent_id` and `restore_path` (names from the root) tell where they were. `hidden`
    keeps them and all below them out of flat lists, and decides nothing else.
    """

    __tablename__ = "entries"
    __table_args__ = (
        sa.CheckConstraint("kind IN ('folder', 'file', 'root', 'trash')", name="kind"),
        sa.CheckConstraint(f"({_IS_TOP}) = (parent_id IS NULL)", name="only_tops_have_no_parent"),
        sa.CheckConstraint(
            "(kind = 'file') = (current_id IS NOT NULL) AND (kind = 'file') = (content_type IS NOT NULL)"
            " AND (kind = 'file') = (size_bytes IS NOT NULL)",
            name="only_files_have_content",
        ),
        sa.CheckConstraint("work IN ('hide', 'unhide', 'purge')", name="work"),
        _partial("uq_entries_name", "parent_id", "name_folded", where=_IN_FOLDER, unique=True),
        _partial("uq_entries_top", "owner_id", "kind", where=_IS_TOP, unique=True),
        # Full, for the foreign keys: without it a deletion reads the whole table.
        sa.Index("ix_entries_parent_id", "parent_id"),
        sa.Index("ix_entries_current_id", "current_id"),
        _partial("ix_entries_work", "work", where="work IS NOT NULL"),
        _partial("ix_entries_trashed", "owner_id", "trashed_at", "id", where="trashed_at IS NOT NULL"),
        _partial("ix_entries_hidden", "owner_id", "created_at", "id", "size_bytes", where="hidden_only"),
        # A folder's content, folders first, by each sort.
        *(
            _partial(f"ix_entries_in_folder_by_{name}", "parent_id", "kind", column, "id", where=_IN_FOLDER)
            for name, column in (("name", "name_folded"), ("created_at", "created_at"), ("size", "size_bytes"))
        ),
        # All files of an owner, by each sort; with names and folders, so that a search need not read the rows.
        _partial("ix_entries_files_by_name", "owner_id", "name_folded", "id", "parent_id", where=_LISTED),
        *(
            _partial(f"ix_entries_files_by_{name}", "owner_id", column, "id", "name_folded", "parent_id", where=_LISTED)
            for name, column in (("created_at", "created_at"), ("size", "size_bytes"), ("content_type", "content_type"))
        ),
        sa.Index(
            "ix_entries_name_trigrams",
            "owner_id",
            "name_folded",
            postgresql_using="gin",
            postgresql_ops={"name_folded": "gin_trgm_ops"},
            postgresql_where=sa.text(_LISTED),
        ).ddl_if(dialect="postgresql"),
    )

    owner_id: Mapped[uuid.UUID]
    parent_id: Mapped[uuid.UUID | None] = mapped_column(sa.ForeignKey("entries.id", ondelete="RESTRICT"))
    kind: Mapped[str] = mapped_column(sa.String(8))
    name: Mapped[str] = mapped_column(sa.String(255))
    name_folded: Mapped[str] = mapped_column(_FOLDED)
    content_type: Mapped[str | None] = mapped_column(_MEDIA_TYPE)
    size_bytes: Mapped[int | None]
    current_id: Mapped[uuid.UUID | None] = mapped_column(sa.ForeignKey("objects.id", ondelete="RESTRICT"))
    last_version_no: Mapped[int] = mapped_column(sa.Integer, default=0)
    version: Mapped[int] = mapped_column(sa.Integer, default=1)
    modified_at: Mapped[datetime]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    trashed_at: Mapped[datetime | None]
    restore_parent_id: Mapped[uuid.UUID | None]
    restore_path: Mapped[list[Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    hidden: Mapped[bool] = mapped_column(default=False)
    work: Mapped[str | None] = mapped_column(sa.String(8))
