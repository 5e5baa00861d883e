"""The transition that ends a file, pending or ready -> shredded, with its quota, in the caller's transaction."""

import uuid
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.core.db import count_changed, run
from vault.objects.models import File, FileState, StorageAccount

_LOCK_ACCOUNT: Final = (
    sa.select(StorageAccount.may_store)
    .where(StorageAccount.owner_id == sa.bindparam("owner"))
    .with_for_update(key_share=True)
)
_SHREDDED: Final[dict[str, object]] = {
    "state": FileState.SHREDDED,
    "encrypted_data_key": None,
    "sealed_digest": None,
    "reserved_bytes": 0,
}


class TransitionLost(Exception):
    """Another transaction changed the row first. Raised inside the transaction to undo its quota change."""


def shred(session: Session, file: File, *where: sa.ColumnElement[bool], end_lease: bool) -> None:
    """Make the object unreadable for ever and return its bytes to the owner's quota. end_lease is True if no upload can
    be writing the object. Raises TransitionLost unless the row is still as in `file` and matches the conditions."""
    lock_account(session, file.owner_id)
    as_read = (File.id == file.id, File.state == file.state, File.reserved_bytes == file.reserved_bytes)
    values = _SHREDDED | {"lease_until": None} if end_lease else _SHREDDED
    if count_changed(session, sa.update(File).where(*as_read, *where).values(values)) != 1:
        raise TransitionLost
    was_ready = file.state == FileState.READY
    run(
        session,
        sa.update(StorageAccount)
        .where(StorageAccount.owner_id == file.owner_id)
        .values(
            used_bytes=StorageAccount.used_bytes - (file.size_bytes or 0 if was_ready else 0),
            object_count=StorageAccount.object_count - (1 if was_ready else 0),
            reserved_bytes=StorageAccount.reserved_bytes - file.reserved_bytes,
        ),
    )


def shred_some_of(session: Session, owner_id: uuid.UUID, limit: int) -> int:
    """Shred the oldest ready files of an owner, up to `limit`; return how many. Neighbours in time share pages, so a
    batch writes few."""
    lock_account(session, owner_id)
    oldest = (
        sa.select(File.id)
        .where(File.owner_id == owner_id, File.state == FileState.READY)
        .order_by(File.created_at, File.id)
        .limit(limit)
    )
    count = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(File.size_bytes), 0)).where(File.id.in_(oldest))
    files, size_bytes = session.execute(count).one()
    run(session, sa.update(File).where(File.id.in_(oldest)).values(_SHREDDED))
    run(
        session,
        sa.update(StorageAccount)
        .where(StorageAccount.owner_id == owner_id)
        .values(used_bytes=StorageAccount.used_bytes - size_bytes, object_count=StorageAccount.object_count - files),
    )
    return int(files)


def shred_all_of(session: Session, owner_id: uuid.UUID) -> int:
    """Shred every file of an owner whose account is about to be closed; return how many. Leases stay."""
    lock_account(session, owner_id)
    of_owner = (File.owner_id == owner_id, File.state != FileState.SHREDDED)
    # The order in which a rewrap locks rows of many owners.
    session.execute(sa.select(File.id).where(*of_owner).order_by(File.id).with_for_update(key_share=True))
    return count_changed(session, sa.update(File).where(*of_owner).values(_SHREDDED))


def lock_account(session: Session, owner_id: uuid.UUID) -> bool:
    """Lock the owner's account, before any file's row, and return whether it exists and may store.

    One order prevents deadlocks. A transition that loses a race would return bytes twice, so it changes nothing or is
    undone.
    """
    return bool(run(session, _LOCK_ACCOUNT, owner=owner_id).scalar())
