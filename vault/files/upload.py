"""Uploads of files: reserve, append, publish (`vault.objects.writing`)."""

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Final, Protocol

from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.errors import (
    DigestMismatch,
    InTrash,
    NameConflict,
    NotAFolder,
    NotFound,
    PreconditionFailed,
    QuotaExceeded,
    TooDeep,
    UploadLost,
)
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.files.facts import FileInfo, common_facts
from vault.files.models import Entry, EntryKind
from vault.files.placing import Content, OnConflict, add_file, add_version, find_target, free_name, object_id_of
from vault.files.tree import Folder, Tops, find_folder, find_live, find_tops, lock_tree
from vault.files.usage import files_usage_of
from vault.objects.publishing import PendingObject
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
    def modified_at(self) -> datetime | None: ...
    @property
    def expected_sha256(self) -> bytes | None: ...

    def read(self, length: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Destination:
    """The folder of an upload, None for the root, and what a taken name leads to."""

    folder_id: uuid.UUID | None = None
    on_conflict: OnConflict = OnConflict.RENAME


HOME: Final = Destination()


@dataclass(frozen=True, slots=True, repr=False)
class _Placed:
    """A file with the folder that it is in, and the number of its new version."""

    entry: Entry
    folder: Folder
    version_no: int


_Place = Callable[[Session, Tops, Content], _Placed]


class Uploads:
    """Stores files for their owners."""

    def __init__(self, core: Core, objects: NewObjects, room: DiskReserve, *, audit: AuditService) -> None:
        self._core = core
        self._objects = objects
        self._room = room
        self._audit = audit
        self.max_bytes = objects.limits.max_upload_bytes

    def upload(
        self,
        principal: Principal,
        incoming: Incoming,
        destination: Destination = HOME,
        *,
        action: Action = Action.FILE_UPLOADED,
    ) -> FileInfo:
        """Store one file. If its folder is gone at the end, the file goes to the root, by a free name.

        Raises TooLarge, QuotaExceeded, TooManyFiles, TooManyUploads, UploadTruncated, DigestMismatch, UploadLost,
        NotFound, NotAFolder, InTrash, NameConflict, TooDeep, and the errors of keys, store and database; then nothing
        stays visible, reserved or counted, unless DatabaseUnavailable says that the file may have been stored.
        """
        owner_id = principal.account_id
        # Before the body is read; it is decided when the file is published.
        self.require_place(owner_id, incoming.name, destination)
        return self._store(principal, incoming, partial(_place, owner_id, incoming.name, destination), action)

    def require_place(self, owner_id: uuid.UUID, name: str, destination: Destination) -> None:
        """Raise NotFound, NotAFolder, InTrash, NameConflict or TooDeep if a file of this name cannot go there now."""
        if destination == HOME:
            return
        with self._core.sessions.begin() as session:
            folder = find_folder(session, owner_id, destination.folder_id, find_tops(session, owner_id))
            if find_target(session, folder, name, destination.on_conflict) is None:
                folder.require_room(name)

    def publish(
        self,
        principal: Principal,
        new: PendingObject,
        name: str,
        content_type: str,
        modified_at: datetime,
        destination: Destination,
    ) -> None:
        """Publish an object that arrived over several requests. What came into its way meanwhile leads to another name
        or to the root. Raises TransitionLost if its row has ended."""
        place = partial(_place_late, new.owner_id, name, destination)
        self._publish(principal, new, content_type, modified_at, place, Action.FILE_UPLOADED)

    def replace(
        self,
        principal: Principal,
        file_id: uuid.UUID,
        incoming: Incoming,
        *,
        contents: Collection[uuid.UUID] | None = None,
    ) -> FileInfo:
        """Store the next version of a file; None of `contents`, the object ids that may be replaced, stands for any.

        Raises as `upload`, and PreconditionFailed.
        """
        owner_id = principal.account_id

        def find(session: Session) -> tuple[Entry, Folder]:
            entry, folder = find_live(session, owner_id, file_id, EntryKind.FILE)
            if contents is not None and object_id_of(session, entry) not in contents:
                raise PreconditionFailed
            return entry, folder

        def place(session: Session, _tops: Tops, content: Content) -> _Placed:
            entry, folder = find(session)
            return _Placed(entry, folder, add_version(session, entry, content))

        with self._core.sessions.begin() as session:
            find(session)
        return self._store(principal, incoming, place, Action.FILE_VERSION_ADDED)

    def _store(self, principal: Principal, incoming: Incoming, place: _Place, action: Action) -> FileInfo:
        def read(length: int) -> bytes:
            # Other uploads and programs fill the disk meanwhile.
            self._room.require()
            piece = incoming.read(length)
            CONTENT_BYTES.labels("in").inc(len(piece))
            return piece

        owner_id = principal.account_id
        try:
            new = self._objects.reserve(owner_id, incoming.bounds, incoming.content_type, incoming.modified_at)
            with new.held(), TRANSFERS.labels("in").track_inprogress():
                new.append(read)
                sha256 = new.sha256()
                if incoming.expected_sha256 not in (None, sha256):
                    raise DigestMismatch
                modified_at = incoming.modified_at or new.created_at
                placed = self._publish(principal, new, incoming.content_type, modified_at, place, action)
        except TransitionLost as exc:
            raise UploadLost from exc
        except QuotaExceeded as exc:
            raise self.quota_exceeded(owner_id) from exc
        return _info_of(new, placed, sha256)

    def _publish(
        self,
        principal: Principal,
        new: PendingObject,
        content_type: str,
        modified_at: datetime,
        place: _Place,
        action: Action,
    ) -> _Placed:
        with new.publish() as session:
            content = Content(
                row_id=new.row_id,
                content_type=content_type,
                size_bytes=new.size_bytes,
                modified_at=modified_at,
                created_at=new.created_at,
                published_at=self._core.clock(),
            )
            placed = place(session, lock_tree(session, new.owner_id), content)
            new.become(session, placed.entry.id, placed.version_no)
            if placed.version_no > 1:
                action = Action.FILE_VERSION_ADDED
            target = ("file", placed.entry.id)
            self._audit.record(session, principal, action, target=target, size_bytes=new.size_bytes)
        return placed

    def quota_exceeded(self, owner_id: uuid.UUID) -> QuotaExceeded:
        """Return the error that tells what could be freed: nothing is ever removed to make room."""
        default = self._objects.limits.default_quota_bytes
        try:
            with self._core.sessions.begin() as session:
                usage = files_usage_of(session, owner_id, default_quota_bytes=default)
        except NotFound:
            # The account has gone meanwhile.
            return QuotaExceeded()
        freed = [
            f"{size} bytes by {how}"
            for size, how in (
                (usage.versions_bytes, "deleting older versions"),
                (usage.trash_bytes, "emptying the trash"),
            )
            if size
        ]
        return QuotaExceeded(f"{QuotaExceeded.detail} You can free {' and '.join(freed)}." if freed else None)


def _place(
    owner_id: uuid.UUID, name: str, destination: Destination, session: Session, tops: Tops, content: Content
) -> _Placed:
    on_conflict = destination.on_conflict
    try:
        folder = find_folder(session, owner_id, destination.folder_id, tops)
    except (NotFound, NotAFolder, InTrash):
        folder, on_conflict = Folder(tops.root_id), OnConflict.RENAME
    target = find_target(session, folder, name, on_conflict)
    if target is not None:
        return _Placed(target, folder, add_version(session, target, content))
    name = free_name(session, folder, name, is_folder=False)
    return _Placed(add_file(session, owner_id, folder, name, content), folder, 1)


def _place_late(
    owner_id: uuid.UUID, name: str, destination: Destination, session: Session, tops: Tops, content: Content
) -> _Placed:
    for where in (destination, replace(destination, on_conflict=OnConflict.RENAME)):
        try:
            return _place(owner_id, name, where, session, tops, content)
        except (NameConflict, TooDeep):
            continue
    return _place(owner_id, name, HOME, session, tops, content)


def _info_of(new: NewObject, placed: _Placed, sha256: bytes) -> FileInfo:
    return FileInfo(
        **common_facts(placed.entry, placed.folder.path),
        owner_id=new.owner_id,
        content_type=placed.entry.content_type or "",
        size=new.size_bytes,
        version_no=placed.version_no,
        object_id=new.object_id,
        cipher=new.header.suite.cipher_name,
        key_provider=new.wrapped.provider,
        sha256=sha256.hex(),
    )
