"""Deletion for ever: every version is shredded in the transaction that removes its file.

Up to a thousand entries are gone when the request is answered; a task goes on with more, also after a kill. Batches
begin with the deepest folders, since a parent is removed after what it holds.
"""

import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.db import count_changed, run
from vault.core.errors import FolderNotEmpty, NotFound
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.files.models import Entry, EntryKind, Work
from vault.files.moving import Version, about, require_version
from vault.files.subtree import BATCH, BY_REQUEST, batches_below, below, folders_below
from vault.files.tree import Many, Tops, close_trees, find_own, lock_tree
from vault.objects.models import ObjectState, SealedObject
from vault.objects.quota import count_folders
from vault.objects.shredding import Shredded, lock_account, shred_all_of, shred_versions

# Beyond so many objects, one message for their owner has all of them removed.
_MESSAGES: Final = 20


@dataclass(frozen=True, slots=True)
class Deleting:
    """`forget` drops a removed object's key from this process's cache. `remove_later` removes one object from the store
    by its row, `remove_all_later` all of an owner's; `work_later(owner_id)` has a task do what is left of deletions."""

    core: Core
    forget: Callable[[uuid.UUID], None]
    remove_later: Callable[[uuid.UUID], None]
    remove_all_later: Callable[[uuid.UUID], None]
    work_later: Callable[[uuid.UUID], None]
    audit: AuditService

    def delete_file(self, principal: Principal, owner_id: uuid.UUID, file_id: uuid.UUID, action: Action) -> None:
        """Shred a file with all its versions: it is unreadable once this returns. A task removes its objects. Raises
        NotFound."""
        with self.core.sessions.begin() as session:
            lock_account(session, owner_id)
            lock_tree(session, owner_id)
            entry = find_own(session, owner_id, file_id)
            if entry.kind != EntryKind.FILE:
                raise NotFound
            shredded = _remove(session, owner_id, [file_id])
            details: dict[str, Any] = {} if owner_id == principal.user_id else {"owner_id": str(owner_id)}
            self.audit.record(session, principal, action, target=("file", file_id), **details)
        self.follow_up(owner_id, shredded)

    def delete(
        self,
        principal: Principal,
        ids: Sequence[uuid.UUID],
        *,
        recursive: bool,
        versions: Collection[Version] | None = None,
    ) -> bool:
        """Delete files, and folders with all below them, all or none, wherever they are; return whether nothing is left
        for a task. What is left has left the tree and cannot be restored.

        Raises NotFound, PreconditionFailed, and FolderNotEmpty without `recursive`.
        """
        owner_id = principal.account_id
        shredded: list[Shredded] = []
        marked: list[uuid.UUID] = []
        # Of what is removed now, level by level
        depths: dict[uuid.UUID, int] = {}
        held = 0
        with self.core.sessions.begin() as session:
            lock_account(session, owner_id)
            tops = lock_tree(session, owner_id)
            many = Many.read(session, owner_id, ids)
            for entry_id in many.deepest_first(ids):
                with about(entry_id):
                    entry = many.find(entry_id)
                    require_version(entry, versions)
                    most = max(BY_REQUEST - held, 0)
                    levels = below(session, entry_id, most) if entry.kind == EntryKind.FOLDER else []
                    going = {
                        child: many.depth_of(entry_id) + step
                        for step, level in enumerate(levels or (), 1)
                        for child in level
                        if child not in depths
                    }
                    if (levels is None or going) and not recursive:
                        raise FolderNotEmpty
                    self.audit.record(session, principal, _action(entry), target=(entry.kind, entry_id))
                    held += BY_REQUEST + 1 if levels is None else len(going)
                    if levels is not None and len(depths) + 1 + len(going) <= BATCH:
                        depths |= {entry_id: many.depth_of(entry_id), **going}
                    else:
                        self._mark(entry, tops)
                        marked.append(entry_id)
                        session.flush()
            for _, level in groupby(sorted(depths, key=depths.__getitem__, reverse=True), key=depths.__getitem__):
                shredded += _remove(session, owner_id, list(level))
        self.follow_up(owner_id, shredded)
        if marked and held <= BY_REQUEST:
            for entry_id in marked:
                self.purge(owner_id, entry_id)
        elif marked:
            self.work_later(owner_id)
            return False
        return True

    def purge(self, owner_id: uuid.UUID, top_id: uuid.UUID, *, may_go_on: Callable[[], bool] = lambda: True) -> bool:
        """Delete an entry that is marked for it, with all below; return whether it is done. At least one batch goes,
        since to find it may take all the time there is."""
        levels = folders_below(self.core.sessions, top_id)
        is_first = True
        for level in reversed(levels):
            for batch in batches_below(self.core.sessions, level):
                if not is_first and not may_go_on():
                    return False
                self._remove_batch(owner_id, batch)
                is_first = False
        self._remove_batch(owner_id, [top_id])
        self.remove_all_later(owner_id)
        return True

    def follow_up(self, owner_id: uuid.UUID, shredded: Collection[Shredded]) -> None:
        """After the commit, forget the keys of shredded objects, and have the objects removed."""
        for one in shredded:
            self.forget(one.object_id)
        if len(shredded) > _MESSAGES:
            self.remove_all_later(owner_id)
        else:
            for one in shredded:
                self.remove_later(one.row_id)

    def _mark(self, entry: Entry, tops: Tops) -> None:
        entry.parent_id = tops.trash_id
        entry.trashed_at = entry.trashed_at or self.core.clock()
        entry.hidden = True
        entry.work = Work.PURGE

    def _remove_batch(self, owner_id: uuid.UUID, batch: Collection[uuid.UUID]) -> None:
        with self.core.sessions.begin() as session:
            lock_account(session, owner_id)
            lock_tree(session, owner_id)
            shredded = _remove(session, owner_id, batch)
        for one in shredded:
            self.forget(one.object_id)


