"""Gives files a new data key and a new object: after a master key leaked, or for another cipher.

A copy is written like an upload, to a leased pending row without an owner. One transaction then exchanges the objects
of the two rows. The old object is removed an hour later, so that running downloads can end.
"""

import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.db import count_changed, db_now
from vault.core.errors import (
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
from vault.keys.bulk import GIVE_UP_AFTER, patiently
from vault.keys.usage import KeyUsage, reason_of
from vault.objects.build import Objects
from vault.objects.models import ObjectState, SealedObject
from vault.objects.reading import Pieces, StoredFile, Unlocked, find_ready
from vault.objects.rows import rows_by_id
from vault.objects.shredding import TransitionLost, lock_account
from vault.objects.writing import NO_OWNER, NewObject

_KEEP_OLD_SECONDS: Final = 60 * 60
_TRIES: Final = 3


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
    """`gone`: deleted, or given another object by another process, meanwhile."""

    done: int = 0
    gone: int = 0
    failed: int = 0


@dataclass
class Reencryptor:
    core: Core
    objects: Objects
    keys: KeyRing
    usage: KeyUsage
    audit: AuditService
    sleep: Callable[[float], None] = time.sleep

    def plan(self, selection: Selection) -> tuple[int, int]:
        """Return how many versions of files that are, and their plaintext bytes.

        Raises KeyInUse if they are those of a master key that is still the primary: it would wrap the new data keys.
        """
        if selection.key_ref is not None and ("local", selection.key_ref) == self.usage.primary():
            raise KeyInUse(
                "This key is the primary and would wrap the new data keys too. Make another key the primary."
            )
        with self.core.sessions.begin() as session:
            query = sa.select(sa.func.count(), sa.func.sum(SealedObject.size_bytes)).where(*self._selected(selection))
            count, size = session.execute(query).one()
        return count, int(size or 0)

    def count_missing(self, file_ids: Collection[uuid.UUID]) -> int:
        """Return how many of these ids are those of no file."""
        ready = (SealedObject.entry_id.in_(file_ids), SealedObject.state == ObjectState.READY)
        with self.core.sessions.begin() as session:
            found = session.scalar(sa.select(sa.func.count(SealedObject.entry_id.distinct())).where(*ready))
        return len(set(file_ids)) - (found or 0)

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
        self.objects.installation.raise_epoch()
        self.usage.require_primary()
        self.usage.require_everywhere()
        report, unreachable = ReencryptReport(), 0
        # Only ids are read ahead: what a file is may change while those before it are copied.
        selected = sa.select(SealedObject.id, SealedObject.entry_id).where(*self._selected(selection))
        for row_id, file_id in rows_by_id(self.core.sessions, selected):
            try:
                self._reencrypt(row_id, selection.suite, principal, progress)
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
        self, row_id: uuid.UUID, suite: Suite, principal: Principal, progress: Callable[[int], None]
    ) -> None:
        """Raises NotFound if it has gone, TransitionLost if its key was changed each time that it was tried."""
        first = file = find_ready(self.core.sessions, row_id)
        for _ in range(_TRIES):
            try:
                self._try(file, suite, principal, progress)
                return
            except TransitionLost:
                pass
            except (IntegrityFailed, KeyUnwrapFailed) as exc:
                self.objects.integrity.report(principal, file, _reason(exc))
                raise
            # Meanwhile its key was rewrapped, or it was deleted, or another process reencrypted it.
            file = find_ready(self.core.sessions, row_id)
            if file.object_id != first.object_id:
                raise NotFound
        raise TransitionLost

    def _try(self, file: StoredFile, suite: Suite, principal: Principal, progress: Callable[[int], None]) -> None:
        unlocked = patiently(lambda: self.objects.reader.unlock(file), sleep=self.sleep)
        new = patiently(lambda: self.objects.new.reserve_copy(suite, file.size_bytes), sleep=self.sleep)
        with new.held():
            self._copy(file, unlocked, new, progress)
            self._swap(file, new, principal)

    def _copy(self, file: StoredFile, unlocked: Unlocked, new: NewObject, progress: Callable[[int], None]) -> None:
        """Stream the verified plaintext into the new object."""
        pieces, close = self.objects.reader.open(file, unlocked)
        try:
            new.append(Pieces(pieces, progress).read)
        finally:
            close()
        if new.sha256() != unlocked.sha256:
            raise IntegrityFailed("digest")
        new.complete()

    def _swap(self, file: StoredFile, new: NewObject, principal: Principal) -> None:
        try:
            with self.core.sessions.begin() as session:
                old, ref, target = file.key.key_ref, self._exchange(session, file, new), ("file", file.file_id)
                self.audit.record(session, principal, Action.FILE_REENCRYPTED, target=target, from_ref=old, to_ref=ref)
        except DBAPIError:
            # The commit may have succeeded unseen; the row says which it was.
            if not self._is_swapped(file, new):
                raise

    def _exchange(self, session: Session, file: StoredFile, new: NewObject) -> str:
        """Give the file the new object and a shredded row the old one; return the ref that wraps the new key."""
        lock_account(session, file.owner_id)
        # Both rows in the order in which rewrapping locks them, or the two would wait for each other.
        rows = session.scalars(
            sa.select(SealedObject)
            .where(SealedObject.id.in_([new.row_id, file.row_id]))
            .order_by(SealedObject.id)
            .with_for_update()
        ).all()
        # The pending row's key as it is now: it may have been rewrapped while the object was being written.
        pending = next((row for row in rows if row.id == new.row_id and row.state == ObjectState.PENDING), None)
        if pending is None or not session.scalar(
            sa.select(SealedObject.lease_until > db_now()).where(SealedObject.id == new.row_id)
        ):
            raise TransitionLost
        key = WrappedKey(pending.key_provider, pending.key_ref, pending.encrypted_data_key or "")
        session.delete(pending)
        session.flush()
        swapped = count_changed(
            session,
            sa.update(SealedObject)
            .where(
                SealedObject.id == file.row_id,
                SealedObject.object_id == file.object_id,
                SealedObject.encrypted_data_key == file.key.blob,
                SealedObject.state == ObjectState.READY,
            )
            .values(
                object_id=new.object_id,
                header=new.header.to_bytes(),
                encrypted_data_key=key.blob,
                key_provider=key.provider,
                key_ref=key.key_ref,
                wrapped_at=pending.wrapped_at,
                object_size_bytes=new.geometry(file.size_bytes).object_size,
                sealed_digest=new.sealed_digest(file.file_id, file.owner_id),
            ),
        )
        if swapped != 1:
            raise TransitionLost
        session.add(_old_object(file, self.core.clock()))
        return key.key_ref

    def _is_swapped(self, file: StoredFile, new: NewObject) -> bool:
        with self.core.sessions.begin() as session:
            swapped = sa.exists().where(SealedObject.id == file.row_id, SealedObject.object_id == new.object_id)
            return bool(session.scalar(sa.select(swapped)))

    def _selected(self, selection: Selection) -> list[sa.ColumnElement[bool]]:
        where: list[sa.ColumnElement[bool]] = []
        if selection.file_ids:
            where.append(SealedObject.entry_id.in_(selection.file_ids))
        if selection.key_ref is not None:
            # As the index has it: a ref is looked up by provider.
            where += [
                SealedObject.key_provider.in_(sorted(self.keys.providers)),
                SealedObject.key_ref == selection.key_ref,
            ]
        if selection.wrapped_before is not None:
            where.append(SealedObject.wrapped_at < selection.wrapped_before)
        if not where:
            # The header's byte 9 names the suite (docs/object-format.md, "Header").
            where.append(sa.func.substr(SealedObject.header, 10, 1) != bytes([selection.suite]))
        return [SealedObject.state == ObjectState.READY, SealedObject.encrypted_data_key.is_not(None), *where]


def _old_object(file: StoredFile, now: datetime) -> SealedObject:
    """Return a shredded row for the object that a file had."""
    return SealedObject(
        id=uuid.uuid4(),
        entry_id=file.file_id,
        owner_id=NO_OWNER,
        content_type="",
        state=ObjectState.SHREDDED,
        object_id=file.object_id,
        header=file.header,
        encrypted_data_key=None,
        key_provider=file.key.provider,
        key_ref=file.key.key_ref,
        wrapped_at=now,
        # The reaper removes the object when this has passed.
        lease_until=db_now(_KEEP_OLD_SECONDS),
        modified_at=now,
        created_at=now,
    )


def _reason(error: VaultError | TransitionLost) -> str:
    return "changed_meanwhile" if isinstance(error, TransitionLost) else reason_of(error)
