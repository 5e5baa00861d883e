"""The trash: files and folders go there whole, come back whole, or are deleted for ever."""

import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.db import count_changed, one_read, run
from vault.core.errors import InTrash, NotAFolder, NotFound, TooDeep, TooManyFiles
from vault.core.paging import Key, Page, in_order, page
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.files.facts import EntryInfo
from vault.files.lookup import ENTRIES, entry_info, infos_of
from vault.files.models import Entry, EntryKind, Work
from vault.files.moving import Version, about, place, require_version
from vault.files.placing import OnConflict, add_folder, find_named, free_name
from vault.files.subtree import BATCH, BY_REQUEST, below
from vault.files.tree import Folder, Many, Step, Tops, find_folder, lock_tree, ways_up
from vault.objects.shredding import lock_account


@dataclass(frozen=True, slots=True)
class Emptied:
    """How much goes when the trash is emptied: everything in it, and the bytes of current contents."""

    entries: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Trash:
    """`work_later(owner_id)` has a task do what is left of an owner's work. A person may have `most` folders."""

    core: Core
    work_later: Callable[[uuid.UUID], None]
    audit: AuditService
    most: int

    def content(self, principal: Principal, *, limit: int, after: Key | None = None) -> Page[EntryInfo]:
        """Return at most `limit` of the entries that were thrown away, newest first, after the key `after`."""
        owner_id = principal.account_id
        with one_read(self.core.sessions) as session:
            query = ENTRIES.where(
                Entry.owner_id == owner_id, Entry.trashed_at.is_not(None), Entry.work.is_distinct_from(Work.PURGE)
            )
            rows = session.execute(in_order(query, (Entry.trashed_at, Entry.id), after).limit(limit + 1)).all()
        return page(rows, limit, lambda row: (row.Entry.trashed_at, row.Entry.id), lambda row: entry_info(row, {}))

    def throw_away(
        self, principal: Principal, ids: Sequence[uuid.UUID], *, versions: Collection[Version] | None = None
    ) -> list[EntryInfo]:
        """Move entries with all below them to the trash, all or none.

        A task hides from flat lists what is beyond a thousand entries below them. Raises NotFound, PreconditionFailed,
        InTrash.
        """
        owner_id = principal.account_id
        with self.core.sessions.begin() as session:
            tops = lock_tree(session, owner_id)
            allowance = _Allowance(entries=BY_REQUEST, folders=BY_REQUEST)
            many = Many.read(session, owner_id, ids)
            for entry_id in many.deepest_first(ids):
                with about(entry_id):
                    entry, folder = many.find_live(entry_id)
                    require_version(entry, versions)
                    self._throw_away(session, entry, folder, tops, allowance)
                    self.audit.record(session, principal, Action.ENTRY_TRASHED, target=(entry.kind, entry_id))
            session.flush()
            infos = infos_of(session, owner_id, ids)
        if allowance.is_over:
            self.work_later(owner_id)
        return infos

    def restore(
        self,
        principal: Principal,
        ids: Sequence[uuid.UUID],
        *,
        moves: bool = False,
        parent_id: uuid.UUID | None = None,
        on_conflict: OnConflict = OnConflict.FAIL,
        versions: Collection[Version] | None = None,
    ) -> list[EntryInfo]:
        """Bring entries back to where they were, by a path that is made again if it has gone; with `moves` to a folder,
        None for the root. All or none.

        Raises NotFound, PreconditionFailed, InTrash for what lies in a folder of the trash, NotAFolder, NameConflict,
        TooDeep, TooManyFiles.
        """
        owner_id = principal.account_id
        with self.core.sessions.begin() as session:
            lock_account(session, owner_id)
            tops = lock_tree(session, owner_id)
            many = Many.read(session, owner_id, ids)
            target = find_folder(session, owner_id, parent_id, tops) if moves else None
            allowance = _Allowance(entries=BY_REQUEST, folders=BY_REQUEST)
            places: dict[Any, Folder] = {}
            for entry_id in _highest_first(session, owner_id, many, ids):
                with about(entry_id):
                    entry = many.find(entry_id)
                    if entry.parent_id != tops.trash_id:
                        raise NotFound if many.ways[entry_id].is_live else InTrash
                    require_version(entry, versions)
                    # A folder that was moved in between has two paths.
                    was_in = entry.restore_parent_id, tuple(entry.restore_path or ())
                    folder = target or places.get(was_in) or self._where_it_was(session, entry, tops, allowance)
                    places[was_in] = folder
                    name = entry.name
                    if on_conflict is OnConflict.RENAME:
                        name = free_name(session, folder, name, is_folder=entry.kind == EntryKind.FOLDER)
                    place(session, entry, folder, name)
                    self._reveal(session, entry, allowance)
                    self.audit.record(session, principal, Action.ENTRY_RESTORED, target=(entry.kind, entry_id))
                    session.flush()
            infos = infos_of(session, owner_id, ids)
        if allowance.is_over:
            self.work_later(owner_id)
        return infos

    def empty(self, principal: Principal) -> Emptied:
        """Have a task delete everything in the trash for ever; none of it can be restored from now on."""
        owner_id = principal.account_id
        with self.core.sessions.begin() as session:
            tops = lock_tree(session, owner_id)
            hidden = sa.select(sa.func.count(), sa.func.sum(Entry.size_bytes)).where(
                Entry.owner_id == owner_id, Entry.hidden
            )
            entries, size_bytes = session.execute(hidden).one()
            thrown_away = (Entry.parent_id == tops.trash_id, Entry.work.is_distinct_from(Work.PURGE))
            count = count_changed(session, sa.update(Entry).where(*thrown_away).values(work=Work.PURGE))
            if not count:
                return Emptied(0, 0)
            self.audit.record(session, principal, Action.ENTRY_PURGED, target=("user", owner_id), entries=count)
        self.work_later(owner_id)
        return Emptied(entries, int(size_bytes or 0))

    def _throw_away(self, session: Session, entry: Entry, folder: Folder, tops: Tops, allowance: "_Allowance") -> None:
        entry.restore_parent_id = folder.id
        entry.restore_path = [step.name for step in folder.path]
        entry.parent_id = tops.trash_id
        entry.trashed_at = entry.updated_at = self.core.clock()
        entry.version += 1
        entry.hidden = True
        entry.work = None if allowance.sets_hidden(session, entry, hidden=True) else Work.HIDE
        session.flush()

    def _reveal(self, session: Session, entry: Entry, allowance: "_Allowance") -> None:
        entry.trashed_at = entry.restore_parent_id = entry.restore_path = None
        entry.updated_at = self.core.clock()
        entry.version += 1
        entry.hidden = False
        entry.work = None if allowance.sets_hidden(session, entry, hidden=False) else Work.UNHIDE

    def _where_it_was(self, session: Session, entry: Entry, tops: Tops, allowance: "_Allowance") -> Folder:
        try:
            return find_folder(session, entry.owner_id, entry.restore_parent_id, tops)
        except (NotFound, NotAFolder, InTrash, TooDeep):
            return self._path_again(session, entry, tops, allowance)

    def _path_again(self, session: Session, entry: Entry, tops: Tops, allowance: "_Allowance") -> Folder:
        """Go down the path where the entry was, and make the folders that are missing."""
        folder = Folder(tops.root_id)
        for name in entry.restore_path or []:
            found = find_named(session, folder.id, name)
            if found is None or found.kind != EntryKind.FOLDER:
                allowance.take_folder()
                free = free_name(session, folder, name, is_folder=True)
                now = self.core.clock()
                found = add_folder(session, entry.owner_id, folder.id, free, now=now, most=self.most)
            folder = Folder(found.id, (*folder.path, Step(found.id, found.kind, found.name)))
        return folder


