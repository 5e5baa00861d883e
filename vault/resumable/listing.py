"""Unfinished uploads: those of an account as a list, and all as a number."""

import uuid
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from vault.core.paging import Key, Page, in_order, page
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.resumable.metadata import Metadata
from vault.resumable.models import ResumableUpload as Upload
from vault.resumable.models import UploadState

_UNFINISHED = Upload.state.in_([UploadState.OPEN, UploadState.FINISHING])


@dataclass(frozen=True, slots=True, repr=False)
class UploadInfo:
    """An unfinished upload as shown to its owner; `length` is None if it was not told yet."""

    id: uuid.UUID
    filename: str
    content_type: str
    folder_id: uuid.UUID | None
    on_conflict: str
    length: int | None
    offset: int
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Parked:
    """The number of all unfinished uploads, and the bytes that they have received."""

    uploads: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Unfinished:
    core: Core

    def list(self, principal: Principal, *, limit: int, after: Key | None) -> Page[UploadInfo]:
        """List the principal's unfinished uploads, the newest first."""
        query = sa.select(Upload).where(Upload.owner_id == principal.account_id, _UNFINISHED)
        with self.core.sessions.begin() as session:
            rows = session.scalars(in_order(query, [Upload.created_at, Upload.id], after).limit(limit + 1)).all()
        return page(rows, limit, lambda row: (row.created_at, row.id), _info_of)

    def count(self) -> Parked:
        """Count all unfinished uploads."""
        with self.core.sessions.begin() as session:
            size = sa.cast(sa.func.coalesce(sa.func.sum(Upload.offset), 0), sa.BigInteger)
            return Parked(*session.execute(sa.select(sa.func.count(), size).where(_UNFINISHED)).one())


def _info_of(row: Upload) -> UploadInfo:
    said = Metadata.parse(row.metadata_header)
    return UploadInfo(
        id=row.id,
        filename=said.name,
        content_type=said.content_type,
        folder_id=row.folder_id,
        on_conflict=row.on_conflict,
        length=row.length,
        offset=row.offset,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )
