"""Uploads of files: reserve, append, publish (`vault.objects.writing`)."""

from typing import Protocol

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.errors import DigestMismatch, Unauthorized, UploadLost
from vault.core.principal import Principal
from vault.core.text import fold
from vault.files.facts import FileInfo
from vault.objects.shredding import TransitionLost
from vault.objects.writing import NewObject, NewObjects
from vault.observe.metrics import CONTENT_BYTES, TRANSFERS
from vault.storage import DiskReserve


class Incoming(Protocol):
    """A client's body. `read(n)` returns at most n bytes, b"" at the end, and raises for a body that is cut short.

    `bounds` are the least and the most bytes by the client's declaration; None without one.
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


class Uploads:
    """Stores files for their owners."""

    def __init__(self, objects: NewObjects, room: DiskReserve, *, audit: AuditService) -> None:
        self._objects = objects
        self._room = room
        self._audit = audit
        self.max_bytes = objects.limits.max_upload_bytes

    def upload(self, principal: Principal, incoming: Incoming) -> FileInfo:
        """Store one file. Raises TooLarge, QuotaExceeded, TooManyFiles, TooManyUploads, UploadTruncated,
        DigestMismatch, UploadLost, and the errors of keys, store and database; then nothing stays visible, reserved or
        counted, unless DatabaseUnavailable says that the file may have been stored.
        """

        def read(length: int) -> bytes:
            # Other uploads and programs fill the disk meanwhile.
            self._room.require()
            piece = incoming.read(length)
            CONTENT_BYTES.labels("in").inc(len(piece))
            return piece

        if principal.user_id is None:
            raise Unauthorized
        new = self._objects.reserve(
            principal.user_id,
            incoming.bounds,
            name=incoming.name,
            name_folded=fold(incoming.name),
            content_type=incoming.content_type,
        )
        try:
            with new.held(), TRANSFERS.labels("in").track_inprogress():
                new.append(read)
                sha256 = new.sha256()
                if incoming.expected_sha256 not in (None, sha256):
                    raise DigestMismatch
                with new.publish() as session:
                    target = ("file", new.row_id)
                    size = new.size_bytes
                    self._audit.record(session, principal, Action.FILE_UPLOADED, target=target, size_bytes=size)
        except TransitionLost as exc:
            raise UploadLost from exc
        return _info_of(new, incoming, sha256)


def _info_of(new: NewObject, incoming: Incoming, sha256: bytes) -> FileInfo:
    return FileInfo(
        id=new.row_id,
        owner_id=new.owner_id,
        name=incoming.name,
        content_type=incoming.content_type,
        size=new.size_bytes,
        created_at=new.created_at,
        updated_at=new.updated_at,
        object_id=new.object_id,
        version=1,
        cipher=new.header.suite.cipher_name,
        key_provider=new.wrapped.provider,
        sha256=sha256.hex(),
    )
