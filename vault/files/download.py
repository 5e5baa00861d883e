"""A download: everything that can be refused is refused before the first byte; every byte that leaves is verified."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Final, Self

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import Action, Outcome
from vault.audit.service import Actor, AuditService
from vault.encryption.errors import AuthenticationFailed, HeaderInvalid, KeyUnwrapFailed
from vault.encryption.header import HEADER_SIZE, FileKeys, Header, open_keys
from vault.encryption.keyring import KeyRing, WrappedKey
from vault.encryption.metadata import open_digest
from vault.encryption.segments import ContentKey, Geometry, open_segment, open_stream
from vault.errors import IntegrityFailed, ObjectChanged, ObjectNotFound
from vault.files.models import File
from vault.storage import ObjectReader, ObjectStore, object_key

# Up to here the whole file is fetched and verified before its first byte is sent.
_WHOLE_BYTES: Final = 8 * 1024**2

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A ready row's facts, copied out so that no transaction is open while bytes move."""

    file_id: uuid.UUID
    owner_id: uuid.UUID
    object_id: uuid.UUID
    size_bytes: int
    object_size_bytes: int
    header: bytes
    key: WrappedKey
    sealed_digest: bytes

    @classmethod
    def of(cls, file: File) -> Self:
        """Copy a row in state ready, whose constraints say that nothing is missing."""
        assert file.size_bytes is not None
        assert file.object_size_bytes is not None
        assert file.sealed_digest is not None
        assert file.encrypted_data_key is not None
        return cls(
            file.id,
            file.owner_id,
            file.object_id,
            file.size_bytes,
            file.object_size_bytes,
            file.header,
            WrappedKey(file.key_provider, file.key_ref, file.encrypted_data_key),
            file.sealed_digest,
        )


