"""Tables of resumable uploads, of their parts that the store has, and of the pieces that wait to fill the next part."""

import enum
import uuid
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from vault.core.db import Base, UuidKey

# From its creation on, however often bytes come
LONGEST: Final = timedelta(days=7)


class UploadState(enum.StrEnum):
    """`finishing`: all bytes are in the store, and the object is being completed and published. `gone`: ended without
    a file, by its sender, by time or for a `reason`; the row stays for a day, to tell."""

    OPEN = "open"
    FINISHING = "finishing"
    DONE = "done"
    GONE = "gone"


class ResumableUpload(UuidKey, Base):
    """One upload over any number of requests. `offset` and `part_offset` count plaintext bytes.

    What is before `part_offset` is in parts of `part_size` bytes, what is between it and `offset` in pieces.
    `sealed_state` and `sealed_part_state` hold the running digests at the two; NULL before the first byte.
    `epoch` is the fence: only the writer that has the newest one may change the row. `lease_until` (database clock)
    tells that it lives, and `stop_epoch` asks the writer of that epoch to give way. `metadata` is the client's header
    as it came. After the end, `expires_at` is when the row goes.
    """

    __tablename__ = "uploads"
    __table_args__ = (
        sa.CheckConstraint("state IN ('open', 'finishing', 'done', 'gone')", name="state"),
        sa.CheckConstraint(
            '0 <= part_offset AND part_offset <= "offset" AND ("offset" <= length OR length IS NULL)', name="offsets"
        ),
        sa.Index("ix_uploads_owner_id_state", "owner_id", "state"),
        sa.Index("ix_uploads_state_expires_at", "state", "expires_at"),
        sa.Index("ix_uploads_folder_id", "folder_id"),
    )

    object_row: Mapped[uuid.UUID] = mapped_column(unique=True)
    owner_id: Mapped[uuid.UUID]
    state: Mapped[str] = mapped_column(sa.String(16), default=UploadState.OPEN)
    length: Mapped[int | None]
    offset: Mapped[int] = mapped_column(default=0)
    part_offset: Mapped[int] = mapped_column(default=0)
    part_size: Mapped[int]
    store_handle: Mapped[str | None] = mapped_column(sa.Text)
    next_piece: Mapped[int] = mapped_column(default=0)
    sealed_state: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
    sealed_part_state: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
    sealed_final: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
    metadata_header: Mapped[str] = mapped_column("metadata", sa.Text)
    folder_id: Mapped[uuid.UUID | None]
    on_conflict: Mapped[str] = mapped_column(sa.String(16))
    epoch: Mapped[int] = mapped_column(default=0)
    lease_until: Mapped[datetime | None]
    stop_epoch: Mapped[int | None]
    reason: Mapped[str | None] = mapped_column(sa.String(64))
    expires_at: Mapped[datetime]
    created_at: Mapped[datetime]


class UploadPart(Base):
    """A part that the store has; `number` counts from 1, `size` in bytes of ciphertext."""

    __tablename__ = "upload_parts"

    upload_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(sa.Integer, primary_key=True)
    etag: Mapped[str] = mapped_column(sa.Text)
    size: Mapped[int]


class UploadPiece(Base):
    """A sealed piece of plaintext in the store, of the writer with this epoch; `size` in bytes of plaintext."""

    __tablename__ = "upload_pieces"

    upload_id: Mapped[uuid.UUID] = mapped_column(sa.ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    epoch: Mapped[int]
    offset: Mapped[int]
    size: Mapped[int]
