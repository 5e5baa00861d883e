"""Ends of uploads without a file: by their sender, by time, or for a reason that no new try would change."""

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from vault.audit.models import Action, Outcome
from vault.audit.service import AuditService
from vault.core.db import count_changed, db_now, run
from vault.core.errors import Busy, InstallationMismatch, NotFound, StorageError
from vault.core.parts import Core
from vault.core.principal import WORKER, Principal
from vault.objects.build import Objects
from vault.objects.models import ObjectState, SealedObject
from vault.objects.shredding import TransitionLost, shred_pending
from vault.resumable.fence import COMPLETES_SECONDS, LEASE_SECONDS, Fence
from vault.resumable.models import ResumableUpload as Upload
from vault.resumable.models import UploadPart, UploadPiece, UploadState
from vault.storage import object_key

# An ended upload is told of for so long.
KEPT: Final = timedelta(days=1)
_TRIES: Final = 3

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ending:
    """`remove_later` removes a shredded object by its row."""

    core: Core
    objects: Objects
    fence: Fence
    remove_later: Callable[[uuid.UUID], None]
    audit: AuditService

    def end(self, principal: Principal, upload_id: uuid.UUID) -> None:
        """End an upload of the principal; one that has become a file stays a file. Raises NotFound, UploadGone."""
        upload = self.fence.settle(principal.account_id, upload_id)
        if upload.state == UploadState.DONE:
            # One that has left something in the store stays until that is swept.
            swept = (Upload.id == upload.id, Upload.state == UploadState.DONE, Upload.store_handle.is_(None))
            with self.core.sessions.begin() as session:
                run(session, sa.delete(Upload).where(*swept))
            return
        self._end(upload, principal, Action.UPLOAD_ENDED)

    def fail(self, principal: Principal, upload: Upload, reason: str) -> None:
        """End an upload that cannot become a file, unless another writer has taken it over: what this one misses, such
        as a piece, that one may have used."""
        still = Upload.epoch == upload.epoch
        if self._end(upload, principal, Action.UPLOAD_ENDED, still, outcome=Outcome.FAILED, reason=reason):
            log.warning("upload_failed", upload_id=str(upload.id), reason=reason)

    def expire(self, upload: Upload) -> bool:
        """End an upload whose time is over; return whether it was still there."""
        return self._end(upload, WORKER, Action.UPLOAD_EXPIRED, Upload.expires_at == upload.expires_at)

    def _end(
        self, upload: Upload, principal: Principal, action: Action, *where: sa.ColumnElement[bool], **facts: Any
    ) -> bool:
        for _ in range(_TRIES):
            try:
                with self.core.sessions.begin() as session:
                    file = self._end_in(session, upload, where, facts.get("reason"))
                    self.audit.record(session, principal, action, target=("upload", upload.id), **facts)
            except TransitionLost:
                # It has reserved more bytes meanwhile, or it has ended.
                continue
            except NotFound:
                return False
            self._sweep(file)
            self.remove_later(file.id)
            return True
        return False

    def _end_in(
        self, session: Session, upload: Upload, where: tuple[sa.ColumnElement[bool], ...], reason: str | None
    ) -> SealedObject:
        """Raise NotFound if the upload has ended otherwise, TransitionLost if its object changed in between."""
        file = session.scalar(
            sa.select(SealedObject).where(
                SealedObject.id == upload.object_row, SealedObject.state == ObjectState.PENDING
            )
        )
        if file is None:
            raise NotFound
        was_written = bool(session.scalar(sa.select(_is_written()).where(Upload.id == upload.id)))
        # The account's row is locked by this, before the upload's.
        shred_pending(session, file, end_lease=True)
        if was_written:
            # Its writer, or the store, may be at work yet, so that the object is removed when that is surely over.
            seconds = COMPLETES_SECONDS if upload.state == UploadState.FINISHING else LEASE_SECONDS
            late = sa.update(SealedObject).where(SealedObject.id == file.id).values(lease_until=db_now(seconds))
            run(session, late)
        unended = (Upload.id == upload.id, Upload.state.in_([UploadState.OPEN, UploadState.FINISHING]), *where)
        ended = count_changed(
            session,
            sa.update(Upload)
            .where(*unended)
            .values(
                state=UploadState.GONE,
                reason=reason,
                epoch=Upload.epoch + 1,
                lease_until=None,
                stop_epoch=None,
                metadata_header="",
                folder_id=None,
                sealed_state=None,
                sealed_part_state=None,
                sealed_final=None,
                store_handle=None,
                expires_at=self.core.clock() + KEPT,
            ),
        )
        if not ended:
            raise TransitionLost
        for table in (UploadPart, UploadPiece):
            run(session, sa.delete(table).where(table.upload_id == upload.id))
        return file

    def _sweep(self, file: SealedObject) -> None:
        self.objects.reader.evict(file.object_id)
        try:
            # In a copy of the database, this upload may go on in the original.
            self.objects.installation.require()
            self.objects.store.delete_pieces(object_key(file.object_id))
        except (StorageError, InstallationMismatch, Busy) as exc:
            # The reaper removes them with the object.
            log.warning("pieces_not_removed", file_id=str(file.id), exc_info=exc)


def forget_uploads(session: Session, owner_ids: Collection[uuid.UUID]) -> None:
    """Remove the uploads of closed accounts; their objects are shredded, and the reaper removes what is stored: that of
    a writer when it is surely over."""
    of_owners = Upload.owner_id.in_(owner_ids)
    written = sa.select(Upload.object_row).where(of_owners, _is_written())
    late = sa.update(SealedObject).where(SealedObject.id.in_(written)).values(lease_until=db_now(COMPLETES_SECONDS))
    run(session, late)
    run(session, sa.delete(Upload).where(of_owners))


def _is_written() -> sa.ColumnElement[bool]:
    """Match an upload whose writer is at work, or was asked to give way and did not."""
    return sa.or_(sa.func.coalesce(Upload.lease_until > db_now(), sa.false()), Upload.stop_epoch.is_not(None))
