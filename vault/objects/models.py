"""Tables of files, their owners' storage, retired keys, and the id that ties this database to its object store."""

import enum
import uuid
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from vault.core.db import Base, UuidKey

# Compared by code points everywhere, as in SQLite and Python.
_FOLDED = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_MEDIA_TYPE = sa.String(255).with_variant(sa.String(255, collation="C"), "postgresql")
_READY = sa.text("state = 'ready'")


def _ready_by(name: str, *columns: str) -> sa.Index:
    return sa.Index(f"ix_files_ready_by_{name}", "owner_id", *columns, postgresql_where=_READY, sqlite_where=_READY)


class FileState(enum.StrEnum):
    PENDING = "pending"
    READY = "ready"
    SHREDDED = "shredded"


class File(UuidKey, Base):
    """One stored file. Its key columns are NULL exactly when it is shredded; then the object is unreadable.

    `owner_id` has no foreign key: rows outlive a deleted account until their objects are gone. `lease_until` (database
    clock) protects a pending row, and the object of a row that was shredded during its upload.
    """

    __tablename__ = "files"
    __table_args__ = (
        sa.CheckConstraint("state IN ('pending', 'ready', 'shredded')", name="state"),
        sa.CheckConstraint("(state = 'shredded') = (encrypted_data_key IS NULL)", name="shredded_has_no_key"),
        sa.CheckConstraint(
            "state <> 'ready' OR (size_bytes IS NOT NULL AND object_size_bytes IS NOT NULL"
            " AND sealed_digest IS NOT NULL)",
            name="ready_is_complete",
        ),
        # All rows of an owner, in locking order.
        sa.Index("ix_files_owner_id_id", "owner_id", "id"),
        sa.Index(
            "ix_files_unsettled",
            "state",
            "lease_until",
            postgresql_where=sa.text("state <> 'ready'"),
            sqlite_where=sa.text("state <> 'ready'"),
        ),
        # Each sort in both orders; with the names, so that a search need not read the rows.
        _ready_by("name", "name_folded", "id"),
        _ready_by("created_at", "created_at", "id", "name_folded"),
        _ready_by("size", "size_bytes", "id", "name_folded"),
        _ready_by("content_type", "content_type", "id", "name_folded"),
        sa.Index(
            "ix_files_name_trigrams",
            "name_folded",
            postgresql_using="gin",
            postgresql_ops={"name_folded": "gin_trgm_ops"},
            postgresql_where=_READY,
        ).ddl_if(dialect="postgresql"),
        # Refs in use, and each one's rows in the order of rewrapping.
        sa.Index(
            "ix_files_wrapped_by",
            "key_provider",
            "key_ref",
            "id",
            postgresql_where=sa.text("encrypted_data_key IS NOT NULL"),
            sqlite_where=sa.text("encrypted_data_key IS NOT NULL"),
        ),
    )

    owner_id: Mapped[uuid.UUID]
    name: Mapped[str] = mapped_column(sa.String(255))
    name_folded: Mapped[str] = mapped_column(_FOLDED)
    content_type: Mapped[str] = mapped_column(_MEDIA_TYPE)
    state: Mapped[str] = mapped_column(sa.String(16), default=FileState.PENDING)
    version: Mapped[int] = mapped_column(sa.Integer, default=1)
    size_bytes: Mapped[int | None]
    object_size_bytes: Mapped[int | None]
    reserved_bytes: Mapped[int] = mapped_column(default=0)
    object_id: Mapped[uuid.UUID] = mapped_column(unique=True)
    header: Mapped[bytes] = mapped_column(sa.LargeBinary(96))
    encrypted_data_key: Mapped[str | None] = mapped_column(sa.Text)
    key_provider: Mapped[str] = mapped_column(sa.String(16))
    key_ref: Mapped[str] = mapped_column(sa.String(255))
    wrapped_at: Mapped[datetime]
    sealed_digest: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
    lease_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class StorageAccount(Base):
    """Quota and counters of one owner: the one row that uploads lock. It has no foreign key, as files have none.

    Without `quota_bytes` the installation's default holds. `object_count` counts ready files; after NULL, the next
    upload counts them again.
    """

    __tablename__ = "storage_accounts"
    __table_args__ = (
        sa.CheckConstraint(
            "quota_bytes >= 0 AND used_bytes >= 0 AND reserved_bytes >= 0 AND object_count >= 0", name="not_negative"
        ),
    )

    owner_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    quota_bytes: Mapped[int | None]
    used_bytes: Mapped[int] = mapped_column(default=0)
    reserved_bytes: Mapped[int] = mapped_column(default=0)
    object_count: Mapped[int | None] = mapped_column(default=0)
    may_store: Mapped[bool] = mapped_column(default=True)


class RetiredKey(Base):
    """A key_ref that neither wraps nor unwraps any more, even if it is still configured."""

    __tablename__ = "retired_keys"

    key_ref: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    retired_at: Mapped[datetime]


class Installation(Base):
    """At most one row. The object store has the same id as `vault-id`, the epoch as `vault-epoch`."""

    __tablename__ = "installation"
    __table_args__ = (sa.CheckConstraint("row_number = 1", name="one_row"),)

    row_number: Mapped[int] = mapped_column(sa.SmallInteger, primary_key=True, autoincrement=False, default=1)
    installation_id: Mapped[uuid.UUID]
    # Older versions, which run beside this during an update, insert neither.
    epoch: Mapped[int] = mapped_column(server_default=sa.text("0"))
    epoch_token: Mapped[uuid.UUID | None]
    created_at: Mapped[datetime]
