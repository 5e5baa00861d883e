"""What lies below an entry: few entries in the caller's transaction, or all of them in batches by a task.

Every change of a subtree holds the tree's lock, and asks whether its folder is live. So what was read below an entry of
the trash stays right between two batches, for as long as the entry is there.
"""

import uuid
from collections.abc import Iterator, Sequence
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from vault.files.models import Entry, EntryKind

# Up to so many entries are changed by the request itself, and so many by one transaction.
BY_REQUEST: Final = 1000
BATCH: Final = 500


def below(session: Session, top_id: uuid.UUID, most: int = BY_REQUEST) -> list[list[uuid.UUID]] | None:
    """Return the ids below an entry, level by level from the top; None if there are more than `most`."""
    levels: list[list[uuid.UUID]] = []
    folders, count = [top_id], 0
    while folders:
        level: list[uuid.UUID] = []
        found: list[uuid.UUID] = []
        for start in range(0, len(folders), BATCH):
            children = sa.select(Entry.id, Entry.kind).where(Entry.parent_id.in_(folders[start : start + BATCH]))
            for entry_id, kind in session.execute(children.limit(most - count - len(level) + 1)):
                level.append(entry_id)
                if kind == EntryKind.FOLDER:
                    found.append(entry_id)
            if count + len(level) > most:
                return None
        if level:
            levels.append(level)
        folders, count = found, count + len(level)
    return levels


def folders_below(sessions: sessionmaker[Session], top_id: uuid.UUID) -> list[list[uuid.UUID]]:
    """Return the ids of an entry and of all folders below it, level by level from the top."""
    levels = [[top_id]]
    while levels[-1]:
        found: list[uuid.UUID] = []
        for start in range(0, len(levels[-1]), BATCH):
            some = levels[-1][start : start + BATCH]
            with sessions.begin() as session:
                found += session.scalars(
                    sa.select(Entry.id).where(Entry.parent_id.in_(some), Entry.kind == EntryKind.FOLDER)
                )
        levels.append(found)
    return levels[:-1]


def batches_below(
    sessions: sessionmaker[Session], folders: Sequence[uuid.UUID], *where: sa.ColumnElement[bool]
) -> Iterator[list[uuid.UUID]]:
    """Yield the ids of matching entries in these folders, at most a batch at a time; no transaction stays open."""
    for start in range(0, len(folders), BATCH):
        some = folders[start : start + BATCH]
        with sessions.begin() as session:
            found = session.scalars(sa.select(Entry.id).where(Entry.parent_id.in_(some), *where)).all()
        for first in range(0, len(found), BATCH):
            yield list(found[first : first + BATCH])
