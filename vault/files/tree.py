"""The tree of a person's entries: its tops, the way up from an entry, and the lock that each change of it holds.

Paths are not stored: a move changes one row, however much is below. Every change of a tree locks its tops first, after
the owner's storage account; two opposite moves that were checked but not locked made circles (folders.md, Traps).
"""

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.core.db import count_changed, run
from vault.core.errors import InTrash, NotAFolder, NotFound, TooDeep
from vault.files.models import Entry, EntryKind, Work

# Of an entry that is made or moved
MAX_LEVELS: Final = 64
MAX_PATH_BYTES: Final = 4096
# Of what lies below a moved folder. Without a bound, moves would pile up folders until one way up has them all.
MAX_DEPTH: Final = 2 * MAX_LEVELS
# A way up ends at a top; a circle in a damaged database ends here.
_MOST_STEPS: Final = 2 * MAX_DEPTH

_TOPS: Final = (
    sa.select(Entry.kind, Entry.id)
    .where(Entry.owner_id == sa.bindparam("owner"), Entry.kind.in_([EntryKind.ROOT, EntryKind.TRASH]))
    .order_by(Entry.id)
)
_LOCKED_TOPS: Final = _TOPS.with_for_update(key_share=True)


def _ways_up() -> sa.Select[Any]:
    start = sa.select(
        Entry.id.label("start"),
        Entry.id,
        Entry.parent_id,
        Entry.kind,
        Entry.name,
        Entry.work,
        sa.literal(0).label("step"),
    ).where(Entry.owner_id == sa.bindparam("owner"), Entry.id.in_(sa.bindparam("ids", expanding=True)))
    way = start.cte("way", recursive=True)
    above = sa.select(way.c.start, Entry.id, Entry.parent_id, Entry.kind, Entry.name, Entry.work, way.c.step + 1).join(
        way, Entry.id == way.c.parent_id
    )
    way = way.union_all(above.where(way.c.step < _MOST_STEPS))
    return sa.select(way.c.start, way.c.id, way.c.kind, way.c.name, way.c.work).order_by(way.c.start, way.c.step)


_WAYS_UP: Final = _ways_up()


def _height() -> sa.Select[Any]:
    start = sa.select(Entry.id, sa.literal(0).label("level")).where(Entry.id == sa.bindparam("top"))
    below = start.cte("below", recursive=True)
    is_folder = (Entry.kind == EntryKind.FOLDER, Entry.trashed_at.is_(None), below.c.level < MAX_DEPTH)
    deeper = sa.select(Entry.id, below.c.level + 1).join(below, Entry.parent_id == below.c.id).where(*is_folder)
    below = below.union_all(deeper)
    return sa.select(sa.func.max(below.c.level))


_HEIGHT: Final = _height()


@dataclass(frozen=True, slots=True)
class Tops:
    """A person's two entries without a parent."""

    root_id: uuid.UUID
    trash_id: uuid.UUID


@dataclass(frozen=True, slots=True, repr=False)
class Step:
    """One entry on a way up."""

    id: uuid.UUID
    kind: str
    name: str
    work: str | None = None


