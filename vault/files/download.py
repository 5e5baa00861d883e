"""Downloads: find, then open. Refusals come before the first byte, and every byte is verified before it leaves."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Self

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from vault.audit.models import Action, Outcome
from vault.audit.service import AuditService, count_read, end_read
from vault.core.db import AnyRow, one_write, read_row, row_of
from vault.core.errors import AuditUnavailable, NotFound
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.files.facts import FileInfo, info_of
from vault.files.models import Entry, Work
from vault.objects.integrity import Integrity
from vault.objects.models import SealedObject
from vault.objects.reading import ByteRange, FileReader, StoredFile, ready_objects
from vault.observe.metrics import CONTENT_BYTES, TRANSFERS

# The wait of a file's metadata for a key service; without an answer it has no digest.
_DIGEST_SECONDS: Final = 2.0
_DOWNLOAD: Final = Action.FILE_DOWNLOAD_STARTED, Action.FILE_DOWNLOAD_ENDED
_VIEW: Final = Action.FILE_VIEW_STARTED, Action.FILE_VIEW_ENDED
_READY_OF_OWNER: Final = (
    ready_objects()
    .add_columns(Entry)
    .join(Entry, Entry.current_id == SealedObject.id)
    .where(
        Entry.id == sa.bindparam("file"),
        Entry.owner_id == sa.bindparam("owner"),
        Entry.work.is_distinct_from(Work.PURGE),
    )
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, repr=False)
class FoundFile:
    """A file as one query saw it: its metadata, and the object of that version."""

    info: FileInfo
    stored: StoredFile


def find_readable(session: Session, principal: Principal, file_id: uuid.UUID) -> FoundFile:
    """Find a file by id and owner and state in one query: another person's file does not exist, nor any file of an
    anonymous client. Raises NotFound."""
    return _found(row_of(session, _READY_OF_OWNER, file=file_id, owner=principal.user_id))


def _found(row: AnyRow | None) -> FoundFile:
    if row is None:
        raise NotFound
    stored, is_retired, entry = row
    return found_of(entry, stored, is_retired)


def found_of(entry: Entry, row: SealedObject, is_retired: bool) -> FoundFile:
    """Return a file with this object as its content. It opens only if it was sealed as that: an attacker who writes the
    database may have put another file's there."""
    stored = StoredFile.of(row, key_is_retired=is_retired)
    return FoundFile(info_of(entry, row), stored.as_content_of(entry.id, entry.owner_id))


@dataclass(frozen=True, slots=True)
class Downloads:
    """`verifies_all_first` proves every segment before the first byte is sent, by reading the object twice."""

    core: Core
    reader: FileReader
    integrity: Integrity
    audit: AuditService
    verifies_all_first: bool

    def find(self, principal: Principal, file_id: uuid.UUID) -> FoundFile:
        """Find a file that the principal owns. Raises NotFound."""
        return _found(read_row(self.core.sessions, _READY_OF_OWNER, file=file_id, owner=principal.user_id))

    def digest(self, principal: Principal, found: FoundFile, *, wait_briefly: bool = False) -> bytes:
        """Return the plaintext's SHA-256 out of the row. Raises the key errors, and IntegrityFailed for a moved row.

        `wait_briefly` waits two seconds at most for a key service.
        """
        with self.integrity.watched(principal, found.stored):
            return self.reader.unlock(found.stored, within_seconds=_DIGEST_SECONDS if wait_briefly else None).sha256

    def open(self, principal: Principal, found: FoundFile, part: ByteRange | None, *, is_view: bool) -> "Download":
        """Prove the object's ends, and audit the start of a download. The caller closes it.

        Without a part, the download is of the whole file. With `is_view` it is audited as a view. Raises
        IntegrityFailed, and the errors of keys, store and database.
        """
        file = found.stored
        started, ended = _VIEW if is_view else _DOWNLOAD
        with self.integrity.watched(principal, file):
            unlocked = self.reader.unlock(file)
            pieces, close = self.reader.open(file, unlocked, part, verify_all_first=self.verifies_all_first)
        wanted = file.size_bytes if part is None else part.size
        try:
            counted_by = self._record_start(file, principal, started, part, can_be_merged=is_view or part is not None)
        except BaseException:
            close()
            raise
        return Download(
            wanted,
            unlocked.sha256,
            self._watched(principal, file, pieces),
            close,
            ended=lambda served, complete: self._record_end(
                file, principal, ended, counted_by, served=served, complete=complete
            ),
        )

    def _watched(self, principal: Principal, file: StoredFile, pieces: Iterator[bytes]) -> Iterator[bytes]:
        with self.integrity.watched(principal, file):
            yield from pieces

    def _record_start(
        self, file: StoredFile, principal: Principal, action: Action, part: ByteRange | None, *, can_be_merged: bool
    ) -> uuid.UUID | None:
        """Commit the start of a download: as an event, or in the count of an earlier one (viewers read in ranges).

        Returns the id of the row that counts it, or None.
        """
        with self.core.sessions.begin() if can_be_merged else one_write(self.core.sessions) as session:
            if can_be_merged:
                counted_by = count_read(session, principal, action, file.file_id, self.audit.clock())
                if counted_by is not None:
                    return counted_by
            self.audit.record(
                session,
                principal,
                action,
                target=("file", file.file_id),
                size_bytes=file.size_bytes,
                first_byte=0 if part is None else part.first,
                bytes_wanted=file.size_bytes if part is None else part.size,
            )
        return None

    def forget(self, object_id: uuid.UUID) -> None:
        """Drop the key of a removed object from this process's cache."""
        self.reader.evict(object_id)

    def _record_end(
        self,
        file: StoredFile,
        principal: Principal,
        action: Action,
        counted_by: uuid.UUID | None,
        *,
        served: int,
        complete: bool,
    ) -> None:
        try:
            with self.core.sessions.begin() if counted_by else one_write(self.core.sessions) as session:
                if counted_by and end_read(session, counted_by, served=served, complete=complete):
                    return
                target, outcome = ("file", file.file_id), Outcome.OK if complete else Outcome.FAILED
                self.audit.record(session, principal, action, target=target, outcome=outcome, bytes_served=served)
        except (SQLAlchemyError, AuditUnavailable) as exc:
            # The bytes have gone out and the start is audited; a missing end says that it is not known.
            log.error("audit_failed", action=action, exc_info=exc)


class Download:
    """Verified plaintext, piece by piece. A class and not a generator: closing one that never started must work."""

    def __init__(
        self,
        size_bytes: int,
        sha256: bytes,
        pieces: Iterator[bytes],
        close: Callable[[], None],
        *,
        ended: Callable[[int, bool], None],
    ) -> None:
        self.size_bytes = size_bytes
        self.sha256 = sha256
        self._pieces = pieces
        self._close = close
        self._ended = ended
        self._served = 0
        self._is_complete = False
        self._closed = False
        TRANSFERS.labels("out").inc()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        """Return the next verified bytes. Raises the errors of `Downloads.open`, without a byte of a bad segment."""
        piece = next(self._pieces, None)
        if piece is None:
            # The server asks again after it has sent the last piece, and not after a connection broke.
            self._is_complete = True
            raise StopIteration
        self._served += len(piece)
        CONTENT_BYTES.labels("out").inc(len(piece))
        return piece

    def close(self) -> None:
        """Release the object and audit how many bytes were served. Safe to call at any time and more than once."""
        if not self._closed:
            self._closed = True
            TRANSFERS.labels("out").dec()
            self._close()
            self._ended(self._served, self._is_complete)
