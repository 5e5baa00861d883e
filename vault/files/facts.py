"""Facts of files and folders for clients."""

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vault.encryption.errors import HeaderInvalid
from vault.encryption.header import Header
from vault.files.models import Entry
from vault.files.names import sendable_content_type
from vault.files.tree import Path
from vault.objects.models import SealedObject


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FolderInfo:
    """A folder as shown to its owner. `path` has the folders above, from the top."""

    id: uuid.UUID
    kind: str
    name: str
    parent_id: uuid.UUID | None
    path: Path = ()
    version: int
    modified_at: datetime
    created_at: datetime
    updated_at: datetime
    trashed_at: datetime | None
    restore_parent_id: uuid.UUID | None
    restore_path: list[str] | None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FileInfo(FolderInfo):
    """A file as shown to its owner and, without its place, to administrators. `sha256`, in hex, is None if not
    requested or without key, `cipher` if the row's header is damaged."""

    owner_id: uuid.UUID
    content_type: str
    size: int
    version_no: int
    object_id: uuid.UUID
    cipher: str | None
    key_provider: str
    sha256: str | None = None


EntryInfo = FolderInfo | FileInfo


def info_of_folder(entry: Entry, path: Path = ()) -> FolderInfo:
    """Return what its owner may know of a folder."""
    return FolderInfo(**common_facts(entry, path))


def info_of(entry: Entry, row: SealedObject, path: Path = ()) -> FileInfo:
    """Return what its owner may know of a file with this current object."""
    assert row.size_bytes is not None
    return FileInfo(
        **common_facts(entry, path),
        owner_id=entry.owner_id,
        content_type=sendable_content_type(row.content_type),
        size=row.size_bytes,
        version_no=row.version_no,
        object_id=row.object_id,
        cipher=_cipher(row.header),
        key_provider=row.key_provider,
    )


def common_facts(entry: Entry, path: Path) -> dict[str, Any]:
    """Return what files and folders have in common."""
    return {
        "id": entry.id,
        "kind": entry.kind,
        "name": entry.name,
        "parent_id": entry.parent_id,
        "path": path,
        "version": entry.version,
        "modified_at": entry.modified_at,
        "created_at": entry.created_at,
        "updated_at": entry.updated_at,
        "trashed_at": entry.trashed_at,
        "restore_parent_id": entry.restore_parent_id,
        "restore_path": entry.restore_path,
    }


def _cipher(header: bytes) -> str | None:
    """One damaged row must not break the list that its owner needs to delete it."""
    try:
        return Header.parse(header).suite.cipher_name
    except HeaderInvalid:
        return None
