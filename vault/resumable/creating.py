"""New uploads: reserved as every upload is, and parked."""

from dataclasses import dataclass

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.errors import QuotaExceeded
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.encryption.running_hash import RunningHash
from vault.files.upload import Uploads
from vault.objects.build import Objects
from vault.objects.writing import MOST_UNKNOWN_BYTES
from vault.resumable.metadata import Metadata
from vault.resumable.models import ResumableUpload as Upload
from vault.resumable.terms import Terms


@dataclass(frozen=True, slots=True)
class Creating:
    core: Core
    objects: Objects
    uploads: Uploads
    terms: Terms
    most_parked: int
    audit: AuditService

    def create(self, principal: Principal, metadata: Metadata, length: int | None) -> Upload:
        """Make an upload of `length` bytes, None if that is told later.

        Raises the errors of a reservation and of a destination, and HashStateUnavailable.
        """
        # Nothing is reserved where it could not go on.
        RunningHash()
        owner_id = principal.account_id
        self.uploads.require_place(owner_id, metadata.name, metadata.destination)
        bounds = None if length is None else (length, length)
        try:
            with self.objects.new.reserving(
                owner_id, bounds, metadata.content_type, metadata.modified_at, most_parked=self.most_parked
            ) as (session, new):
                upload = Upload(
                    object_row=new.row_id,
                    owner_id=owner_id,
                    length=length,
                    part_size=new.geometry(MOST_UNKNOWN_BYTES if length is None else length).part_size,
                    metadata_header=metadata.header,
                    folder_id=metadata.destination.folder_id,
                    on_conflict=metadata.destination.on_conflict,
                    created_at=new.created_at,
                )
                upload.expires_at = self.terms.expiry(upload)
                session.add(upload)
                # Its id is in the event.
                session.flush()
                self.audit.record(
                    session, principal, Action.UPLOAD_CREATED, target=("upload", upload.id), size_bytes=length
                )
        except QuotaExceeded as exc:
            raise self.uploads.quota_exceeded(owner_id) from exc
        return upload
