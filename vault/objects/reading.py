"""Reads stored objects. Each byte is proven before it is returned, and both ends of a whole file before its first."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final, Self

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from vault.core.errors import IntegrityFailed, NotFound, ObjectChanged, ObjectNotFound
from vault.encryption.cache import DekCache
from vault.encryption.errors import AuthenticationFailed, HeaderInvalid, KeyUnavailable
from vault.encryption.header import HEADER_SIZE, SealedFor, header_of, open_digest, open_keys
from vault.encryption.keyring import WrappedKey
from vault.encryption.segments import ContentKey, Covering, Geometry, open_segment, open_stream
from vault.encryption.staging import Staging
from vault.objects.holds import RETIRED, key_is_retired
from vault.objects.installation import InstallationGuard
from vault.objects.models import ObjectState, SealedObject
from vault.observe.metrics import SEGMENTS
from vault.storage import ObjectReader, ObjectStore, object_key

# Up to this size, the whole answer is fetched and verified before its first byte is returned.
_WHOLE_BYTES: Final = 8 * 1024**2
_OPENED: Final = SEGMENTS.labels("opened")


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A range of a file's plaintext, at least one byte; `first` and `last` are included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A copy of a ready row, so that no transaction is open while bytes move. `file_id` is the file whose version it
    is."""

    row_id: uuid.UUID
    file_id: uuid.UUID
    owner_id: uuid.UUID
    object_id: uuid.UUID
    size_bytes: int
    object_size_bytes: int
    header: bytes
    key: WrappedKey
    key_is_retired: bool
    sealed_digest: bytes

    @classmethod
    def of(cls, row: SealedObject, *, key_is_retired: bool) -> Self:
        """Copy a row in state ready. The table's constraints guarantee its values."""
        assert row.size_bytes is not None
        assert row.object_size_bytes is not None
        assert row.sealed_digest is not None
        assert row.encrypted_data_key is not None
        return cls(
            row.id,
            row.entry_id,
            row.owner_id,
            row.object_id,
            row.size_bytes,
            row.object_size_bytes,
            row.header,
            WrappedKey(row.key_provider, row.key_ref, row.encrypted_data_key),
            key_is_retired,
            row.sealed_digest,
        )

    def as_content_of(self, file_id: uuid.UUID, owner_id: uuid.UUID) -> Self:
        """Return it as the content of this file of this owner; unlocking it proves that it is."""
        return replace(self, file_id=file_id, owner_id=owner_id)


def ready_objects(*where: sa.ColumnElement[bool]) -> sa.Select[SealedObject, bool]:
    """Return a query of ready rows, each with whether its key is retired: the arguments of `StoredFile.of`."""
    return sa.select(SealedObject, key_is_retired()).where(SealedObject.state == ObjectState.READY, *where)


def find_ready(sessions: sessionmaker[Session], row_id: uuid.UUID) -> StoredFile:
    """Read a version of any owner's file by its row. Raises NotFound."""
    with sessions.begin() as session:
        found = session.execute(ready_objects(SealedObject.id == row_id)).one_or_none()
    if found is None:
        raise NotFound
    return StoredFile.of(found[0], key_is_retired=found[1])


@dataclass(frozen=True, slots=True, repr=False)
class Unlocked:
    """A file whose row has been proven: its geometry, its content key, and the SHA-256 of its plaintext."""

    geometry: Geometry
    key: ContentKey
    sha256: bytes


