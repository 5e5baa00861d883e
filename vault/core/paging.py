"""Pages of lists by keyset: the next page begins after the last row's sort key and id, whatever was added before."""

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import InstrumentedAttribute

Item = TypeVar("Item")
Row = TypeVar("Row")
Query = TypeVar("Query", bound=sa.Select[*tuple[Any, ...]])
# A row's sort key (text, number or time) and id
Key = tuple[Any, uuid.UUID]


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """`next_after` is the last item's key if there are more."""

    items: Sequence[Item]
    next_after: Key | None


def page(rows: Iterable[Row], limit: int, key_of: Callable[[Row], Key], item_of: Callable[[Row], Item]) -> Page[Item]:
    """Return a page of up to `limit` items. It is the last one unless there are more rows."""
    some = list(islice(rows, limit + 1))
    return Page([item_of(row) for row in some[:limit]], key_of(some[limit - 1]) if len(some) > limit else None)


def in_order(
    query: Query, columns: Sequence[InstrumentedAttribute[Any]], after: Sequence[Any] | None, *, descending: bool = True
) -> Query:
    """Order a query by these columns; with `after`, only the rows after these values."""
    if after is not None:
        key = sa.tuple_(*columns)
        bound = sa.tuple_(*(sa.bindparam(None, value, part.type) for value, part in zip(after, columns, strict=True)))
        query = query.where(key < bound if descending else key > bound)
    return query.order_by(*(part.desc() if descending else part.asc() for part in columns))
