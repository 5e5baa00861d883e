"""Pages of an owner's files: four sorts, both orders, and a search. One query each, by keyset.

Every sort ends in the id. Each has an index over the files outside of the trash (files.models), for both orders. On
PostgreSQL a rare search uses trigrams; others walk the sort's index until the page is full. Texts compare by code
points.
"""

import enum
import uuid
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import InstrumentedAttribute

from vault.core.paging import Key, in_order
from vault.core.text import clean_search
from vault.files.lookup import FILES
from vault.files.models import Entry, EntryKind

SortKey = str | int | datetime


class Sort(enum.StrEnum):
    NAME = "name"
    CREATED_AT = "created_at"
    SIZE = "size"
    CONTENT_TYPE = "content_type"

    @property
    def key_type(self) -> type[SortKey]:
        """Return the type of the sort's keys."""
        return {Sort.CREATED_AT: datetime, Sort.SIZE: int}.get(self, str)


_COLUMNS: Final[dict[Sort, InstrumentedAttribute[Any]]] = {
    Sort.NAME: Entry.name_folded,
    Sort.CREATED_AT: Entry.created_at,
    Sort.SIZE: Entry.size_bytes,
    Sort.CONTENT_TYPE: Entry.content_type,
}


@dataclass(frozen=True, slots=True)
class Within:
    """A folder, None for the root, alone or with all below it."""

    folder_id: uuid.UUID | None
    recursive: bool


@dataclass(frozen=True, slots=True)
class Listing:
    """Selection and order of files. `search` is part of the name, or its first character, in any case."""

    sort: Sort = Sort.CREATED_AT
    descending: bool = True
    search: str | None = None
    within: Within | None = None

    def query(self, owner_id: uuid.UUID, after: Key | None, limit: int) -> sa.Select[Any, Any]:
        """Return a query for up to `limit` files after `after`, each with its current object; `within` names a folder
        by its id. Raises InputRefused for a search that finds nothing."""
        ordered = partial(in_order, columns=(_COLUMNS[self.sort], Entry.id), descending=self.descending)
        chosen = [Entry.owner_id == owner_id, Entry.kind == EntryKind.FILE, ~Entry.hidden]
        if self.within is not None:
            chosen += _below(self.within.folder_id) if self.within.recursive else _directly_in(self.within.folder_id)
        if self.search is not None:
            chosen.append(_has(clean_search(self.search), self.sort))
        elif self.within is None or not self.within.recursive:
            return ordered(FILES.where(*chosen), after=after).limit(limit)
        # First the ids, from the sort's index alone: skipped rows are never read.
        found = ordered(sa.select(Entry.id).where(*chosen), after=after).limit(limit).subquery()
        return ordered(FILES.join(found, found.c.id == Entry.id), after=None)

    def key_of(self, row: Any) -> Key:
        """Return the keyset position after this row."""
        return getattr(row.Entry, _COLUMNS[self.sort].key), row.Entry.id


def _directly_in(folder_id: uuid.UUID | None) -> list[sa.ColumnElement[bool]]:
    return [Entry.parent_id == folder_id, Entry.trashed_at.is_(None)]


def _below(folder_id: uuid.UUID | None) -> list[sa.ColumnElement[bool]]:
    """Match what is in a folder or in one below it: the folders are collected once, each from an index alone."""
    folders = sa.select(sa.literal(folder_id, sa.Uuid).label("id")).cte("folders", recursive=True)
    inner = sa.orm.aliased(Entry)
    step = sa.select(inner.id).join(folders, inner.parent_id == folders.c.id)
    # Without duplicates, so that a circle in a damaged database ends.
    folders = folders.union(step.where(inner.kind == EntryKind.FOLDER, inner.trashed_at.is_(None)))
    # PostgreSQL would turn a mere IN into reading every file of every folder.
    return [Entry.parent_id.in_(sa.select(folders.c.id)).is_(sa.true())]


def _has(text: str, sort: Sort) -> sa.ColumnElement[bool]:
    """Match a folded name that begins with a single character, or holds a longer text."""
    # Escapes LIKE's wildcards.
    if len(text) > 1:
        return Entry.name_folded.contains(text, autoescape=True)
    if sort is not Sort.NAME:
        # Not a range: SQLite would read and sort all of it, instead of walking the sort's index.
        return Entry.name_folded.startswith(text, autoescape=True)
    # UTF-8 has no surrogates.
    after = {0xD7FF: 0xE000, 0x10FFFF: None}.get(ord(text), ord(text) + 1)
    begins = Entry.name_folded >= text
    return begins if after is None else sa.and_(begins, Entry.name_folded < chr(after))


@dataclass(frozen=True, slots=True)
class ListingOfAll:
    """Files of one owner, or of all, owner by owner; newest first, wherever they are. Those outside of the trash and
    those in it have an index each in this order."""

    owner_id: uuid.UUID | None = None

    def query(self, after: Key | None, limit: int) -> sa.Select[Any, Any]:
        """Return a query for up to `limit` files after `after`, each with its current object."""
        columns = (Entry.owner_id, Entry.created_at, Entry.id)
        files = sa.select(Entry.id).where(Entry.kind == EntryKind.FILE)
        if self.owner_id is not None:
            files = files.where(Entry.owner_id == self.owner_id)
        values = None
        if after is not None:
            owner_id, created_at = after[0].split(" ")
            values = (uuid.UUID(owner_id), datetime.fromisoformat(created_at), after[1])
        # Each half from its index alone: PostgreSQL would sort all of a union.
        halves = [in_order(files.where(half), columns, values).limit(limit) for half in (~Entry.hidden, Entry.hidden)]
        found = sa.union_all(*(sa.select(half.subquery()) for half in halves)).subquery()
        return in_order(FILES.join(found, found.c.id == Entry.id), columns, None).limit(limit)

    @staticmethod
    def key_of(row: Any) -> Key:
        """Return the keyset position after this row."""
        return f"{row.Entry.owner_id} {row.Entry.created_at.isoformat()}", row.Entry.id
