"""Gives files a new data key and a new object: after a master key leaked, or for another cipher.

It runs like an upload, with a leased pending row of its own, which belongs to nobody. One transaction then exchanges
the objects of the two rows; the old object goes an hour later, so that running downloads end well.
"""

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.db import db_now
from vault.core.errors import (
    Busy,
    InstallationMismatch,
    IntegrityFailed,
    KeyInUse,
    NotFound,
    StorageError,
    StorageFull,
    StorageUnavailable,
    VaultError,
)
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.encryption.errors import EncryptionError, KeyServiceUnavailable, KeyUnwrapFailed
from vault.encryption.header import Suite
from vault.encryption.keyring import KeyRing, WrappedKey
from vault.encryption.metadata import seal_digest
from vault.keys.bulk import GIVE_UP_AFTER, patiently
from vault.keys.usage import KeyUsage, reason_of
from vault.objects.build import Objects
from vault.objects.leases import LEASE_SECONDS
from vault.objects.models import File, FileState
from vault.objects.reading import StoredFile, Unlocked, find_ready, integrity_proven
from vault.objects.retired import refuse_retired
from vault.objects.rows import rows_by_id
from vault.objects.shredding import Shreddable, TransitionLost, lock_user, shred
from vault.objects.writing import NewObject, write_object
from vault.storage import object_key

