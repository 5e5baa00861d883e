"""An upload: reserve, stream, publish. Each step is one short transaction around slow work.

From the reservation on a crash leaves a leased row that the reaper finds; until the publication nobody can see the
file; after it the file is there, whole.
"""

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic, sleep
from typing import Final, Protocol

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.auth.models import User
from vault.core.db import db_now, one_read, run
from vault.core.errors import (
    Busy,
    DatabaseUnavailable,
    DigestMismatch,
    InstallationMismatch,
    QuotaExceeded,
    StorageError,
    TooLarge,
    TooManyFiles,
    TooManyUploads,
    UploadLost,
)
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.core.text import fold
from vault.encryption.header import Suite
from vault.encryption.keyring import KeyRing
from vault.encryption.metadata import seal_digest
from vault.files.facts import FileInfo
from vault.objects.build import Objects
from vault.objects.leases import LEASE_SECONDS
from vault.objects.models import File, FileState
from vault.objects.quota import FILES, OWNER, QUOTA, count_of, free_bytes_of
from vault.objects.retired import refuse_retired
from vault.objects.shredding import Shreddable, TransitionLost, lock_user, shred
from vault.objects.writing import NewObject, write_object
from vault.observe.metrics import CONTENT_BYTES, TRANSFERS
from vault.storage import object_key
from vault.storage.room import DiskReserve

# A body of unknown length reserves quota in steps of this size.
_GROW_BYTES: Final = 16 * 1024**2
# A little less than S3's 10,000 parts hold if each is of the usual size: larger parts for what may come, but does not,
# would take the memory of all other uploads.
_MOST_UNKNOWN_BYTES: Final = 78 * 1024**3
# How long a database that was lost during a commit is waited for, which is longer than a restart takes.
_AWAY_SECONDS: Final = 5.0
_ASK_AGAIN_SECONDS: Final = 0.2

_WANTED: Final = sa.bindparam("wanted", type_=sa.BigInteger)
_RESERVED: Final = sa.bindparam("reserved", type_=sa.BigInteger)
_TAKE_QUOTA: Final = (
    sa.update(User)
    .where(User.id == OWNER, User.disabled_at.is_(None), User.used_bytes + User.reserved_bytes + _WANTED <= QUOTA)
    .values(reserved_bytes=User.reserved_bytes + _WANTED)
)
_COUNT_FILES: Final = sa.select(
    count_of(File.state == FileState.PENDING, File.lease_until > db_now()), FILES, User.file_count.is_not(None)
).where(User.id == OWNER)
_KEEP_COUNT: Final = sa.update(User).where(User.id == OWNER).values(file_count=sa.bindparam("ready"))
_RESERVE: Final = sa.insert(File).values(state=FileState.PENDING, lease_until=db_now(LEASE_SECONDS))
_PUBLISH: Final = (
    sa.update(File)
    .where(File.id == sa.bindparam("file"), File.state == FileState.PENDING, File.lease_until > db_now())
    .values(state=FileState.READY, reserved_bytes=0, lease_until=None)
)
_MOVE_TO_USED: Final = (
    sa.update(User)
    # If somebody else has ended the upload, the bytes may have been given back already, which the schema minds.
    .where(User.id == OWNER, User.disabled_at.is_(None), User.reserved_bytes >= _RESERVED)
    .values(
        reserved_bytes=User.reserved_bytes - _RESERVED,
        used_bytes=User.used_bytes + sa.bindparam("size", type_=sa.BigInteger),
        file_count=User.file_count + 1,
    )
)

log = structlog.get_logger(__name__)


