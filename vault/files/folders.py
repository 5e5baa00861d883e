"""Folders: made, read by id and by path, listed, and measured."""

import enum
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import InstrumentedAttribute, Session

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.db import one_read
from vault.core.errors import InputRefused, NotAFolder, NotFound
from vault.core.paging import Key, Page, in_order, page
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.core.text import clean_search, fold
from vault.files.facts import EntryInfo, FolderInfo, info_of_folder
from vault.files.lookup import ENTRIES, entry_info, infos_of
from vault.files.models import Entry, EntryKind, Work
from vault.files.names import clean_name
from vault.files.placing import OnConflict, add_folder, free_name, require_free
from vault.files.tree import MAX_DEPTH, MAX_PATH_BYTES, Path, find_folder, find_tops, lock_tree, ways_up
from vault.objects.shredding import lock_account

_MEASURE_SECONDS: Final = 2.0
# Folders in one query of a measurement
_AT_ONCE: Final = 500


class EntrySort(enum.StrEnum):
    NAME = "name"
    CREATED_AT = "created_at"
    SIZE = "size"

    def column(self, kind: EntryKind) -> InstrumentedAttribute[Any]:
        """Return the sort's column. Folders have no size, so they are sorted by name."""
        if self is EntrySort.CREATED_AT:
            return Entry.created_at
        return Entry.size_bytes if self is EntrySort.SIZE and kind is EntryKind.FILE else Entry.name_folded


@dataclass(frozen=True, slots=True)
class EntryListing:
    """Order and selection of a folder's content: folders first, then files. `search` is part of the name."""

    sort: EntrySort = EntrySort.NAME
    descending: bool = False
    search: str | None = None

    def read(self, session: Session, folder_id: uuid.UUID, limit: int, after: Key | None) -> Sequence[Any]:
        """Return up to `limit` rows of `ENTRIES` after `after`. Raises InputRefused for a search that finds nothing."""
        kind, key = (EntryKind.FOLDER, None) if after is None else self._half_of(after)
        rows: list[Any] = []
        for half in (EntryKind.FOLDER, EntryKind.FILE)[0 if kind is EntryKind.FOLDER else 1 :]:
            query = ENTRIES.where(Entry.parent_id == folder_id, Entry.kind == half, Entry.trashed_at.is_(None))
            if self.search is not None:
                query = query.where(Entry.name_folded.contains(clean_search(self.search), autoescape=True))
            # Without the kind, which is given: PostgreSQL would begin at the half's first row.
            query = in_order(query, (self.sort.column(half), Entry.id), key, descending=self.descending)
            rows += session.execute(query.limit(limit - len(rows))).all()
            key = None
            if len(rows) == limit:
                break
        return rows

    def key_of(self, row: Any) -> Key:
        """Return the position after this row; it names the half of the list."""
        kind = EntryKind(row.Entry.kind)
        value = getattr(row.Entry, self.sort.column(kind).key)
        return f"{kind} {value.isoformat() if isinstance(value, datetime) else value}", row.Entry.id

    def _half_of(self, after: Key) -> tuple[EntryKind, tuple[Any, uuid.UUID]]:
        half, _, text = after[0].partition(" ")
        column = self.sort.column(kind := EntryKind(half))
        convert: Callable[[str], Any] = str
        if column is Entry.created_at:
            convert = datetime.fromisoformat
        elif column is Entry.size_bytes:
            convert = int
        return kind, (convert(text), after[1])


