"""Copies of files: a new object under a new key, streamed and verified on its way, that counts like an upload."""

from dataclasses import dataclass
from datetime import datetime

from vault.audit.models import Action
from vault.core.principal import Principal
from vault.files.download import Downloads, FoundFile
from vault.files.facts import FileInfo
from vault.files.upload import Destination, Uploads
from vault.objects.reading import Pieces


class _Source:
    """A stored file as what an upload reads."""

    def __init__(self, found: FoundFile, name: str, sha256: bytes, pieces: Pieces) -> None:
        self.name = name
        self.content_type = found.info.content_type
        self.bounds = (found.info.size, found.info.size)
        self.modified_at: datetime | None = found.info.modified_at
        self.expected_sha256: bytes | None = sha256
        self.read = pieces.read


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies of files, made for their owners."""

    downloads: Downloads
    uploads: Uploads

    def copy(self, principal: Principal, found: FoundFile, name: str | None, destination: Destination) -> FileInfo:
        """Copy the content of a file of the principal to a folder, under its own name or another.

        Raises the errors of downloads and of uploads; a damaged file is not copied.
        """
        with self.downloads.integrity.watched(principal, found.stored):
            unlocked = self.downloads.reader.unlock(found.stored)
            pieces, close = self.downloads.reader.open(found.stored, unlocked)
            try:
                source = _Source(found, name or found.info.name, unlocked.sha256, Pieces(pieces))
                return self.uploads.upload(principal, source, destination, action=Action.FILE_COPIED)
            finally:
                close()