class Downloads:
    def __init__(
        self, sessions: sessionmaker[Session], *, store: ObjectStore, keys: KeyRing, audit: AuditService
    ) -> None:
        self._sessions = sessions
        self._store = store
        self._keys = keys
        self._audit = audit

    def digest(self, file: StoredFile, actor: Actor) -> bytes:
        """The plaintext's SHA-256 out of the row. Raises the key errors, and IntegrityFailed for a moved row."""
        with self._watched(file, actor):
            return self._unlock(file)[2]

    def open(self, file: StoredFile, actor: Actor) -> "Download":
        """Verify what must be proven before the first byte, and audit that a download begins. The caller closes it."""
        with self._watched(file, actor):
            geometry, key, digest = self._unlock(file)
            pieces, close = self._verified(file, geometry, key)
        try:
            with self._sessions.begin() as session:
                self._audit.record(
                    session,
                    actor,
                    Action.FILE_DOWNLOAD_STARTED,
                    target=("file", file.file_id),
                    size_bytes=file.size_bytes,
                )
        except BaseException:
            close()
            raise
        return Download(
            file,
            digest,
            pieces,
            close,
            watched=lambda: self._watched(file, actor),
            ended=lambda served: self._record_end(file, actor, served=served),
        )

    def _unlock(self, file: StoredFile) -> tuple[Geometry, ContentKey, bytes]:
        header = Header.parse(file.header)
        if header.object_id != file.object_id:
            raise HeaderInvalid
        try:
            geometry = Geometry(header.suite, header.lg, file.size_bytes)
        except ValueError as exc:
            raise IntegrityFailed("row_sizes") from exc
        if geometry.object_size != file.object_size_bytes:
            raise IntegrityFailed("row_sizes")
        keys: FileKeys = open_keys(self._keys.unwrap(file.key, file.object_id), header)
        digest = open_digest(
            keys, file.sealed_digest, object_id=file.object_id, file_id=file.file_id, owner_id=file.owner_id
        )
        return geometry, ContentKey(keys, header), digest

    def _verified(
        self, file: StoredFile, geometry: Geometry, key: ContentKey
    ) -> tuple[Iterator[bytes], Callable[[], None]]:
        """Open the object, prove its ends, and return what yields its plaintext with what closes it."""
        whole = file.size_bytes <= _WHOLE_BYTES
        etag = None if whole else self._prove_last(file, geometry, key)
        reader = self._open(file, geometry, 0, geometry.object_size - 1, etag)
        try:
            if reader.read(HEADER_SIZE) != file.header:
                raise IntegrityFailed("header")
            segments = open_stream(key, geometry, reader.read, 0, geometry.segments - 1)
            if whole:
                pieces = list(segments)
                reader.close()
                return iter(pieces), reader.close
            return chain([next(segments)], segments), reader.close
        except BaseException:
            reader.close()
            raise

    def _prove_last(self, file: StoredFile, geometry: Geometry, key: ContentKey) -> str:
        """Authenticate the final segment, so that a truncated object is found before the first byte is sent."""
        index = geometry.segments - 1
        lo, hi = geometry.span(index)
        reader = self._open(file, geometry, lo, hi, None)
        try:
            open_segment(key, index, reader.read(hi - lo + 1), is_last=True)
            return reader.etag
        finally:
            reader.close()

    def _open(self, file: StoredFile, geometry: Geometry, lo: int, hi: int, etag: str | None) -> ObjectReader:
        reader = self._store.open(object_key(file.object_id), lo, hi, etag=etag)
        if reader.object_size != geometry.object_size:
            reader.close()
            raise IntegrityFailed("object_size")
        return reader

    @contextmanager
    def _watched(self, file: StoredFile, actor: Actor) -> Iterator[None]:
        """Turn every sign of a damaged object or key into its one error, audited and logged."""
        try:
            yield
        except KeyUnwrapFailed:
            self._report(file, actor, "key_unwrap_failed")
            raise
        except (AuthenticationFailed, HeaderInvalid) as exc:
            raise self._report(file, actor, "authentication") from exc
        except ObjectNotFound as exc:
            raise self._report(file, actor, "object_missing") from exc
        except ObjectChanged as exc:
            raise self._report(file, actor, "object_changed") from exc
        except IntegrityFailed as exc:
            raise self._report(file, actor, exc.reason) from exc

    def _report(self, file: StoredFile, actor: Actor, reason: str) -> IntegrityFailed:
        log.error("integrity_failed", file_id=str(file.file_id), reason=reason)
        try:
            with self._sessions.begin() as session:
                self._audit.record(
                    session,
                    actor,
                    Action.FILE_INTEGRITY_FAILED,
                    target=("file", file.file_id),
                    outcome=Outcome.FAILED,
                    reason=reason,
                )
        except SQLAlchemyError as exc:
            # The refusal stands either way; losing its audit row must not turn it into another error.
            log.error("audit_failed", action=Action.FILE_INTEGRITY_FAILED, exc_info=exc)
        return IntegrityFailed(reason)

    def _record_end(self, file: StoredFile, actor: Actor, *, served: int) -> None:
        complete = served == file.size_bytes
        try:
            with self._sessions.begin() as session:
                self._audit.record(
                    session,
                    actor,
                    Action.FILE_DOWNLOAD_ENDED,
                    target=("file", file.file_id),
                    outcome=Outcome.OK if complete else Outcome.FAILED,
                    bytes_served=served,
                )
        except SQLAlchemyError as exc:
            # The bytes have gone out and the start is audited; a missing end says that it is not known.
            log.error("audit_failed", action=Action.FILE_DOWNLOAD_ENDED, exc_info=exc)


class Download:
    """Verified plaintext, piece by piece. A class and not a generator: closing one that never started must work."""

    def __init__(
        self,
        file: StoredFile,
        sha256: bytes,
        pieces: Iterator[bytes],
        close: Callable[[], None],
        *,
        watched: Callable[[], AbstractContextManager[None]],
        ended: Callable[[int], None],
    ) -> None:
        self.size_bytes = file.size_bytes
        self.sha256 = sha256
        self._pieces = pieces
        self._close = close
        self._watched = watched
        self._ended = ended
        self._served = 0
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        """The next verified bytes. Raises what `Downloads.open` raises; then nothing of that segment is returned."""
        with self._watched():
            piece = next(self._pieces, None)
        if piece is None:
            raise StopIteration
        self._served += len(piece)
        return piece

    def close(self) -> None:
        """Release the object and audit how far the download came. May be called at any time, more than once."""
        if not self._closed:
            self._closed = True
            self._close()
            self._ended(self._served)
