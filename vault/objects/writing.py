"""New objects in three steps: reserve, append, publish. Each is one short transaction at most, around slow work.

After the reservation, a crash leaves a leased row that the reaper finds. The object is visible, and whole, from the
publication on. A resumable upload reserves a parked row and publishes a ParkedObject; what it appends is its own.
"""

import hashlib
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from time import monotonic, sleep
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from vault.core.db import count_changed, db_now, one_read, run
from vault.core.errors import Busy, DatabaseUnavailable, InstallationMismatch, QuotaExceeded, StorageError, TooLarge
from vault.core.parts import Core
from vault.encryption.header import Suite, create_keys
from vault.encryption.keyring import KeyRing
from vault.encryption.segments import ContentKey, Read, Sealer
from vault.objects.holds import LEASE_SECONDS, LeaseKeeper, refuse_retired
from vault.objects.installation import InstallationGuard
from vault.objects.models import ObjectState, SealedObject
from vault.objects.publishing import PendingObject
from vault.objects.quota import free_bytes_of, limit_files, take_quota
from vault.objects.shredding import TransitionLost, lock_account, shred_pending
from vault.observe.metrics import SEGMENTS
from vault.settings import groups
from vault.storage import DiskReserve, ObjectStore, object_key

# The owner of a reencrypted copy: it takes no quota.
NO_OWNER: Final = uuid.UUID(int=0)
# A body of unknown length reserves quota in steps of this size.
_GROW_BYTES: Final = 16 * 1024**2
# A little less than 10,000 parts of the usual size hold, S3's limit. Larger parts for bytes that may never come would
# take the memory of other uploads.
MOST_UNKNOWN_BYTES: Final = 78 * 1024**3
# The wait for a database that was lost during a commit: longer than a restart takes.
_AWAY_SECONDS: Final = 5.0
_ASK_AGAIN_SECONDS: Final = 0.2

_RESERVE: Final = sa.insert(SealedObject).values(
    state=ObjectState.PENDING, lease_until=db_now(LEASE_SECONDS), version_no=0
)
_PARK: Final = sa.insert(SealedObject).values(state=ObjectState.PENDING, parked=True, version_no=0)
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewObjects:
    """Reserves new objects. `suite` is the cipher of uploads; copies name their own."""

    core: Core
    store: ObjectStore
    room: DiskReserve
    installation: InstallationGuard
    leases: LeaseKeeper
    keys: KeyRing
    suite: Suite
    limits: groups.Files
    remove_later: Callable[[uuid.UUID], None]

    def reserve(
        self, owner_id: uuid.UUID, bounds: tuple[int, int] | None, content_type: str, modified_at: datetime | None
    ) -> "NewObject":
        """Make the key, then in one transaction take the quota and write the pending row with its complete header.

        `bounds` are the least and the most bytes of plaintext; None if they are unknown. `modified_at` is the client's
        time of the content; None stands for now. Raises TooLarge, QuotaExceeded, TooManyFiles, TooManyUploads,
        StorageFull, InstallationMismatch, and the errors of keys and the database.
        """
        with self.reserving(owner_id, bounds, content_type, modified_at) as (_, new):
            return new

    @contextmanager
    def reserving(
        self,
        owner_id: uuid.UUID,
        bounds: tuple[int, int] | None,
        content_type: str,
        modified_at: datetime | None,
        *,
        most_parked: int | None = None,
    ) -> Iterator[tuple[Session, "NewObject"]]:
        """`reserve`, and yield its transaction with the object. With `most_parked`, the row is parked: it is one of so
        many, and stays until its resumable upload ends."""
        limits, (least, most) = self.limits, bounds or (0, MOST_UNKNOWN_BYTES)
        self._refuse_early(owner_id, least)
        most = min(most, limits.max_upload_bytes)
        new = NewObject(self, owner_id, self.suite, reserved_bytes=least, at_most_bytes=most)
        with self.core.sessions.begin() as session:
            take_quota(session, owner_id, least, default_quota_bytes=limits.default_quota_bytes)
            # The account's row is locked by now, so two reservations cannot both be the last that fits.
            limit_files(
                session,
                owner_id,
                most_files=limits.max_files_per_user,
                most_running=limits.max_uploads_per_user,
                most_parked=most_parked,
            )
            statement = _RESERVE if most_parked is None else _PARK
            new.add_row(session, content_type, modified_at or new.created_at, reserved_bytes=least, statement=statement)
            yield session, new

    def reserve_copy(self, suite: Suite, size_bytes: int) -> "NewObject":
        """Reserve an object for content that is stored already. Raises as `reserve`, but takes no quota."""
        self.installation.require()
        new = NewObject(self, NO_OWNER, suite, reserved_bytes=size_bytes, at_most_bytes=size_bytes)
        with self.core.sessions.begin() as session:
            new.add_row(session, "", new.created_at, reserved_bytes=0)
        return new

    def _refuse_early(self, owner_id: uuid.UUID, least: int) -> None:
        """Refuse an upload before a remote key is made and a row written. Only reads."""
        self.installation.require()
        if least > self.limits.max_upload_bytes:
            raise TooLarge
        self.room.require(least)
        if not self.keys.primary.is_remote:
            # The reservation refuses it too, and a local key costs less than a query.
            return
        with one_read(self.core.sessions) as session:
            free = free_bytes_of(session, owner_id, default_quota_bytes=self.limits.default_quota_bytes)
        # Only the reservation counts files: a count of very many takes milliseconds.
        if least > free:
            raise QuotaExceeded


