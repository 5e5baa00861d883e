"""What the settings allow an upload: its bytes, its quota and its time."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from vault.core.db import db_now
from vault.core.errors import QuotaExceeded
from vault.core.parts import Core
from vault.files.upload import Uploads
from vault.objects.shredding import TransitionLost
from vault.objects.writing import MOST_UNKNOWN_BYTES, reserve_more
from vault.resumable.fence import LEASE_SECONDS, Claim, EpochLost
from vault.resumable.models import LONGEST
from vault.resumable.models import ResumableUpload as Upload
from vault.settings import groups


@dataclass(frozen=True, slots=True)
class Terms:
    core: Core
    uploads: Uploads
    settings: groups.Files

    @property
    def most_unknown_bytes(self) -> int:
        """Return how long an upload may become whose length was not told at its creation."""
        return min(self.settings.max_upload_bytes, MOST_UNKNOWN_BYTES)

    def reserve(self, claim: Claim, size: int) -> None:
        """Have quota for so many bytes of an upload whose length was not told at its creation. Raises QuotaExceeded."""
        more = size - claim.file.reserved_bytes
        if more <= 0:
            return
        owner_id, row = claim.upload.owner_id, claim.file
        try:
            with self.core.sessions.begin() as session:
                quota = self.settings.default_quota_bytes
                reserve_more(session, owner_id, row.id, more, default_quota_bytes=quota)
                # A writer that is outrun would reserve what the publication does not know of.
                claim.change(session, lease_until=db_now(LEASE_SECONDS))
        except QuotaExceeded as exc:
            raise self.uploads.quota_exceeded(owner_id) from exc
        except TransitionLost as exc:
            raise EpochLost from exc
        row.reserved_bytes += more

    def expiry(self, upload: Upload) -> datetime:
        """Return when an upload ends that has got a byte now."""
        hours = timedelta(hours=self.settings.upload_expires_hours)
        return min(self.core.clock() + hours, upload.created_at + LONGEST)