# A pending row that belongs to nobody costs nobody's quota, and no list shows it.
_NOBODY: Final = uuid.UUID(int=0)
_KEEP_OLD_SECONDS: Final = 60 * 60
_TRIES: Final = 3

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files, and the cipher that they get: all that meet every condition given.

    Without any, those that have another cipher. `wrapped_before` is about when their keys were last wrapped.
    """

    suite: Suite
    file_ids: tuple[uuid.UUID, ...] = ()
    key_ref: str | None = None
    wrapped_before: datetime | None = None


@dataclass(slots=True)
class ReencryptReport:
    """`gone`: deleted, or given another object by somebody else, meanwhile."""

    done: int = 0
    gone: int = 0
    failed: int = 0


class Reencryptor:
    def __init__(
        self,
        core: Core,
        *,
        objects: Objects,
        keys: KeyRing,
        usage: KeyUsage,
        audit: AuditService,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._sessions = core.sessions
        self._store = objects.store
        self._keys = keys
        self._usage = usage
        self._reader = objects.reader
        self._integrity = objects.integrity
        self._installation = objects.installation
        self._leases = objects.leases
        self._audit = audit
        self._clock = core.clock
        self._sleep = sleep

    def plan(self, selection: Selection) -> tuple[int, int]:
        """How many files that are, and their plaintext bytes.

        Raises KeyInUse if they are those of a master key that is still the primary: it would wrap the new data keys.
        """
        if selection.key_ref is not None and (self._keys.primary.name, selection.key_ref) == ("local", self._primary()):
            raise KeyInUse(
                "This key is the primary and would wrap the new data keys too. Make another key the primary."
            )
        with self._sessions.begin() as session:
            query = sa.select(sa.func.count(), sa.func.sum(File.size_bytes)).where(*self._selected(selection))
            count, size = session.execute(query).one()
        return count, int(size or 0)

    def run(
        self,
        principal: Principal,
        selection: Selection,
        *,
        progress: Callable[[int], None] = lambda _: None,
        on_failure: Callable[[uuid.UUID, str], None] = lambda _id, _reason: None,
    ) -> ReencryptReport:
        """Reencrypt the files one by one; one that fails keeps what it had. `progress` is told of plaintext bytes.

        Raises InstallationMismatch, KeyUnavailable or KeyNotEverywhere before anything is read, StorageFull,
        StorageUnavailable when the store does not answer for many files in a row, and KeyServiceUnavailable when
        patience is over. May be ended anywhere: a file has either its old object or its new one.
        """
        self._installation.raise_epoch()
        self._usage.require_primary()
        self._usage.require_everywhere()
        report, unreachable = ReencryptReport(), 0
        # Only ids are read ahead: what a file is may change while those before it are copied.
        for (file_id,) in rows_by_id(self._sessions, sa.select(File.id).where(*self._selected(selection))):
            try:
                self._reencrypt(file_id, selection.suite, principal, progress)
                report.done, unreachable = report.done + 1, 0
            except NotFound:
                report.gone += 1
            except (KeyServiceUnavailable, StorageFull):
                raise
            except (TransitionLost, EncryptionError, IntegrityFailed, StorageError) as exc:
                on_failure(file_id, _reason(exc))
                report.failed += 1
                unreachable = unreachable + 1 if isinstance(exc, StorageUnavailable) else 0
                if unreachable >= GIVE_UP_AFTER:
                    raise StorageUnavailable from exc
        return report

    def _reencrypt(
        self, file_id: uuid.UUID, suite: Suite, principal: Principal, progress: Callable[[int], None]
    ) -> None:
        """Raises NotFound if it has gone, TransitionLost if its key was changed each time that it was tried."""
        first = file = find_ready(self._sessions, file_id)
        for _ in range(_TRIES):
            try:
                self._try(file, suite, principal, progress)
                return
            except TransitionLost:
                pass
            except (IntegrityFailed, KeyUnwrapFailed) as exc:
                self._integrity.report(principal, file, _reason(exc))
                raise
            # Its key was rewrapped meanwhile, or it has gone, or somebody else has reencrypted it.
            file = find_ready(self._sessions, file_id)
            if file.object_id != first.object_id:
                raise NotFound
        raise TransitionLost

    def _try(self, file: StoredFile, suite: Suite, principal: Principal, progress: Callable[[int], None]) -> None:
        unlocked = patiently(lambda: self._reader.unlock(file), sleep=self._sleep)
        self._installation.require()
        new, pending_id = self._reserve(suite)
        with self._leases.held(pending_id):
            try:
                self._copy(file, unlocked, new, progress)
                self._installation.require()
                self._swap(file, new, pending_id, unlocked.sha256, principal)
            except BaseException:
                self._abandon(new, pending_id)
                raise

    def _reserve(self, suite: Suite) -> tuple[NewObject, uuid.UUID]:
        new = patiently(lambda: NewObject.create(self._keys, suite), sleep=self._sleep)
        now = self._clock()
        row = _nobodys_row(now, state=FileState.PENDING, lease_until=db_now(LEASE_SECONDS), **new.columns(now))
        with self._sessions.begin() as session:
            refuse_retired(session, new.wrapped.key_ref)
            session.add(row)
        return new, row.id

    def _copy(self, file: StoredFile, unlocked: Unlocked, new: NewObject, progress: Callable[[int], None]) -> None:
        """Stream the verified plaintext into the new object."""
        with integrity_proven():
            pieces, close = self._reader.open(file, unlocked)
            source = _Source(pieces, progress)
            try:
                write_object(self._store, new, source.read, at_most_bytes=file.size_bytes)
            finally:
                close()
        if source.digest() != unlocked.sha256:
            raise IntegrityFailed("digest")

    def _swap(
        self, file: StoredFile, new: NewObject, pending_id: uuid.UUID, digest: bytes, principal: Principal
    ) -> None:
        try:
            with self._sessions.begin() as session:
                key_ref = self._exchange(session, file, new, pending_id, digest)
                self._audit.record(
                    session,
                    principal,
                    Action.FILE_REENCRYPTED,
                    target=("file", file.file_id),
                    from_ref=file.key.key_ref,
                    to_ref=key_ref,
                )
        except DBAPIError:
            # The commit may have succeeded unseen; the row says which it was.
            if not self._is_known(new.object_id, File.id == file.file_id):
                raise

    def _exchange(
        self, session: Session, file: StoredFile, new: NewObject, pending_id: uuid.UUID, digest: bytes
    ) -> str:
        """Give the file the new object and a shredded row the old one; return the ref that wraps the new key."""
        lock_user(session, file.owner_id)
        # Both rows in the order in which rewrapping locks them, or the two would wait for each other.
        rows = session.scalars(
            sa.select(File).where(File.id.in_([pending_id, file.file_id])).order_by(File.id).with_for_update()
        ).all()
        # The pending row's key as it is now: it may have been rewrapped while the object was being written.
        pending = next((row for row in rows if row.id == pending_id and row.state == FileState.PENDING), None)
        if pending is None or not session.scalar(sa.select(File.lease_until > db_now()).where(File.id == pending_id)):
            raise TransitionLost
        key = WrappedKey(pending.key_provider, pending.key_ref, pending.encrypted_data_key or "")
        session.delete(pending)
        session.flush()
        swapped = session.execute(
            sa.update(File)
            .where(
                File.id == file.file_id,
                File.object_id == file.object_id,
                File.encrypted_data_key == file.key.blob,
                File.state == FileState.READY,
            )
            .values(
                object_id=new.object_id,
                header=new.content_key.header.to_bytes(),
                encrypted_data_key=key.blob,
                key_provider=key.provider,
                key_ref=key.key_ref,
                wrapped_at=pending.wrapped_at,
                object_size_bytes=new.geometry(file.size_bytes).object_size,
                sealed_digest=seal_digest(
                    new.keys, digest, object_id=new.object_id, file_id=file.file_id, owner_id=file.owner_id
                ),
            )
            .execution_options(synchronize_session=False)
        )
        if swapped.rowcount != 1:  # type: ignore[attr-defined]
            raise TransitionLost
        now = self._clock()
        session.add(
            _nobodys_row(
                now,
                state=FileState.SHREDDED,
                object_id=file.object_id,
                header=file.header,
                encrypted_data_key=None,
                key_provider=file.key.provider,
                key_ref=file.key.key_ref,
                wrapped_at=now,
                # The reaper removes the object when this has passed.
                lease_until=db_now(_KEEP_OLD_SECONDS),
            )
        )
        return key.key_ref

    def _abandon(self, new: NewObject, pending_id: uuid.UUID) -> None:
        """End a pending row that failed; the reaper removes it with what was written."""
        try:
            with self._sessions.begin() as session:
                row = session.get(File, pending_id)
                if row is not None and row.state == FileState.PENDING:
                    shred(session, Shreddable.of(row), end_lease=True)
            if not self._is_known(new.object_id):
                # The reaper had ended the row, and may have removed the object before it was complete.
                self._installation.require()
                self._store.delete(object_key(new.object_id))
        except (SQLAlchemyError, StorageError, InstallationMismatch, Busy, TransitionLost) as exc:
            log.warning("reencryption_left_to_reaper", file_id=str(pending_id), exc_info=exc)

    def _is_known(self, object_id: uuid.UUID, *where: sa.ColumnElement[bool]) -> bool:
        with self._sessions.begin() as session:
            return bool(session.scalar(sa.select(sa.exists().where(File.object_id == object_id, *where))))

    def _primary(self) -> str:
        return self._usage.primary()[1]

    def _selected(self, selection: Selection) -> list[sa.ColumnElement[bool]]:
        where: list[sa.ColumnElement[bool]] = []
        if selection.file_ids:
            where.append(File.id.in_(selection.file_ids))
        if selection.key_ref is not None:
            # As the index has it: a ref is looked up by provider.
            where += [File.key_provider.in_(sorted(self._keys.providers)), File.key_ref == selection.key_ref]
        if selection.wrapped_before is not None:
            where.append(File.wrapped_at < selection.wrapped_before)
        if not where:
            # The header's byte 9 names the suite (docs/object-format.md, "Header").
            where.append(sa.func.substr(File.header, 10, 1) != bytes([selection.suite]))
        return [File.state == FileState.READY, File.encrypted_data_key.is_not(None), *where]


class _Source:
    """Verified pieces as a stream that the sealer reads from, hashed and counted on their way."""

    def __init__(self, pieces: Iterator[bytes], progress: Callable[[int], None]) -> None:
        self._pieces = pieces
        self._progress = progress
        self._hash = hashlib.sha256()
        self._rest = memoryview(b"")

    def read(self, length: int) -> bytes:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._hash.update(piece)
            self._progress(len(piece))
            self._rest = memoryview(piece)
        piece, self._rest = bytes(self._rest[:length]), self._rest[length:]
        return piece

    def digest(self) -> bytes:
        return self._hash.digest()


def _nobodys_row(now: datetime, **columns: Any) -> File:
    return File(
        id=uuid.uuid4(),
        owner_id=_NOBODY,
        name="",
        name_folded="",
        content_type="",
        created_at=now,
        updated_at=now,
        **columns,
    )


def _reason(error: VaultError | TransitionLost) -> str:
    return "changed_meanwhile" if isinstance(error, TransitionLost) else reason_of(error)