# An entry's folders from the top, without the root and the entry
Path = tuple[Step, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Way:
    """The steps from an entry up to its top, both included."""

    steps: Sequence[Step]

    @property
    def is_live(self) -> bool:
        """Return whether it ends at the root."""
        return self.steps[-1].kind == EntryKind.ROOT

    @property
    def is_in_trash(self) -> bool:
        """Return whether it ends at the trash."""
        return self.steps[-1].kind == EntryKind.TRASH

    def require_live(self) -> None:
        """Raise InTrash, or TooDeep for a way without an end, unless it ends at the root."""
        if self.is_in_trash:
            raise InTrash
        if not self.is_live:
            raise TooDeep

    @property
    def above(self) -> Path:
        """Return the folders above the entry, from the top, without the root or the trash."""
        return tuple(reversed([step for step in self.steps[1:] if step.kind == EntryKind.FOLDER]))

    @property
    def down(self) -> Path:
        """Return the folders from the top to this one, itself included."""
        return tuple(reversed([step for step in self.steps if step.kind == EntryKind.FOLDER]))


@dataclass(frozen=True, slots=True, repr=False)
class Folder:
    """A live folder, or the root, and the folders from the top to it, itself included."""

    id: uuid.UUID
    path: Path = ()

    def require_room(self, name: str) -> None:
        """Raise TooDeep unless an entry of this name may stand in the folder."""
        names = [*(step.name for step in self.path), name]
        if len(names) > MAX_LEVELS or len("/".join(names).encode()) > MAX_PATH_BYTES:
            raise TooDeep

    def require_room_below(self, session: Session, moved_id: uuid.UUID) -> None:
        """Raise TooDeep if a folder that moves here would bring folders to more than MAX_DEPTH levels."""
        if len(self.path) + 1 + run(session, _HEIGHT, top=moved_id).scalar_one() > MAX_DEPTH:
            raise TooDeep(f"Folders below would have more than {MAX_DEPTH} levels.")


def lock_tree(session: Session, owner_id: uuid.UUID) -> Tops:
    """Lock an owner's tree against other changes. Raises NotFound for an account that has gone."""
    return _tops_of(run(session, _LOCKED_TOPS, owner=owner_id).all())


def find_tops(session: Session, owner_id: uuid.UUID) -> Tops:
    """Read the ids of an owner's tops. Raises NotFound for an account that has gone."""
    return _tops_of(run(session, _TOPS, owner=owner_id).all())


def _tops_of(rows: Sequence[Any]) -> Tops:
    ids = dict(rows)
    if len(ids) != 2:
        raise NotFound
    return Tops(ids[EntryKind.ROOT], ids[EntryKind.TRASH])


def ways_up(session: Session, owner_id: uuid.UUID, ids: Collection[uuid.UUID]) -> Mapping[uuid.UUID, Way]:
    """Return the way up from each of these entries of one owner, in one query; other ids are left out."""
    steps: dict[uuid.UUID, list[Step]] = {}
    if ids:
        for start, *step in run(session, _WAYS_UP, owner=owner_id, ids=list(ids)):
            steps.setdefault(start, []).append(Step(*step))
    return {start: Way(way) for start, way in steps.items()}


@dataclass(frozen=True, slots=True)
class Many:
    """Entries of one owner with their ways up, read in two queries: one by one, hundreds take seconds."""

    entries: Mapping[uuid.UUID, Entry]
    ways: Mapping[uuid.UUID, Way]

    @classmethod
    def read(cls, session: Session, owner_id: uuid.UUID, ids: Collection[uuid.UUID]) -> Self:
        """Read the entries; ids of others are left out. Without the lock of the tree, one may go in between."""
        found = session.scalars(sa.select(Entry).where(Entry.id.in_(ids), Entry.owner_id == owner_id))
        return cls({entry.id: entry for entry in found}, ways_up(session, owner_id, ids))

    def find(self, entry_id: uuid.UUID) -> Entry:
        """Return a folder or file, wherever it is. Raises NotFound."""
        return _own(self.entries.get(entry_id))

    def find_live(self, entry_id: uuid.UUID, *kinds: EntryKind) -> tuple[Entry, Folder]:
        """Return a folder or file that was not in the trash when it was read, with its folder. Raises NotFound,
        InTrash."""
        entry = self.find(entry_id)
        if kinds and entry.kind not in kinds:
            raise NotFound
        way = self.ways.get(entry_id)
        if way is None:
            raise NotFound
        way.require_live()
        assert entry.parent_id is not None
        return entry, Folder(entry.parent_id, way.above)

    def depth_of(self, entry_id: uuid.UUID) -> int:
        """Return how many steps up it is to the top, 0 for an entry that does not exist."""
        return len(self.ways[entry_id].steps) if entry_id in self.ways else 0

    def deepest_first(self, ids: Iterable[uuid.UUID]) -> list[uuid.UUID]:
        """Return the ids so that an entry comes before the folders that hold it."""
        return sorted(ids, key=self.depth_of, reverse=True)


def find_folder(session: Session, owner_id: uuid.UUID, folder_id: uuid.UUID | None, tops: Tops) -> Folder:
    """Return a live folder of the owner; None stands for the root. Raises NotFound, NotAFolder, InTrash, TooDeep."""
    if folder_id in (None, tops.root_id):
        return Folder(tops.root_id)
    assert folder_id is not None
    way = ways_up(session, owner_id, [folder_id]).get(folder_id)
    if way is None:
        raise NotFound
    if way.steps[0].kind == EntryKind.FILE:
        raise NotAFolder
    way.require_live()
    return Folder(folder_id, way.down)


def find_own(session: Session, owner_id: uuid.UUID, entry_id: uuid.UUID) -> Entry:
    """Return an owner's folder or file, wherever it is. Raises NotFound."""
    return _own(session.scalar(sa.select(Entry).where(Entry.id == entry_id, Entry.owner_id == owner_id)))


def _own(entry: Entry | None) -> Entry:
    if entry is None or entry.kind in (EntryKind.ROOT, EntryKind.TRASH) or entry.work == Work.PURGE:
        raise NotFound
    return entry


def find_live(session: Session, owner_id: uuid.UUID, entry_id: uuid.UUID, *kinds: EntryKind) -> tuple[Entry, Folder]:
    """Return a folder or file that is not in the trash, with its folder. Raises NotFound, InTrash."""
    return Many.read(session, owner_id, [entry_id]).find_live(entry_id, *kinds)


def open_trees(session: Session, owner_ids: Collection[uuid.UUID]) -> None:
    """Make the tops of new owners."""
    now = datetime.now(UTC)
    session.add_all(
        Entry(
            owner_id=owner_id,
            kind=kind,
            name="",
            name_folded="",
            modified_at=now,
            created_at=now,
            updated_at=now,
        )
        for owner_id in owner_ids
        for kind in (EntryKind.ROOT, EntryKind.TRASH)
    )
    session.flush()


def close_trees(session: Session, owner_ids: Collection[uuid.UUID]) -> None:
    """Remove all entries of owners whose objects are shredded: files, then folders from the deepest, then tops."""
    of_owners = Entry.owner_id.in_(owner_ids)
    run(session, sa.delete(Entry).where(of_owners, Entry.kind == EntryKind.FILE))
    below = sa.orm.aliased(Entry)
    is_leaf = ~sa.exists().where(below.parent_id == Entry.id)
    leaves = sa.select(Entry.id).where(of_owners, is_leaf)
    # SQLite checks the foreign key for each row, so a folder and what it holds need two statements.
    while count_changed(session, sa.delete(Entry).where(Entry.id.in_(leaves))):
        pass
