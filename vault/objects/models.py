"""Tables of sealed objects, erasures, owners' storage, retired keys, and the id of the database and its store."""

import enum
import uuid
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from vault.core.db import Base, UuidKey

_READY = sa.text("state = 'ready'")
_UNSETTLED = sa.text("state <> 'ready'")
_HAS_KEY = sa.text("encrypted_data_key IS NOT NULL")
_SUPERSEDED = sa.text("superseded_at IS NOT NULL")


class ObjectState(enum.StrEnum):
    PENDING = "pending"
    READY = "ready"
    SHREDDED = "shredded"


class SealedObject(UuidKey, Base):
    """One sealed object: a version of a file. Its key columns are NULL exactly when it is shredded; then the object is
    unreadable.

    Neither `entry_id` nor `owner_id` has a foreign key: rows outlive a deleted file and account until their objects are
    gone. `lease_until` (database clock) protects a pending row, and the object of a row that was shredded during its
    upload. A row that is `parked` belongs to a resumable upload, which ends it; it has no lease while it is pending. A
    pending row gets its file and `version_no` when it is published; `superseded_at` is when the next version was.
    """

    __tablename__ = "objects"
    __table_args__ = (
        sa.CheckConstraint("state IN ('pending', 'ready', 'shredded')", name="state"),
        sa.CheckConstraint("(state = 'shredded') = (encrypted_data_key IS NULL)", name="shredded_has_no_key"),
        sa.CheckConstraint(
            "state <> 'ready' OR (size_bytes IS NOT NULL AND object_size_bytes IS NOT NULL"
            " AND sealed_digest IS NOT NULL AND version_no >= 1)",
            name="ready_is_complete",
        ),
        # The versions of a file.
        sa.Index(
            "uq_objects_version", "entry_id", "version_no", unique=True, postgresql_where=_READY, sqlite_where=_READY
        ),
        # All rows of an owner, in locking order.
        sa.Index("ix_objects_owner_id_id", "owner_id", "id"),
        sa.Index("ix_objects_superseded", "owner_id", postgresql_where=_SUPERSEDED, sqlite_where=_SUPERSEDED),
        sa.Index("ix_objects_unsettled", "state", "lease_until", postgresql_where=_UNSETTLED, sqlite_where=_UNSETTLED),
        # Refs in use, and each one's rows in the order of rewrapping.
        sa.Index(
            "ix_objects_wrapped_by",
            "key_provider",
            "key_ref",
            "id",
            postgresql_where=_HAS_KEY,
            sqlite_where=_HAS_KEY,
        ),
    )

    entry_id: Mapped[uuid.UUID]
    owner_id: Mapped[uuid.UUID]
    version_no: Mapped[int] = mapped_column(sa.Integer, default=0)
    content_type: Mapped[str] = mapped_column(sa.String(255))
    state: Mapped[str] = mapped_column(sa.String(16), default=ObjectState.PENDING)
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
    parked: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    modified_at: Mapped[datetime]
    created_at: Mapped[datetime]
    superseded_at: Mapped[datetime | None]


class Erasure(UuidKey, Base):
    """A version of a file that was made unreadable: written by `shred`, never changed. It outlives rows and events."""

    __tablename__ = "erasures"
    __table_args__ = (sa.Index("ix_erasures_entry_id", "entry_id"),)

    entry_id: Mapped[uuid.UUID]
    owner_id: Mapped[uuid.UUID]
    version_no: Mapped[int] = mapped_column(sa.Integer)
    object_id: Mapped[uuid.UUID]
    commitment: Mapped[bytes] = mapped_column(sa.LargeBinary(32))
    erased_at: Mapped[datetime]


class StorageAccount(Base):
    """Quota and counters of one owner: the one row that uploads lock. It has no foreign key, as objects have none.

    Without `quota_bytes` the installation's default holds. `object_count` counts ready objects: current
    contents, versions and those in the trash. After NULL, the next upload counts them again. `folder_count` counts
    folders, wherever they are.
    """

    __tablename__ = "storage_accounts"
    __table_args__ = (
        sa.CheckConstraint(
            "quota_bytes >= 0 AND used_bytes >= 0 AND reserved_bytes >= 0 AND object_count >= 0", name="not_negative"
        ),
        sa.CheckConstraint("folder_count >= 0", name="folders_not_negative"),
    )

    owner_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    quota_bytes: Mapped[int | None]
    used_bytes: Mapped[int] = mapped_column(default=0)
    reserved_bytes: Mapped[int] = mapped_column(default=0)
    object_count: Mapped[int | None] = mapped_column(default=0)
    folder_count: Mapped[int] = mapped_column(default=0, server_default=sa.text("0"))
    may_store: Mapped[bool] = mapped_column(default=True)


# Versions from before 0021 look here when they start, and find a key that does not exist; its ref tells operators why.
sa.Table(
    "files",
    Base.metadata,
    sa.Column("key_provider", sa.String(16), nullable=False),
    sa.Column("key_ref", sa.String(255), nullable=False),
    sa.Column("encrypted_data_key", sa.Text()),
    sa.Column("state", sa.String(16), nullable=False),
)


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