class FileReader:
    """Opens files by their rows. Every sign of damage is IntegrityFailed with a reason, or KeyUnwrapFailed."""

    def __init__(self, store: ObjectStore, keys: DekCache, installation: InstallationGuard) -> None:
        self._store = store
        self._keys = keys
        self._installation = installation

    def unlock(self, file: StoredFile, *, within_seconds: float | None = None) -> Unlocked:
        """Unwrap the data key and prove the row. Does not use the store.

        Raises the key errors, and IntegrityFailed. `within_seconds` bounds the wait for a key service.
        """
        try:
            header = header_of(file.header, file.object_id)
        except HeaderInvalid as exc:
            raise IntegrityFailed("row_header") from exc
        try:
            geometry = Geometry(header.suite, header.lg, file.size_bytes)
        except ValueError as exc:
            raise IntegrityFailed("row_sizes") from exc
        if geometry.object_size != file.object_size_bytes:
            raise IntegrityFailed("row_sizes")
        keys = open_keys(self._unwrap(file, within_seconds), header)
        try:
            digest = open_digest(
                keys,
                file.sealed_digest,
                SealedFor(file.object_id, file.file_id, file.owner_id),
                allows_first_form=file.row_id == file.file_id,
            )
        except AuthenticationFailed as exc:
            raise IntegrityFailed("row_digest") from exc
        return Unlocked(geometry, ContentKey(keys, header), digest.sha256)

    def unlock_parked(self, row: SealedObject) -> Staging:
        """Unwrap the data key of a resumable upload's pending row. Raises NotFound if it has ended, the key errors, and
        IntegrityFailed."""
        if row.encrypted_data_key is None:
            raise NotFound
        try:
            header = header_of(row.header, row.object_id)
        except HeaderInvalid as exc:
            raise IntegrityFailed("row_header") from exc
        key = WrappedKey(row.key_provider, row.key_ref, row.encrypted_data_key)
        return Staging(self._keys.unwrap(key, row.object_id), header)

    def open(
        self, file: StoredFile, unlocked: Unlocked, part: ByteRange | None = None, *, verify_all_first: bool = False
    ) -> tuple[Iterator[bytes], Callable[[], None]]:
        """Open the object, prove its ends, and return an iterator over its plaintext and a function that closes it.

        For a part, only its segments are fetched, and the first of them is proven. `verify_all_first` proves every
        wanted segment before this returns; each is proven again as it is yielded.
        """
        geometry = unlocked.geometry
        wanted = geometry.whole() if part is None else geometry.covering(part.first, part.last)
        is_small = wanted.take <= _WHOLE_BYTES
        with _damage_named():
            etag = self._prove_last(file, unlocked) if part is None and not is_small else None
            if verify_all_first and not is_small:
                etag = self._prove_all(file, unlocked, wanted, etag, with_header=part is None)
            reader, pieces = self._stream(file, unlocked, wanted, etag, with_header=part is None)
        try:
            if is_small:
                proven = list(pieces)
                reader.close()
                return iter(proven), reader.close
            return chain([next(pieces)], pieces), reader.close
        except BaseException:
            reader.close()
            raise

    def evict(self, object_id: uuid.UUID) -> None:
        """Drop the key of a removed object from the cache."""
        self._keys.evict(object_id)

    def _unwrap(self, file: StoredFile, within_seconds: float | None) -> bytes:
        if file.key_is_retired:
            raise KeyUnavailable(RETIRED)
        if within_seconds is None:
            return self._keys.unwrap(file.key, file.object_id)
        return self._keys.unwrap_within(within_seconds, file.key, file.object_id)

    def _stream(
        self, file: StoredFile, unlocked: Unlocked, wanted: Covering, etag: str | None, *, with_header: bool
    ) -> tuple[ObjectReader, Iterator[bytes]]:
        """Return the open reader, and the wanted plaintext, each segment verified before it is yielded.

        No thread fetches ahead: the system's buffers do, and handing pieces over costs more than it gains.
        """
        geometry = unlocked.geometry
        reader = self._open(file, geometry, 0 if with_header else wanted.lo, wanted.hi, etag)

        def segments() -> Iterator[bytes]:
            with _damage_named():
                if with_header and reader.read(HEADER_SIZE) != file.header:
                    raise IntegrityFailed("header")
                for segment in open_stream(unlocked.key, geometry, reader.read, wanted.first, wanted.last):
                    _OPENED.inc()
                    yield segment

        return reader, _cut(segments(), wanted.skip, wanted.take)

    def _prove_last(self, file: StoredFile, unlocked: Unlocked) -> str:
        """Authenticate the final segment, so that a truncated object is found before the first byte is returned."""
        geometry = unlocked.geometry
        index = geometry.segments - 1
        lo, hi = geometry.span(index)
        reader = self._open(file, geometry, lo, hi, None)
        try:
            open_segment(unlocked.key, index, reader.read(hi - lo + 1), is_last=True)
            _OPENED.inc()
            return reader.etag
        finally:
            reader.close()

    def _prove_all(
        self, file: StoredFile, unlocked: Unlocked, wanted: Covering, etag: str | None, *, with_header: bool
    ) -> str:
        reader, pieces = self._stream(file, unlocked, wanted, etag, with_header=with_header)
        try:
            for _ in pieces:
                pass
            return reader.etag
        finally:
            reader.close()

    def _open(self, file: StoredFile, geometry: Geometry, lo: int, hi: int, etag: str | None) -> ObjectReader:
        try:
            reader = self._store.open(object_key(file.object_id), lo, hi, etag=etag)
        except ObjectNotFound:
            # An unmounted store has lost nothing. It may be mounted again by now, so ask once more.
            self._installation.confirm_presence()
            reader = self._store.open(object_key(file.object_id), lo, hi, etag=etag)
        if reader.object_size != geometry.object_size:
            reader.close()
            raise IntegrityFailed("object_size")
        return reader


class Pieces:
    """Verified pieces as a stream that the sealer reads from, counted on their way."""

    def __init__(self, pieces: Iterator[bytes], progress: Callable[[int], None] = lambda _: None) -> None:
        self._pieces = pieces
        self._progress = progress
        self._rest = memoryview(b"")

    def read(self, length: int, /) -> bytes:
        """Return at most `length` bytes, and b"" at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._progress(len(piece))
            self._rest = memoryview(piece)
        piece, self._rest = bytes(self._rest[:length]), self._rest[length:]
        return piece


def _cut(segments: Iterator[bytes], skip: int, take: int) -> Iterator[bytes]:
    """Yield `take` bytes of the segments, after the first `skip`."""
    for segment in segments:
        piece = segment[skip : skip + take]
        skip = 0
        take -= len(piece)
        yield piece


@contextmanager
def _damage_named() -> Iterator[None]:
    """Turn every sign of a damaged object into IntegrityFailed with its reason."""
    try:
        yield
    except AuthenticationFailed as exc:
        raise IntegrityFailed("authentication") from exc
    except ObjectNotFound as exc:
        raise IntegrityFailed("object_missing") from exc
    except ObjectChanged as exc:
        raise IntegrityFailed("object_changed") from exc