def _action(entry: Entry) -> Action:
    return Action.FILE_DELETED if entry.kind == EntryKind.FILE else Action.ENTRY_PURGED


def _remove(session: Session, owner_id: uuid.UUID, entry_ids: Collection[uuid.UUID]) -> list[Shredded]:
    """Remove entries of one owner, whose account and tree are locked, and shred their versions."""
    folders = sa.delete(Entry).where(Entry.id.in_(entry_ids), Entry.kind == EntryKind.FOLDER)
    if removed := count_changed(session, folders):
        count_folders(session, owner_id, -removed)
    run(session, sa.delete(Entry).where(Entry.id.in_(entry_ids)))
    return shred_versions(session, owner_id, SealedObject.entry_id.in_(entry_ids))


def erase_some_of(session: Session, owner_id: uuid.UUID, limit: int) -> int:
    """Shred up to `limit` contents of an owner, older versions before files; return how many."""
    lock_account(session, owner_id)
    lock_tree(session, owner_id)
    ready = (SealedObject.owner_id == owner_id, SealedObject.state == ObjectState.READY)
    older = sa.select(SealedObject.id).where(*ready, SealedObject.superseded_at.is_not(None))
    files = sa.select(Entry.id).where(Entry.owner_id == owner_id, Entry.kind == EntryKind.FILE)
    erased = 0
    for contents in (older, files):
        while erased < limit and (some := session.scalars(contents.limit(min(BATCH, limit - erased))).all()):
            if contents is older:
                shred_versions(session, owner_id, SealedObject.id.in_(some))
            else:
                _remove(session, owner_id, some)
            erased += len(some)
    return erased


def erase_all_of(session: Session, owner_id: uuid.UUID) -> int:
    """Shred every content of an owner whose account is about to be closed, with its tree; return how many."""
    lock_account(session, owner_id)
    lock_tree(session, owner_id)
    ready = (SealedObject.owner_id == owner_id, SealedObject.state == ObjectState.READY)
    count = session.scalar(sa.select(sa.func.count()).select_from(SealedObject).where(*ready)) or 0
    close_trees(session, [owner_id])
    shred_all_of(session, owner_id)
    return count
