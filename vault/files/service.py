"""Files of a signed-in person: store, list, look at, read, delete."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import Action
from vault.audit.service import Actor, AuditService
from vault.encryption.errors import EncryptionError, HeaderInvalid
from vault.encryption.header import Header
from vault.errors import IntegrityFailed, NotFound
from vault.files.download import Download, Downloads
from vault.files.models import File, FileState
from vault.files.reading import StoredFile, ready_files
from vault.files.shredding import Shreddable, TransitionLost, shred
from vault.files.upload import Incoming, Uploads


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What a person may know about a file of his own.

    `sha256` is None where it was not asked for or has no key, `cipher` where the row's header is damaged.
    """

    id: uuid.UUID
    name: str
    content_type: str
    size: int
    created_at: datetime
    updated_at: datetime
    object_id: uuid.UUID
    version: int
    cipher: str | None
    key_provider: str
    sha256: bytes | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """`next_after` is the sort key of the last item if there are more."""

    items: Sequence[FileInfo]
    next_after: tuple[datetime, uuid.UUID] | None


class FileService:
    def __init__(
        self,
        sessions: sessionmaker[Session],
        *,
        uploads: Uploads,
        downloads: Downloads,
        remove_later: Callable[[uuid.UUID], None],
        audit: AuditService,
    ) -> None:
        self._sessions = sessions
        self._uploads = uploads
        self._downloads = downloads
        self._remove_later = remove_later
        self._audit = audit

    def upload(self, owner_id: uuid.UUID, incoming: Incoming, actor: Actor) -> FileInfo:
        """Store one file. Raises InputRefused, TooLarge, QuotaExceeded, TooManyUploads, UploadTruncated,
        DigestMismatch, UploadLost, and the errors of keys, store and database; then nothing is kept.
        """
        file_id, digest = self._uploads.upload(owner_id, incoming, actor)
        return _info(self._find(owner_id, file_id)[0], digest)

    def list(self, owner_id: uuid.UUID, *, limit: int, after: tuple[datetime, uuid.UUID] | None = None) -> Page:
        """Newest first, `limit` at most, beginning behind `after`. Needs neither store nor keys."""
        query = sa.select(File).where(File.owner_id == owner_id, File.state == FileState.READY)
        if after is not None:
            query = query.where(sa.tuple_(File.created_at, File.id) < sa.tuple_(*_bound(after)))
        query = query.order_by(File.created_at.desc(), File.id.desc()).limit(limit + 1)
        with self._sessions.begin() as session:
            rows = session.scalars(query).all()
        last = rows[limit - 1] if len(rows) > limit else None
        return Page([_info(row) for row in rows[:limit]], (last.created_at, last.id) if last else None)

    def get(self, owner_id: uuid.UUID, file_id: uuid.UUID, actor: Actor) -> FileInfo:
        """One file with its digest, which is None if its key is not to be had or damaged. Raises NotFound."""
        row, file = self._find(owner_id, file_id)
        try:
            digest = self._downloads.digest(file, actor, at_once=True)
        except (EncryptionError, IntegrityFailed):
            digest = None
        return _info(row, digest)

    def head(self, owner_id: uuid.UUID, file_id: uuid.UUID, actor: Actor) -> FileInfo:
        """What a content answer says about a file, without opening its object. Raises NotFound and key errors."""
        row, file = self._find(owner_id, file_id)
        return _info(row, self._downloads.digest(file, actor))

    def open(self, owner_id: uuid.UUID, file_id: uuid.UUID, actor: Actor) -> tuple[FileInfo, Download]:
        """Open the content, proven as far as can be before its first byte. The caller closes the download.

        Raises NotFound, IntegrityFailed, and the errors of keys, store and database.
        """
        row, file = self._find(owner_id, file_id)
        download = self._downloads.open(file, actor)
        return _info(row, download.sha256), download

    def delete(self, owner_id: uuid.UUID, file_id: uuid.UUID, actor: Actor) -> None:
        """Shred a file: once this returns, nobody can read it. Its object follows. Raises NotFound."""
        try:
            with self._sessions.begin() as session:
                row, file = _ready(session, owner_id, file_id)
                shred(session, Shreddable.of(row), end_lease=True)
                self._audit.record(session, actor, Action.FILE_DELETED, target=("file", file_id))
        except TransitionLost as exc:
            raise NotFound from exc
        self._downloads.forget(file)
        self._remove_later(file_id)

    def _find(self, owner_id: uuid.UUID, file_id: uuid.UUID) -> tuple[File, StoredFile]:
        with self._sessions.begin() as session:
            return _ready(session, owner_id, file_id)


def _ready(session: Session, owner_id: uuid.UUID, file_id: uuid.UUID) -> tuple[File, StoredFile]:
    """Found by id and owner and state in one query: somebody else's file does not exist."""
    found = session.execute(ready_files(File.id == file_id, File.owner_id == owner_id)).one_or_none()
    if found is None:
        raise NotFound
    return found[0], StoredFile.of(found[0], key_is_retired=found[1])


def _bound(after: tuple[datetime, uuid.UUID]) -> tuple[sa.BindParameter[datetime], sa.BindParameter[uuid.UUID]]:
    return sa.bindparam(None, after[0], File.created_at.type), sa.bindparam(None, after[1], File.id.type)


def _info(row: File, digest: bytes | None = None) -> FileInfo:
    assert row.size_bytes is not None
    return FileInfo(
        id=row.id,
        name=row.name,
        content_type=row.content_type,
        size=row.size_bytes,
        created_at=row.created_at,
        updated_at=row.updated_at,
        object_id=row.object_id,
        version=row.version,
        cipher=_cipher(row.header),
        key_provider=row.key_provider,
        sha256=digest,
    )


def _cipher(header: bytes) -> str | None:
    """One damaged row must not break the list that its owner needs to delete it."""
    try:
        return Header.parse(header).suite.cipher_name
    except HeaderInvalid:
        return None
