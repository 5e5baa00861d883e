"""The transition that ends an object, pending or ready -> shredded, with its quota, in the caller's transaction."""

import uuid
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.core.db import count_changed, db_now, run
from vault.objects.models import Erasure, ObjectState, SealedObject, StorageAccount

_LOCK_ACCOUNT: Final = (
    sa.select(StorageAccount.may_store)
    .where(StorageAccount.owner_id == sa.bindparam("owner"))
    .with_for_update(key_share=True)
)
_SHREDDED: Final[dict[str, object]] = {
    "state": ObjectState.SHREDDED,
    "encrypted_data_key": None,
    "sealed_digest": None,
    "reserved_bytes": 0,
}
# The commitment is the last part of a header (docs/object-format.md, "Header").
_ERASURES: Final = ("id", "entry_id", "owner_id", "version_no", "object_id", "commitment", "erased_at")
_ERASED: Final = sa.select(
    SealedObject.id,
    SealedObject.entry_id,
    SealedObject.owner_id,
    SealedObject.version_no,
    SealedObject.object_id,
    sa.func.substr(SealedObject.header, 65, 32),
    db_now(),
).where(SealedObject.state == ObjectState.READY)


class TransitionLost(Exception):
    """Another transaction changed the row first. Raised inside the transaction to undo its quota change."""


@dataclass(frozen=True, slots=True)
class Shredded:
    """A row that was shredded, and its object, whose key caches may hold."""

    row_id: uuid.UUID
    object_id: uuid.UUID


def shred_pending(session: Session, row: SealedObject, *where: sa.ColumnElement[bool], end_lease: bool) -> None:
    """Make a pending object unreadable for ever and return its bytes to the owner's quota. end_lease is True if no
    upload can be writing the object. Raises TransitionLost unless the row is still as in `row` and matches the
    conditions."""
    lock_account(session, row.owner_id)
    as_read = (
        SealedObject.id == row.id,
        SealedObject.state == ObjectState.PENDING,
        SealedObject.reserved_bytes == row.reserved_bytes,
    )
    values = _SHREDDED | {"lease_until": None} if end_lease else _SHREDDED
    if count_changed(session, sa.update(SealedObject).where(*as_read, *where).values(values)) != 1:
        raise TransitionLost
    _give_back(session, row.owner_id, reserved_bytes=row.reserved_bytes)


def shred_versions(session: Session, owner_id: uuid.UUID, *where: sa.ColumnElement[bool]) -> list[Shredded]:
    """Shred an owner's ready objects that match, in the order in which a rewrap locks rows."""
    lock_account(session, owner_id)
    chosen = (SealedObject.owner_id == owner_id, SealedObject.state == ObjectState.READY, *where)
    columns = sa.select(SealedObject.id, SealedObject.object_id, SealedObject.size_bytes).where(*chosen)
    rows = session.execute(columns.order_by(SealedObject.id).with_for_update(key_share=True)).all()
    if rows:
        # With the account locked, no other row becomes ready.
        _record(session, *chosen)
        run(session, sa.update(SealedObject).where(*chosen).values(_SHREDDED))
        _give_back(session, owner_id, objects=len(rows), used_bytes=sum(row.size_bytes for row in rows))
    return [Shredded(row.id, row.object_id) for row in rows]


def shred_all_of(session: Session, owner_id: uuid.UUID) -> None:
    """Shred every object of an owner whose account is about to be closed. Leases stay."""
    lock_account(session, owner_id)
    of_owner = (SealedObject.owner_id == owner_id, SealedObject.state != ObjectState.SHREDDED)
    # The order in which a rewrap locks rows of many owners.
    session.execute(
        sa.select(SealedObject.id).where(*of_owner).order_by(SealedObject.id).with_for_update(key_share=True)
    )
    _record(session, SealedObject.owner_id == owner_id)
    run(session, sa.update(SealedObject).where(*of_owner).values(_SHREDDED))


def _record(session: Session, *where: sa.ColumnElement[bool]) -> None:
    """Write the erasure of each matching ready object, before its row changes."""
    run(session, sa.insert(Erasure).from_select(_ERASURES, _ERASED.where(*where)))


def _give_back(
    session: Session, owner_id: uuid.UUID, *, objects: int = 0, used_bytes: int = 0, reserved_bytes: int = 0
) -> None:
    run(
        session,
        sa.update(StorageAccount)
        .where(StorageAccount.owner_id == owner_id)
        .values(
            used_bytes=StorageAccount.used_bytes - used_bytes,
            object_count=StorageAccount.object_count - objects,
            reserved_bytes=StorageAccount.reserved_bytes - reserved_bytes,
        ),
    )


def lock_account(session: Session, owner_id: uuid.UUID) -> bool:
    """Lock the owner's account, before any file's row, and return whether it exists and may store.

    One order prevents deadlocks. A transition that loses a race would return bytes twice, so it changes nothing or is
    undone.
    """
    return bool(run(session, _LOCK_ACCOUNT, owner=owner_id).scalar())