class NewObject(PendingObject):
    """One object with its pending row: identity and keys are complete before the first byte is read."""

    def __init__(
        self, parts: NewObjects, owner_id: uuid.UUID, suite: Suite, *, reserved_bytes: int, at_most_bytes: int
    ) -> None:
        self._parts = parts
        object_id = uuid.uuid4()
        dek, wrapped = parts.keys.generate(object_id)
        header, keys = create_keys(dek, suite, object_id)
        super().__init__(
            parts.core.sessions,
            row_id=uuid.uuid4(),
            owner_id=owner_id,
            header=header,
            keys=keys,
            wrapped=wrapped,
            created_at=parts.core.clock(),
            reserved_bytes=reserved_bytes,
        )
        self._at_most_bytes = at_most_bytes
        self._hash, self._crc32 = hashlib.sha256(), 0
        self._is_stored = False

    def add_row(
        self,
        session: Session,
        content_type: str,
        modified_at: datetime,
        *,
        reserved_bytes: int,
        statement: sa.Insert = _RESERVE,
    ) -> None:
        """Write the pending row with its complete header. Raises KeyUnavailable if the key was retired meanwhile."""
        refuse_retired(session, self.wrapped.key_ref)
        run(
            session,
            statement,
            id=self.row_id,
            # Which file this becomes a version of is decided when it is published.
            entry_id=self.row_id,
            owner_id=self.owner_id,
            content_type=content_type,
            reserved_bytes=reserved_bytes,
            object_id=self.object_id,
            header=self.header.to_bytes(),
            encrypted_data_key=self.wrapped.blob,
            key_provider=self.wrapped.provider,
            key_ref=self.wrapped.key_ref,
            wrapped_at=self.created_at,
            modified_at=modified_at,
            created_at=self.created_at,
        )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Renew the lease while the block runs. If it fails, nothing stays visible, reserved or counted.

        Raises TransitionLost where another process had ended the row, and the store failed for that reason.
        """
        with self._parts.leases.held(self.row_id):
            writer = None
            try:
                key = ContentKey(self._keys, self.header)
                part_size = self.geometry(self._at_most_bytes).part_size
                writer = self._parts.store.writer(object_key(self.object_id), part_size=part_size)
                self._writer, self._sealer = writer, Sealer(key, writer.buffer)
                yield
            except BaseException as exc:
                if writer is not None and not self._is_stored:
                    writer.abort()
                # The reaper takes the unfinished write away with the row, and the store then fails on the next part.
                if not self._abandon() and isinstance(exc, StorageError):
                    raise TransitionLost from exc
                raise

    def append(self, read: Read) -> None:
        """Seal and store everything that read returns. An incomplete segment waits for the next call or `complete`.

        read(n) returns at most n bytes, and b"" only at its end. Raises the errors of read, TooLarge, QuotaExceeded,
        TransitionLost, Busy, and the errors of the store.
        """
        self._store(self._sealer.seal(partial(self._take, read)))

    def complete(self) -> None:
        """Seal the final segment and make the object durable; then prove that this is still the store's database."""
        self._store(self._sealer.finish())
        self._writer.commit()
        self._is_stored = True
        # Since the upload began, another copy of the database may have become the store's owner.
        self._parts.installation.require()

    @contextmanager
    def publish(self) -> Iterator[Session]:
        """Complete the object, then publish it. Raises DatabaseUnavailable as well, if the outcome is unknown: the file
        may have been stored."""
        self.complete()
        is_done = False
        try:
            with super().publish() as session:
                yield session
                is_done = True
        except DBAPIError:
            # The commit may have succeeded although its answer was lost. `_is_ready` waits for it and reads the row.
            if not is_done or not self._is_ready():
                raise

    def sha256(self) -> bytes:
        """Return the SHA-256 of the plaintext so far."""
        return self._hash.digest()

    def digests(self) -> tuple[bytes, int]:
        return self.sha256(), self._crc32

    def _take(self, read: Read, length: int) -> bytes:
        """Count, limit and hash plaintext on its way to the sealer."""
        piece = read(length)
        self._hash.update(piece)
        self._crc32 = zlib.crc32(piece, self._crc32)
        self.size_bytes += len(piece)
        if self.size_bytes > self._at_most_bytes:
            raise TooLarge
        if self.size_bytes > self._reserved_bytes:
            self._grow()
        return piece

    def _store(self, parts: Iterable[tuple[memoryview, int]]) -> None:
        segment_size = 1 << self.header.lg
        for part, length in parts:
            self._writer.write(part, length)
            SEGMENTS.labels("sealed").inc(-(-length // segment_size))

    def _grow(self) -> None:
        """Reserve more for a body of unknown length: a step, or only the missing bytes if a step does not fit."""
        missing = self.size_bytes - self._reserved_bytes
        try:
            self._grow_by(max(missing, min(_GROW_BYTES, self._at_most_bytes - self._reserved_bytes)))
        except QuotaExceeded:
            self._grow_by(missing)

    def _grow_by(self, more: int) -> None:
        quota = self._parts.limits.default_quota_bytes
        with self._sessions.begin() as session:
            reserve_more(session, self.owner_id, self.row_id, more, default_quota_bytes=quota)
        self._reserved_bytes += more

    def _is_ready(self) -> bool:
        """After a commit of unknown outcome, end the row if it is pending, and return whether it is ready."""
        deadline = monotonic() + _AWAY_SECONDS
        while True:
            try:
                self._shred_own()
                return self._exists(SealedObject.id == self.row_id, SealedObject.state == ObjectState.READY)
            except SQLAlchemyError as exc:
                if monotonic() >= deadline:
                    raise DatabaseUnavailable(
                        "The database was lost while the file was being published. The file may have been stored: look "
                        "for it before you send it again."
                    ) from exc
            sleep(_ASK_AGAIN_SECONDS)

    def _abandon(self) -> bool:
        """End a failed object. Returns False if another process had ended its row.

        After a second failure the reaper does the rest, and the first error goes on.
        """
        ours = True
        try:
            ours = self._shred_own()
            if ours:
                self._parts.remove_later(self.row_id)
            elif not self._is_in_use():
                # Another process ended the row, and may have removed the object before it was complete.
                self._parts.installation.require()
                self._parts.store.delete(object_key(self.object_id))
        except (SQLAlchemyError, StorageError, InstallationMismatch, Busy) as exc:
            log.warning("upload_left_to_reaper", file_id=str(self.row_id), exc_info=exc)
        return ours

    def _shred_own(self) -> bool:
        try:
            with self._sessions.begin() as session:
                row = session.get(SealedObject, self.row_id)
                if row is None or row.state != ObjectState.PENDING:
                    return False
                shred_pending(session, row, end_lease=True)
        except TransitionLost:
            return False
        return True

    def _is_in_use(self) -> bool:
        """Return whether this row is ready, or another row has the object (reencryption exchanges objects)."""
        is_used = sa.or_(SealedObject.state == ObjectState.READY, SealedObject.id != self.row_id)
        return self._exists(SealedObject.object_id == self.object_id, is_used)

    def _exists(self, *where: sa.ColumnElement[bool]) -> bool:
        with self._sessions.begin() as session:
            return bool(session.scalar(sa.select(sa.exists().where(*where))))


def reserve_more(
    session: Session, owner_id: uuid.UUID, row_id: uuid.UUID, more: int, *, default_quota_bytes: int
) -> None:
    """Reserve more bytes for a pending object. Raises QuotaExceeded, and TransitionLost if it has ended."""
    if not lock_account(session, owner_id):
        raise TransitionLost
    take_quota(session, owner_id, more, default_quota_bytes=default_quota_bytes)
    grown = count_changed(
        session,
        sa.update(SealedObject)
        .where(SealedObject.id == row_id, SealedObject.state == ObjectState.PENDING)
        .values(reserved_bytes=SealedObject.reserved_bytes + more),
    )
    if grown != 1:
        raise TransitionLost
