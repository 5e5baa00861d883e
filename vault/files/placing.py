"""Where a new entry goes, and what happens if its name is taken there. The caller holds the lock of the tree."""

import enum
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.core.db import run
from vault.core.errors import NameConflict
from vault.core.text import fold
from vault.files.models import Entry, EntryKind
from vault.files.names import MAX_LENGTH
from vault.files.tree import Folder
from vault.objects.models import SealedObject
from vault.objects.quota import count_folders

# A longer ending is not taken for a file's extension.
_MOST_EXTENSION: Final = 32
_NAMED: Final = sa.select(Entry).where(
    Entry.parent_id == sa.bindparam("parent"),
    Entry.name_folded == sa.bindparam("folded"),
    Entry.trashed_at.is_(None),
)
_IS_TAKEN: Final = sa.select(_NAMED.exists())


class OnConflict(enum.StrEnum):
    """What a taken name leads to: another name, a new version of the file that has it, or a refusal."""

    RENAME = "rename"
    VERSION = "version"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Content:
    """Facts of an object that becomes a file's content."""

    row_id: uuid.UUID
    content_type: str
    size_bytes: int
    modified_at: datetime
    created_at: datetime
    published_at: datetime


def find_named(session: Session, folder_id: uuid.UUID, name: str) -> Entry | None:
    """Return the entry of a folder with this name, in any case and form."""
    return session.scalar(_NAMED, {"parent": folder_id, "folded": fold(name)})


def free_name(session: Session, folder: Folder, name: str, *, is_folder: bool) -> str:
    """Return the name, or `name (2).ext` with a number that is free.

    Probes 2, 4, 8 … and bisects, since thousands of namesakes would be counted one by one. Raises TooDeep.
    """

    def is_taken(candidate: str) -> bool:
        return bool(run(session, _IS_TAKEN, parent=folder.id, folded=fold(candidate)).scalar())

    if is_taken(name):
        taken, free = 1, 2
        while is_taken(numbered(name, free, is_folder=is_folder)):
            taken, free = free, free * 2
        while free - taken > 1:
            middle = (taken + free) // 2
            if is_taken(numbered(name, middle, is_folder=is_folder)):
                taken = middle
            else:
                free = middle
        name = numbered(name, free, is_folder=is_folder)
    folder.require_room(name)
    return name


def numbered(name: str, number: int, *, is_folder: bool) -> str:
    """Return `name (2).ext`, the stem cut so that it fits."""
    dot = -1 if is_folder else name.rfind(".")
    has_extension = dot > 0 and len(name) - dot <= _MOST_EXTENSION
    stem, extension = (name[:dot], name[dot:]) if has_extension else (name, "")
    ending = f" ({number}){extension}"
    return stem[: MAX_LENGTH - len(ending)] + ending


def require_free(session: Session, folder: Folder, name: str, *, but: uuid.UUID | None = None) -> None:
    """Raise NameConflict if another entry than `but` has the name, and TooDeep."""
    found = find_named(session, folder.id, name)
    if found is not None and found.id != but:
        raise NameConflict
    folder.require_room(name)


def find_target(session: Session, folder: Folder, name: str, on_conflict: OnConflict) -> Entry | None:
    """Return the file whose next version an upload becomes; None if it becomes a new file.

    Raises NameConflict where the policy refuses the name: `version` takes a file of exactly this name only.
    """
    if on_conflict is OnConflict.RENAME:
        return None
    found = find_named(session, folder.id, name)
    if found is None:
        return None
    if on_conflict is OnConflict.FAIL or found.kind != EntryKind.FILE or found.name != name:
        raise NameConflict
    return found


def add_file(session: Session, owner_id: uuid.UUID, folder: Folder, name: str, content: Content) -> Entry:
    """Make a file of a free name; its id is that of its first object's row."""
    entry = Entry(
        id=content.row_id,
        owner_id=owner_id,
        parent_id=folder.id,
        kind=EntryKind.FILE,
        name=name,
        name_folded=fold(name),
        content_type=content.content_type,
        size_bytes=content.size_bytes,
        current_id=content.row_id,
        last_version_no=1,
        modified_at=content.modified_at,
        created_at=content.created_at,
        updated_at=content.published_at,
    )
    session.add(entry)
    return entry


def add_version(session: Session, entry: Entry, content: Content) -> int:
    """Make an object the current content of a file; return its number."""
    supersede(session, entry, content.row_id, content.published_at)
    entry.current_id = content.row_id
    entry.content_type = content.content_type
    entry.size_bytes = content.size_bytes
    entry.last_version_no += 1
    entry.version += 1
    entry.modified_at = content.modified_at
    entry.updated_at = content.published_at
    session.flush()
    return entry.last_version_no


def supersede(session: Session, entry: Entry, by: uuid.UUID, now: datetime) -> None:
    """Mark a file's current object as replaced by another, both locked in the order in which a rewrap locks rows."""
    both = sa.select(SealedObject.id).where(SealedObject.id.in_([entry.current_id, by]))
    session.execute(both.order_by(SealedObject.id).with_for_update(key_share=True))
    run(session, sa.update(SealedObject).where(SealedObject.id == entry.current_id).values(superseded_at=now))


def object_id_of(session: Session, entry: Entry) -> uuid.UUID | None:
    """Return the id of a file's current object, its content's ETag."""
    return session.scalar(sa.select(SealedObject.object_id).where(SealedObject.id == entry.current_id))


def add_folder(
    session: Session, owner_id: uuid.UUID, parent_id: uuid.UUID, name: str, *, now: datetime, most: int | None = None
) -> Entry:
    """Make a folder of a free name, and count it; the caller has locked the account. Raises TooManyFiles."""
    count_folders(session, owner_id, 1, most=most)
    entry = Entry(
        id=uuid.uuid4(),
        owner_id=owner_id,
        parent_id=parent_id,
        kind=EntryKind.FOLDER,
        name=name,
        name_folded=fold(name),
        version=1,
        modified_at=now,
        created_at=now,
        updated_at=now,
    )
    session.add(entry)
    session.flush()
    return entry