@dataclass(frozen=True, slots=True)
class FolderSize:
    """What is below a folder. Without `complete` it is what was counted in the time."""

    entries: int
    size_bytes: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Folders:
    """A folder's id is None for the root. A person may have `most` folders."""

    core: Core
    audit: AuditService
    most: int
    clock: Callable[[], float] = monotonic

    def create(
        self, principal: Principal, name: str, parent_id: uuid.UUID | None, on_conflict: OnConflict
    ) -> FolderInfo:
        """Make a folder. Raises NotFound, NotAFolder, InTrash, NameConflict, TooDeep, TooManyFiles."""
        owner_id = principal.account_id
        with self.core.sessions.begin() as session:
            lock_account(session, owner_id)
            parent = find_folder(session, owner_id, parent_id, lock_tree(session, owner_id))
            if on_conflict is OnConflict.RENAME:
                name = free_name(session, parent, name, is_folder=True)
            else:
                require_free(session, parent, name)
            entry = add_folder(session, owner_id, parent.id, name, now=self.core.clock(), most=self.most)
            self.audit.record(session, principal, Action.FOLDER_CREATED, target=(EntryKind.FOLDER, entry.id))
        return info_of_folder(entry, parent.path)

    def get(self, principal: Principal, folder_id: uuid.UUID | None) -> FolderInfo:
        """Return a folder, which may be in the trash, or the root. Raises NotFound."""
        with one_read(self.core.sessions) as session:
            found_id, path = self._find(session, principal.account_id, folder_id)
            return _info_of(session, found_id, path[:-1])

    def content(
        self,
        principal: Principal,
        folder_id: uuid.UUID | None,
        listing: EntryListing,
        *,
        limit: int,
        after: Key | None = None,
    ) -> Page[EntryInfo]:
        """Return at most `limit` entries of a folder after the key `after`. Raises NotFound, InputRefused."""
        owner_id = principal.account_id
        with one_read(self.core.sessions) as session:
            found_id, path = self._find(session, owner_id, folder_id)
            rows = listing.read(session, found_id, limit + 1, after)
        return page(rows, limit, listing.key_of, lambda row: entry_info(row, {found_id: path}))

    def size(self, principal: Principal, folder_id: uuid.UUID | None) -> FolderSize:
        """Count what is below a folder, level by level, for two seconds at most. Raises NotFound."""
        deadline = self.clock() + _MEASURE_SECONDS
        entries = size_bytes = 0
        with one_read(self.core.sessions) as session:
            waiting = [self._find(session, principal.account_id, folder_id)[0]]
        while waiting:
            if self.clock() >= deadline:
                return FolderSize(entries, size_bytes, complete=False)
            some, waiting = waiting[:_AT_ONCE], waiting[_AT_ONCE:]
            below = (Entry.parent_id.in_(some), Entry.trashed_at.is_(None))
            total = sa.select(sa.func.count(), sa.func.sum(Entry.size_bytes)).where(*below)
            # Each query by itself: on SQLite a session keeps others from writing.
            with one_read(self.core.sessions) as session:
                count, size = session.execute(total).one()
                waiting += session.scalars(sa.select(Entry.id).where(*below, Entry.kind == EntryKind.FOLDER))
            entries, size_bytes = entries + count, size_bytes + int(size or 0)
        return FolderSize(entries, size_bytes, complete=True)

    def at_path(self, principal: Principal, path: str) -> EntryInfo:
        """Return the entry at a path from the root, `/a/b.txt`, by exact names in one query. Raises NotFound, and
        InputRefused for a text that is no path."""
        names = _names_of(path)
        owner_id = principal.account_id
        with one_read(self.core.sessions) as session:
            root_id = find_tops(session, owner_id).root_id
            if not names:
                return _info_of(session, root_id, ())
            # A file may lie one level below the deepest folder.
            entry_id = session.scalar(_at(root_id, names)) if len(names) <= MAX_DEPTH + 1 else None
            if entry_id is None:
                raise NotFound
            return infos_of(session, owner_id, [entry_id])[0]

    @staticmethod
    def _find(session: Session, owner_id: uuid.UUID, folder_id: uuid.UUID | None) -> tuple[uuid.UUID, Path]:
        """Return a folder's id and the folders down to it, itself included, by one query; it may be in the trash.
        Raises NotFound, NotAFolder."""
        if folder_id is None:
            return find_tops(session, owner_id).root_id, ()
        way = ways_up(session, owner_id, [folder_id]).get(folder_id)
        if way is None or way.steps[0].kind == EntryKind.TRASH or way.steps[0].work == Work.PURGE:
            raise NotFound
        if way.steps[0].kind == EntryKind.FILE:
            raise NotAFolder
        return folder_id, way.down


def _info_of(session: Session, folder_id: uuid.UUID, path: Path) -> FolderInfo:
    entry = session.get(Entry, folder_id)
    if entry is None:
        # It was deleted since it was found.
        raise NotFound
    return info_of_folder(entry, path)


def _names_of(path: str) -> list[str]:
    if not path.startswith("/") or len(path[1:].encode()) > MAX_PATH_BYTES:
        raise InputRefused({"path": [f"Must be a slash and at most {MAX_PATH_BYTES} bytes."]})
    parts = path.strip("/").split("/")
    if parts == [""]:
        return []
    try:
        return [clean_name(part) for part in parts]
    except InputRefused:
        raise InputRefused({"path": ["Must be names between slashes."]}) from None


def _at(root_id: uuid.UUID, names: Sequence[str]) -> sa.Select[uuid.UUID]:
    """Return a query for the id of the entry to which these names lead, each a step down one index."""
    columns = (sa.column("level", sa.Integer), sa.column("name", sa.Text), sa.column("folded", sa.Text))
    # Not a union: SQLite takes 500 parts of one, and a path has up to 2,048 names.
    levels = sa.values(*columns).data([(level, name, fold(name)) for level, name in enumerate(names)]).cte("levels")
    walk = sa.select(sa.literal(root_id, sa.Uuid).label("id"), sa.literal(0).label("level")).cte("walk", recursive=True)
    step = (
        sa.select(Entry.id, walk.c.level + 1)
        .select_from(walk)
        .join(levels, levels.c.level == walk.c.level)
        .join(
            Entry,
            sa.and_(
                Entry.parent_id == walk.c.id,
                Entry.name_folded == levels.c.folded,
                Entry.name == levels.c.name,
                Entry.trashed_at.is_(None),
            ),
        )
    )
    walk = walk.union_all(step)
    return sa.select(walk.c.id).where(walk.c.level == len(names))
