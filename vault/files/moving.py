"""Renames and moves of files and folders: one row changes, however much is below."""

import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.errors import Cycle, PreconditionFailed, VaultError
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.core.text import fold
from vault.files.facts import EntryInfo
from vault.files.lookup import infos_of
from vault.files.models import Entry, EntryKind, Work
from vault.files.placing import OnConflict, free_name, require_free
from vault.files.tree import Folder, Many, find_folder, lock_tree

# An entry's id and the version of its facts
Version = tuple[uuid.UUID, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Another name, another folder, or both; None leaves it as it is. A parent is `parent_id`, or the root."""

    name: str | None = None
    moves: bool = False
    parent_id: uuid.UUID | None = None
    on_conflict: OnConflict = OnConflict.FAIL


@dataclass(frozen=True, slots=True)
class Moves:
    """`work_later(owner_id)` has a task do what is left of an owner's work."""

    core: Core
    work_later: Callable[[uuid.UUID], None]
    audit: AuditService

    def change(
        self,
        principal: Principal,
        ids: Sequence[uuid.UUID],
        change: Change,
        *,
        versions: Collection[Version] | None = None,
        kinds: Collection[EntryKind] = (),
    ) -> list[EntryInfo]:
        """Change entries of these versions, all or none; None stands for any version.

        Of several concurrent changes to one version, one succeeds. Raises NotFound, PreconditionFailed, InTrash,
        NotAFolder, Cycle, NameConflict, TooDeep.
        """
        owner_id = principal.account_id
        is_left = False
        with self.core.sessions.begin() as session:
            tops = lock_tree(session, owner_id)
            many = Many.read(session, owner_id, ids)
            # Its path stays the same: to move a folder above it would be a cycle.
            target = find_folder(session, owner_id, change.parent_id, tops) if change.moves else None
            for entry_id in ids:
                with about(entry_id):
                    entry, folder = many.find_live(entry_id, *kinds)
                    require_version(entry, versions)
                    is_left |= _take_work_along(entry, folder)
                    was_in, folder = folder, target or folder
                    name = change.name or entry.name
                    if change.on_conflict is OnConflict.RENAME and (folder.id, name) != (entry.parent_id, entry.name):
                        name = free_name(session, folder, name, is_folder=entry.kind == EntryKind.FOLDER)
                    is_renamed_file = entry.kind == EntryKind.FILE and folder.id == entry.parent_id
                    place(session, entry, folder, name, was_in=was_in)
                    entry.version += 1
                    entry.updated_at = self.core.clock()
                    session.flush()
                    action = Action.FILE_RENAMED if is_renamed_file else Action.ENTRY_MOVED
                    self.audit.record(session, principal, action, target=(entry.kind, entry_id))
            infos = infos_of(session, owner_id, ids)
        if is_left:
            self.work_later(owner_id)
        return infos


@contextmanager
def about(entry_id: uuid.UUID) -> Iterator[None]:
    """Let a refusal of the block tell which of many entries it is about."""
    try:
        yield
    except VaultError as exc:
        exc.entry_id = entry_id
        raise


def place(session: Session, entry: Entry, folder: Folder, name: str, *, was_in: Folder | None = None) -> None:
    """Put an entry into a live folder under this name. What moves no deeper than it was needs no look below it.

    Raises Cycle, NameConflict, TooDeep.
    """
    if any(step.id == entry.id for step in folder.path):
        raise Cycle
    require_free(session, folder, name, but=entry.id)
    if entry.kind == EntryKind.FOLDER and (was_in is None or len(folder.path) > len(was_in.path)):
        folder.require_room_below(session, entry.id)
    entry.parent_id, entry.name, entry.name_folded = folder.id, name, fold(name)


def require_version(entry: Entry, versions: Collection[Version] | None) -> None:
    """Raise PreconditionFailed unless the entry's facts are one of these versions; None stands for any."""
    if versions is not None and (entry.id, entry.version) not in versions:
        raise PreconditionFailed


def _take_work_along(entry: Entry, folder: Folder) -> bool:
    """Show an entry that leaves a folder which is still being shown again; return whether a task must go on below."""
    if not any(step.work == Work.UNHIDE for step in folder.path):
        return False
    entry.hidden = False
    if entry.kind == EntryKind.FOLDER:
        entry.work = Work.UNHIDE
    return entry.kind == EntryKind.FOLDER