class Incoming(Protocol):
    """What a client sends. `read(n)` gives at most n bytes, b"" at the end, and raises if the body is cut short.

    `bounds` are how many bytes will come, at least and at most, if the client keeps its word; None if it gave none.
    """

    @property
    def name(self) -> str: ...
    @property
    def content_type(self) -> str: ...
    @property
    def bounds(self) -> tuple[int, int] | None: ...
    @property
    def expected_sha256(self) -> bytes | None: ...

    def read(self, length: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class UploadLimits:
    max_upload_bytes: int
    default_quota_bytes: int
    max_uploads_per_user: int
    max_files_per_user: int


@dataclass(frozen=True, slots=True, repr=False)
class _Reservation:
    """One upload's identity and keys, complete before the first byte is read, and what its owner will be told."""

    file_id: uuid.UUID
    owner_id: uuid.UUID
    new: NewObject
    info: FileInfo


class Uploads:
    def __init__(
        self,
        core: Core,
        *,
        objects: Objects,
        keys: KeyRing,
        suite: Suite,
        limits: UploadLimits,
        remove_later: Callable[[uuid.UUID], None],
        audit: AuditService,
    ) -> None:
        self._sessions = core.sessions
        self._store = objects.store
        self._room = objects.room
        self._keys = keys
        self._suite = suite
        self._limits = limits
        self._installation = objects.installation
        self._leases = objects.leases
        self._remove_later = remove_later
        self._audit = audit
        self._clock = core.clock

    def upload(self, principal: Principal, incoming: Incoming) -> FileInfo:
        """Store one file.

        On any error nothing stays visible, reserved or counted. Only where DatabaseUnavailable says that the file may
        have been stored, it may.
        """
        self._refuse_early(principal.account_id, incoming)
        reservation = self._reserve(principal.account_id, incoming)
        with self._leases.held(reservation.file_id), TRANSFERS.labels("in").track_inprogress():
            try:
                meter = _Meter(incoming, self._at_most(incoming), partial(self._grow, reservation), self._room)
                write_object(self._store, reservation.new, meter.read, at_most_bytes=meter.limit)
                if incoming.expected_sha256 not in (None, meter.digest()):
                    raise DigestMismatch
                # Since the upload began, another copy of the database may have become the store's owner.
                self._installation.require()
                info = self._publish(reservation, meter, principal)
            except StorageError as exc:
                # The reaper takes the unfinished write away with the row, and the store then fails on the next part.
                if not self._abandon(reservation):
                    raise UploadLost from exc
                raise
            except BaseException:
                self._abandon(reservation)
                raise
        return info

    def _refuse_early(self, owner_id: uuid.UUID, incoming: Incoming) -> None:
        """Refuse what can be refused before a remote key is made, or a row written. Only reads."""
        self._installation.require()
        least = _least(incoming)
        if least > self._limits.max_upload_bytes:
            raise TooLarge
        self._room.require(least)
        if not self._keys.primary.is_remote:
            # The reservation refuses it as well, and to make a key here costs less than to ask.
            return
        with one_read(self._sessions) as session:
            free = free_bytes_of(session, owner_id, default_quota_bytes=self._limits.default_quota_bytes)
        # Files are counted once, where the count also decides: of very many that takes milliseconds.
        if least > free:
            raise QuotaExceeded

    def _reserve(self, owner_id: uuid.UUID, incoming: Incoming) -> _Reservation:
        """Make the key, then in one transaction take the quota and write the pending row with its complete header."""
        new = NewObject.create(self._keys, self._suite)
        now, reserved = self._clock(), _least(incoming)
        info = FileInfo(
            id=uuid.uuid4(),
            owner_id=owner_id,
            name=incoming.name,
            content_type=incoming.content_type,
            # As far as it is known: publication tells what came.
            size=reserved,
            created_at=now,
            updated_at=now,
            object_id=new.object_id,
            version=1,
            cipher=self._suite.cipher_name,
            key_provider=new.wrapped.provider,
        )
        with self._sessions.begin() as session:
            self._take_quota(session, owner_id, reserved)
            self._limit_files(session, owner_id)
            refuse_retired(session, new.wrapped.key_ref)
            run(
                session,
                _RESERVE,
                id=info.id,
                owner_id=owner_id,
                name=info.name,
                name_folded=fold(info.name),
                content_type=info.content_type,
                version=info.version,
                reserved_bytes=reserved,
                **new.columns(now),
                created_at=now,
                updated_at=now,
            )
        return _Reservation(info.id, owner_id, new, info)

    def _take_quota(self, session: Session, owner_id: uuid.UUID, wanted: int) -> None:
        """Reserve bytes by one conditional UPDATE, which parallel uploads cannot pass together."""
        default = self._limits.default_quota_bytes
        if run(session, _TAKE_QUOTA, owner=owner_id, wanted=wanted, default_quota=default).rowcount != 1:
            raise QuotaExceeded

    def _limit_files(self, session: Session, owner_id: uuid.UUID) -> None:
        # The user's row is locked by now, so two reservations cannot both be the last that fits.
        running, ready, is_counted = run(session, _COUNT_FILES, owner=owner_id).one()
        if not is_counted:
            run(session, _KEEP_COUNT, owner=owner_id, ready=ready)
        if running >= self._limits.max_uploads_per_user:
            raise TooManyUploads
        if ready + running >= self._limits.max_files_per_user:
            raise TooManyFiles

    def _at_most(self, incoming: Incoming) -> int:
        """The plaintext that may come of this very request, whatever others may send."""
        return min(self._limits.max_upload_bytes, incoming.bounds[1] if incoming.bounds else _MOST_UNKNOWN_BYTES)

    def _grow(self, reservation: _Reservation, missing: int, at_most: int) -> int:
        """Reserve more for a body of unknown length: a step, or just what is missing if that does not fit."""
        try:
            return self._grow_by(reservation, max(missing, min(_GROW_BYTES, at_most)))
        except QuotaExceeded:
            return self._grow_by(reservation, missing)

    def _grow_by(self, reservation: _Reservation, more: int) -> int:
        with self._sessions.begin() as session:
            if not lock_user(session, reservation.owner_id):
                raise UploadLost
            self._take_quota(session, reservation.owner_id, more)
            grown = session.execute(
                sa.update(File)
                .where(File.id == reservation.file_id, File.state == FileState.PENDING)
                .values(reserved_bytes=File.reserved_bytes + more)
                .execution_options(synchronize_session=False)
            )
            if grown.rowcount != 1:  # type: ignore[attr-defined]
                raise UploadLost
        return more

    def _publish(self, reservation: _Reservation, meter: "_Meter", principal: Principal) -> FileInfo:
        is_complete = False
        try:
            with self._sessions.begin() as session:
                info = self._move_to_ready(session, reservation, meter)
                self._audit.record(
                    session,
                    principal,
                    Action.FILE_UPLOADED,
                    target=("file", reservation.file_id),
                    size_bytes=meter.size,
                )
                is_complete = True
        except TransitionLost as exc:
            raise UploadLost from exc
        except DBAPIError:
            # The commit may have succeeded unseen. The conditional transition in `_is_ready` waits for it, so the row
            # then says which it was.
            if not is_complete or not self._is_ready(reservation):
                raise
        return info

    def _move_to_ready(self, session: Session, reservation: _Reservation, meter: "_Meter") -> FileInfo:
        new, now, digest = reservation.new, self._clock(), meter.digest()
        # The user's row first, as in `lock_user`.
        moved = run(session, _MOVE_TO_USED, owner=reservation.owner_id, reserved=meter.reserved, size=meter.size)
        if moved.rowcount != 1:
            raise TransitionLost
        published = run(
            session,
            _PUBLISH,
            file=reservation.file_id,
            size_bytes=meter.size,
            object_size_bytes=new.geometry(meter.size).object_size,
            sealed_digest=seal_digest(
                new.keys,
                digest,
                object_id=new.object_id,
                file_id=reservation.file_id,
                owner_id=reservation.owner_id,
            ),
            updated_at=now,
        )
        if published.rowcount != 1:
            raise TransitionLost
        return replace(reservation.info, size=meter.size, updated_at=now, sha256=digest)

    def _is_ready(self, reservation: _Reservation) -> bool:
        """After a commit of unknown outcome: end the row if it is still pending, then say what it is."""
        deadline = monotonic() + _AWAY_SECONDS
        while True:
            try:
                self._shred_own(reservation)
                return self._state(reservation) == FileState.READY
            except SQLAlchemyError as exc:
                if monotonic() >= deadline:
                    raise DatabaseUnavailable(
                        "The database was lost while the file was being published. The file may have been stored: look "
                        "for it before you send it again."
                    ) from exc
            sleep(_ASK_AGAIN_SECONDS)

    def _abandon(self, reservation: _Reservation) -> bool:
        """End an upload that failed; False if somebody else had ended it before.

        What cannot be done now is left to the reaper; the first error goes on.
        """
        ours = True
        try:
            ours = self._shred_own(reservation)
            if ours:
                self._remove_later(reservation.file_id)
            elif self._state(reservation) != FileState.READY:
                # Somebody else ended the row, and may have removed the object before it was complete.
                self._installation.require()
                self._store.delete(object_key(reservation.new.object_id))
        except (SQLAlchemyError, StorageError, InstallationMismatch, Busy) as exc:
            log.warning("upload_left_to_reaper", file_id=str(reservation.file_id), exc_info=exc)
        return ours

    def _shred_own(self, reservation: _Reservation) -> bool:
        try:
            with self._sessions.begin() as session:
                row = session.get(File, reservation.file_id)
                if row is None or row.state != FileState.PENDING:
                    return False
                shred(session, Shreddable.of(row), end_lease=True)
        except TransitionLost:
            return False
        return True

    def _state(self, reservation: _Reservation) -> str | None:
        with self._sessions.begin() as session:
            return session.scalar(sa.select(File.state).where(File.id == reservation.file_id))


def _least(incoming: Incoming) -> int:
    """What is reserved before a byte is read."""
    return incoming.bounds[0] if incoming.bounds else 0


class _Meter:
    """Counts, limits and hashes plaintext on its way to the sealer."""

    def __init__(self, incoming: Incoming, limit: int, grow: Callable[[int, int], int], room: DiskReserve) -> None:
        self._incoming = incoming
        self._grow = grow
        self._room = room
        self._hash = hashlib.sha256()
        self.limit = limit
        self.size = 0
        self.reserved = _least(incoming)

    def read(self, length: int) -> bytes:
        # Other uploads, and all else that fills disks, go on meanwhile.
        self._room.require()
        piece = self._incoming.read(length)
        self._hash.update(piece)
        self.size += len(piece)
        CONTENT_BYTES.labels("in").inc(len(piece))
        if self.size > self.limit:
            raise TooLarge
        if self.size > self.reserved:
            self.reserved += self._grow(self.size - self.reserved, self.limit - self.reserved)
        return piece

    def digest(self) -> bytes:
        return self._hash.digest()
