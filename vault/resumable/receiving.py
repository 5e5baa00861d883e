"""What a PATCH brings: quota, the fence and the key around the reception of its body."""

import uuid
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from vault.core.errors import (
    BadUploadHeader,
    OffsetMismatch,
    PartsLost,
    TooLarge,
    UploadInterrupted,
    UploadLocked,
)
from vault.core.principal import Principal
from vault.objects.build import Objects
from vault.observe.metrics import TRANSFERS, UPLOADS_RESUMED
from vault.resumable.ending import Ending
from vault.resumable.fence import Claim, Fence
from vault.resumable.finishing import Finishing
from vault.resumable.models import ResumableUpload as Upload
from vault.resumable.models import UploadState
from vault.resumable.reception import PatchBody, Progress, Reception
from vault.resumable.terms import Terms
from vault.storage import object_key


@dataclass(frozen=True, slots=True)
class Receiving:
    terms: Terms
    objects: Objects
    fence: Fence
    finishing: Finishing
    ending: Ending

    def append(
        self,
        principal: Principal,
        upload_id: uuid.UUID,
        body: PatchBody,
        *,
        offset: int,
        length: int | None = None,
    ) -> Progress:
        """Store a body that goes on at `offset`; `length` is that of the whole, if it was not known before.

        Raises NotFound, UploadGone, OffsetMismatch, TooLarge, QuotaExceeded, UploadInterrupted for a body that broke
        off or a client that came again, and the errors of publication, keys, store and database.
        """
        owner_id = principal.account_id
        with self.fence.taken(owner_id, upload_id) as claim:
            was_open = claim.upload.state == UploadState.OPEN
            if was_open:
                if offset != claim.upload.offset:
                    raise OffsetMismatch(claim.upload.offset)
                if offset:
                    UPLOADS_RESUMED.inc()
                progress = self._receive(principal, claim, body, length)
                if progress is not None:
                    return progress
        upload, file_id = self._finished(principal, self.finishing.as_it_is(claim.upload))
        if not was_open and (offset != upload.offset or body.declared != 0):
            raise OffsetMismatch(upload.offset)
        return Progress(upload.offset, upload.expires_at, file_id)

    def look(self, principal: Principal, upload_id: uuid.UUID) -> tuple[Upload, uuid.UUID | None]:
        """Return an upload without a live writer, and its file if it has become one. Raises as `append`."""
        return self._finished(principal, self.fence.settle(principal.account_id, upload_id))

    def _finished(self, principal: Principal, upload: Upload) -> tuple[Upload, uuid.UUID | None]:
        if upload.state == UploadState.FINISHING:
            upload = self.finishing.finish(principal, upload)
        if upload.state == UploadState.FINISHING:
            # All bytes are told of only when they are a file.
            raise UploadLocked
        return upload, self.finishing.file_of(upload) if upload.state == UploadState.DONE else None

    def _receive(self, principal: Principal, claim: Claim, body: PatchBody, length: int | None) -> Progress | None:
        """Return where the upload stands, None if its last byte has arrived."""
        self.objects.installation.require()
        upload = claim.upload
        if length is not None:
            self._set_length(claim, length)
        left = None if upload.length is None else upload.length - upload.offset
        if left is not None and (body.declared or 0) > left:
            raise TooLarge("The body is longer than what is left of this upload.")
        staging = self.objects.reader.unlock_parked(claim.file)
        key, store = object_key(claim.file.object_id), self.objects.store
        fail = partial(self.ending.fail, principal, upload)
        try:
            with (
                TRANSFERS.labels("in").track_inprogress(),
                closing(store.resume(key, upload.store_handle, part_size=upload.part_size)) as writer,
            ):
                return Reception(self.terms, self.objects, claim, staging, writer, body, fail).run()
        except PartsLost as exc:
            fail("parts_lost")
            raise UploadInterrupted from exc

    def _set_length(self, claim: Claim, length: int) -> None:
        upload = claim.upload
        if upload.length is not None:
            if upload.length != length:
                raise BadUploadHeader("Upload-Length cannot be changed.")
            return
        if length < upload.offset:
            raise BadUploadHeader("Upload-Length is less than what was received.")
        if length > self.terms.most_unknown_bytes:
            raise TooLarge
        self.terms.reserve(claim, length)
        if length > upload.offset:
            with self.terms.core.sessions.begin() as session:
                claim.change(session, length=length)
        # Otherwise this request finishes the upload: an open one never has all of its bytes.
        upload.length = length