def _highest_first(session: Session, owner_id: uuid.UUID, many: Many, ids: Sequence[uuid.UUID]) -> list[uuid.UUID]:
    """Return the ids so that a folder of the trash comes before what was thrown away out of it alone, whose path would
    be made again otherwise. The paths of then do not tell: the folder may have been moved in between."""
    lay_in = {entry.id: entry.restore_parent_id for entry in many.entries.values() if entry.restore_parent_id}
    if len(ids) == 1 or not lay_in:
        return list(ids)
    ways = ways_up(session, owner_id, set(lay_in.values()))
    # By steps and not by recursion: folders that were thrown away one out of the other can be as many as the ids. What
    # lay in a folder was thrown away before it, so no way leads back.
    order = TopologicalSorter(dict.fromkeys(ids, ()))
    for entry_id, parent_id in lay_in.items():
        steps = ways[parent_id].steps if parent_id in ways else ()
        order.add(entry_id, *(step.id for step in steps if step.id in many.entries))
    return list(order.static_order())


@dataclass(slots=True, kw_only=True)
class _Allowance:
    """What one request does by itself, however many entries it names. `is_over` tells that a task must do the rest."""

    entries: int
    folders: int
    is_over: bool = False

    def sets_hidden(self, session: Session, entry: Entry, *, hidden: bool) -> bool:
        """Hide or show all below an entry, unless that is too much; return whether it did."""
        levels = below(session, entry.id, self.entries) if entry.kind == EntryKind.FOLDER else []
        if levels is None:
            self.is_over = True
            return False
        ids = [entry_id for level in levels for entry_id in level]
        self.entries -= len(ids)
        for start in range(0, len(ids), BATCH):
            some = Entry.id.in_(ids[start : start + BATCH])
            run(session, sa.update(Entry).where(some).values(hidden=hidden))
        return True

    def take_folder(self) -> None:
        """Count a folder that is made again. Raises TooManyFiles for one too many."""
        if not self.folders:
            raise TooManyFiles("Too many folders would be made again. Restore fewer entries, or to a folder.")
        self.folders -= 1
