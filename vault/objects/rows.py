"""Many rows in constant memory: in batches by id, and as random samples."""

import random
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session, sessionmaker

from vault.objects.models import SealedObject

BATCH: Final = 200


def batches_by_id(
    sessions: sessionmaker[Session], query: sa.Select[*tuple[Any, ...]], *, size: int = BATCH
) -> Iterator[Sequence[Any]]:
    """Yield a query's rows by id, in batches, each row once. The first column is the SealedObject or its id. The
    transaction is closed while the caller works."""
    last = uuid.UUID(int=0)
    while True:
        with sessions.begin() as session:
            rows = session.execute(query.where(SealedObject.id > last).order_by(SealedObject.id).limit(size)).all()
        if not rows:
            return
        yield rows
        last = _id_of(rows[-1])


def rows_by_id(sessions: sessionmaker[Session], query: sa.Select[*tuple[Any, ...]]) -> Iterator[Any]:
    """Yield a query's rows by id, one by one."""
    for batch in batches_by_id(sessions, query):
        yield from batch


def sampled(sessions: sessionmaker[Session], query: sa.Select[*tuple[Any, ...]], count: int) -> Iterator[Any]:
    """Yield about `count` different random rows of a query, or all if there are fewer."""
    with sessions.begin() as session:
        there = (
            session.scalar(sa.select(sa.func.count()).select_from(query.with_only_columns(SealedObject.id).subquery()))
            or 0
        )
    if there <= count:
        yield from rows_by_id(sessions, query)
        return
    seen: set[uuid.UUID] = set()
    for _ in range(20 * count):
        # Ids are random (UUID 4), so the next id after a random point is a fair draw; after the last, the first.
        point = uuid.UUID(int=random.getrandbits(128))  # nosec B311  # a sample, no secret
        with sessions.begin() as session:
            first = query.order_by(SealedObject.id).limit(1)
            row = session.execute(first.where(SealedObject.id >= point)).first() or session.execute(first).first()
        if row is None or len(seen) == count:
            return
        if _id_of(row) not in seen:
            seen.add(_id_of(row))
            yield row


def _id_of(row: Any) -> uuid.UUID:
    return row[0].id if isinstance(row[0], SealedObject) else row[0]
