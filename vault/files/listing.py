"""Pages of an owner's files: four sorts, both orders, and a search. One query each, by keyset.

Every sort ends in the id. Each has an index over the ready rows (objects.models), for both orders. On PostgreSQL a rare
search uses trigrams; others walk the sort's index until the page is full. Texts compare by code points.
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
from vault.objects.models import File, FileState

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
    Sort.NAME: File.name_folded,
    Sort.CREATED_AT: File.created_at,
    Sort.SIZE: File.size_bytes,
    Sort.CONTENT_TYPE: File.content_type,
}


@dataclass(frozen=True, slots=True)
class Listing:
    """Selection and order of files. `search` is part of the name, or its first character, in any case."""

    sort: Sort = Sort.CREATED_AT
    descending: bool = True
    search: str | None = None

    def query(self, owner_id: uuid.UUID, after: Key | None, limit: int) -> sa.Select[File]:
        """Return a query for up to `limit` rows after `after`. Raises InputRefused for a search that finds nothing."""
        ordered = partial(in_order, columns=(_COLUMNS[self.sort], File.id), descending=self.descending)
        own = (File.owner_id == owner_id, File.state == FileState.READY)
        if self.search is None:
            return ordered(sa.select(File).where(*own), after=after).limit(limit)
        # First the ids, from the sort's index alone: skipped rows are never read.
        matching = sa.select(File.id).where(*own, _has(clean_search(self.search), self.sort))
        found = ordered(matching, after=after).limit(limit).subquery()
        return ordered(sa.select(File).join(found, found.c.id == File.id), after=None)

    def key_of(self, row: File) -> Key:
        """Return the keyset position after this row."""
        return getattr(row, _COLUMNS[self.sort].key), row.id


def _has(text: str, sort: Sort) -> sa.ColumnElement[bool]:
    """Match a folded name that begins with a single character, or holds a longer text."""
    # Escapes LIKE's wildcards.
    if len(text) > 1:
        return File.name_folded.contains(text, autoescape=True)
    if sort is not Sort.NAME:
        # Not a range: SQLite would read and sort all of it, instead of walking the sort's index.
        return File.name_folded.startswith(text, autoescape=True)
    # UTF-8 has no surrogates.
    after = {0xD7FF: 0xE000, 0x10FFFF: None}.get(ord(text), ord(text) + 1)
    begins = File.name_folded >= text
    return begins if after is None else sa.and_(begins, File.name_folded < chr(after))


@dataclass(frozen=True, slots=True)
class ListingOfAll:
    """Files of one owner, or of all, owner by owner; newest first. The owners' index serves this list too."""

    owner_id: uuid.UUID | None = None

    def query(self, after: Key | None) -> sa.Select[File]:
        """Return a query for the rows after `after`."""
        query = sa.select(File).where(File.state == FileState.READY)
        if self.owner_id is not None:
            query = query.where(File.owner_id == self.owner_id)
        values = None
        if after is not None:
            owner_id, created_at = after[0].split(" ")
            values = (uuid.UUID(owner_id), datetime.fromisoformat(created_at), after[1])
        return in_order(query, (File.owner_id, File.created_at, File.id), values)

    @staticmethod
    def key_of(row: File) -> Key:
        """Return the keyset position after this row."""
        return f"{row.owner_id} {row.created_at.isoformat()}", row.id
