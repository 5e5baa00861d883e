"""The end of an upload: the store completes the object, then one transaction publishes it as every upload.

Both steps may be repeated and raced: the store tells that it has the object, and only one publication finds the upload
`finishing`.
"""

import uuid
from dataclasses import dataclass

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session

from vault.core.db import count_changed, db_now, run
from vault.core.errors import (
    Busy,
    Forbidden,
    InstallationMismatch,
    IntegrityFailed,
    NotFound,
    PartsLost,
    StorageError,
    UploadGone,
    UploadInterrupted,
    UploadLocked,
    UploadRefused,
)
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.encryption.errors import AuthenticationFailed, KeyUnavailable, KeyUnwrapFailed
from vault.encryption.header import ContentDigest
from vault.encryption.staging import Kind, Place
from vault.files.models import Entry
from vault.files.upload import Uploads
from vault.objects.build import Objects
from vault.objects.holds import RETIRED
from vault.objects.models import ObjectState, SealedObject, StorageAccount
from vault.objects.publishing import ParkedObject
from vault.objects.shredding import TransitionLost
from vault.resumable.ending import KEPT, Ending
from vault.resumable.metadata import Metadata
from vault.resumable.models import ResumableUpload as Upload
from vault.resumable.models import UploadPart, UploadState
from vault.storage import StoredPart, object_key

log = structlog.get_logger(__name__)


class _Finished(ParkedObject):
    """An object whose publication ends its upload, in the same transaction."""

    upload_id: uuid.UUID
    values: dict[str, object]

    def become(self, session: Session, entry_id: uuid.UUID, version_no: int) -> None:
        super().become(session, entry_id, version_no)
        finishing = (Upload.id == self.upload_id, Upload.state == UploadState.FINISHING)
        if not count_changed(session, sa.update(Upload).where(*finishing).values(self.values)):
            raise TransitionLost


@dataclass(frozen=True, slots=True)
class Finishing:
    core: Core
    objects: Objects
    uploads: Uploads
    ending: Ending

    def finish(self, principal: Principal, upload: Upload) -> Upload:
        """Complete and publish an upload that is `finishing`; return it as it is then.

        Raises UploadGone if it has ended, and UploadRefused, Forbidden or UploadInterrupted if it ends now. After
        UploadLocked and the errors of keys, store and database it can be repeated.
        """
        file, parts = self._read(upload)
        if file is None:
            return self.as_it_is(upload)
        # Since the upload began, another copy of the database may have become the store's owner.
        self.objects.installation.require()
        key = object_key(file.object_id)
        try:
            self.objects.store.complete(key, upload.store_handle or "", parts)
            self._publish(principal, upload, file)
        except PartsLost as exc:
            if self._is_being_completed(upload):
                raise UploadLocked from exc
            self.ending.fail(principal, upload, "parts_lost")
            raise UploadInterrupted from exc
        except (KeyUnavailable, KeyUnwrapFailed, AuthenticationFailed, IntegrityFailed) as exc:
            if isinstance(exc, KeyUnavailable) and exc.reason != RETIRED:
                # Another process may have the key, or an operator may give it back.
                raise
            self.ending.fail(principal, upload, "key")
            raise UploadRefused from exc
        except TransitionLost:
            if self._may_store(upload.owner_id):
                return self.as_it_is(upload)
            self.ending.fail(principal, upload, "disabled")
            raise Forbidden("This account may not store files.") from None
        finished = self.as_it_is(upload)
        if finished.store_handle is not None:
            self.sweep(finished)
        return finished

    def as_it_is(self, upload: Upload) -> Upload:
        """Read an upload again. Raises NotFound, UploadGone."""
        with self.core.sessions.begin() as session:
            now = session.get(Upload, upload.id)
        if now is None:
            raise NotFound
        if now.state == UploadState.GONE:
            raise UploadGone
        return now

    def file_of(self, upload: Upload) -> uuid.UUID:
        """Return the file that an upload has become.

        Raises UploadGone if it was deleted since: when the same file is sent again, Uppy asks for the upload of before,
        and takes a complete one for a success.
        """
        find = sa.select(Entry.id).join(SealedObject, SealedObject.entry_id == Entry.id)
        with self.core.sessions.begin() as session:
            file_id = session.scalar(find.where(SealedObject.id == upload.object_row))
        if file_id is None:
            raise UploadGone
        return file_id

    def sweep(self, upload: Upload) -> None:
        """Remove what a finished upload has left beside its object."""
        with self.core.sessions.begin() as session:
            object_id = session.scalar(sa.select(SealedObject.object_id).where(SealedObject.id == upload.object_row))
        try:
            if object_id is not None:
                self.objects.installation.require()
                self.objects.store.delete_pieces(object_key(object_id))
        except (StorageError, InstallationMismatch, Busy) as exc:
            # A task tries again.
            log.warning("pieces_not_removed", exc_info=exc)
            return
        with self.core.sessions.begin() as session:
            run(session, sa.update(Upload).where(Upload.id == upload.id).values(store_handle=None))

    def _publish(self, principal: Principal, upload: Upload, file: SealedObject) -> None:
        assert upload.length is not None
        assert upload.sealed_final is not None
        staging = self.objects.reader.unlock_parked(file)
        final = staging.open(Kind.FINAL, Place(upload.length), upload.sealed_final)
        digest = ContentDigest(final[:32], int.from_bytes(final[32:], "big"))
        new = _Finished(self.core.sessions, file, staging.keys, upload.length, digest)
        new.upload_id = upload.id
        new.values = {
            "state": UploadState.DONE,
            "lease_until": None,
            "sealed_final": None,
            # A single request without pieces leaves nothing; otherwise the handle stays until `sweep`.
            "store_handle": None if upload.epoch <= 1 and not upload.next_piece else upload.store_handle,
            "expires_at": self.core.clock() + KEPT,
        }
        said = Metadata.parse(upload.metadata_header)
        self.uploads.publish(principal, new, said.name, said.content_type, file.modified_at, said.destination)

    def _read(self, upload: Upload) -> tuple[SealedObject | None, list[StoredPart]]:
        with self.core.sessions.begin() as session:
            file = session.scalar(
                sa.select(SealedObject).where(
                    SealedObject.id == upload.object_row, SealedObject.state == ObjectState.PENDING
                )
            )
            rows = session.scalars(
                sa.select(UploadPart).where(UploadPart.upload_id == upload.id).order_by(UploadPart.number)
            )
            return file, [StoredPart(row.number, row.etag, row.size) for row in rows]

    def _is_being_completed(self, upload: Upload) -> bool:
        """Return whether another request may be completing the object: some stores forget the parts before they show
        the object."""
        with self.core.sessions.begin() as session:
            is_live = sa.func.coalesce(Upload.lease_until > db_now(), sa.false())
            return session.scalar(sa.select(is_live).where(Upload.id == upload.id)) is True

    def _may_store(self, owner_id: uuid.UUID) -> bool:
        with self.core.sessions.begin() as session:
            may_store = sa.select(StorageAccount.may_store).where(StorageAccount.owner_id == owner_id)
            return session.scalar(may_store) is not False
