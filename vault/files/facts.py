"""File metadata for clients."""

import uuid
from dataclasses import dataclass
from datetime import datetime

from vault.encryption.errors import HeaderInvalid
from vault.encryption.header import Header
from vault.files.names import sendable_content_type
from vault.objects.models import File


@dataclass(frozen=True, slots=True)
class FileInfo:
    """File metadata as shown to its owner and to administrators. `sha256`, in hex, is None if not requested or without
    key, `cipher` if the row's header is damaged."""

    id: uuid.UUID
    owner_id: uuid.UUID
    name: str
    content_type: str
    size: int
    created_at: datetime
    updated_at: datetime
    object_id: uuid.UUID
    version: int
    cipher: str | None
    key_provider: str
    sha256: str | None = None


def info_of(row: File) -> FileInfo:
    """Return what clients may know of a ready row."""
    assert row.size_bytes is not None
    return FileInfo(
        id=row.id,
        owner_id=row.owner_id,
        name=row.name,
        content_type=sendable_content_type(row.content_type),
        size=row.size_bytes,
        created_at=row.created_at,
        updated_at=row.updated_at,
        object_id=row.object_id,
        version=row.version,
        cipher=_cipher(row.header),
        key_provider=row.key_provider,
    )


def _cipher(header: bytes) -> str | None:
    """One damaged row must not break the list that its owner needs to delete it."""
    try:
        return Header.parse(header).suite.cipher_name
    except HeaderInvalid:
        return None
