"""An owner's storage account: its row, and the room that is used, in bytes and files."""

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.core.db import count_changed, db_now, run
from vault.core.errors import NotFound, QuotaExceeded, TooManyFiles, TooManyUploads
from vault.objects.models import ObjectState, SealedObject
from vault.objects.models import StorageAccount as Account

# For queries of an account, with parameters `owner` and `default_quota`
_OWNER: Final = sa.bindparam("owner", type_=sa.Uuid)
_QUOTA: Final = sa.func.coalesce(Account.quota_bytes, sa.bindparam("default_quota", type_=sa.BigInteger))


def _count_of(*where: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    """Return a count of the owner's matching rows."""
    return (
        sa.select(sa.func.count())
        .select_from(SealedObject)
        .where(SealedObject.owner_id == _OWNER, *where)
        .scalar_subquery()
    )


# The account's own count, or a count of rows if it has none
_FILES: Final = sa.func.coalesce(Account.object_count, _count_of(SealedObject.state == ObjectState.READY))
_VERSIONS_BYTES: Final = (
    sa.select(sa.cast(sa.func.coalesce(sa.func.sum(SealedObject.size_bytes), 0), sa.BigInteger))
    .where(
        SealedObject.owner_id == _OWNER,
        SealedObject.superseded_at.is_not(None),
        SealedObject.state == ObjectState.READY,
    )
    .scalar_subquery()
)
_USAGE: Final = sa.select(Account.used_bytes, Account.reserved_bytes, _QUOTA, _FILES, _VERSIONS_BYTES).where(
    Account.owner_id == _OWNER
)
_FREE_BYTES: Final = sa.select(_QUOTA - Account.used_bytes - Account.reserved_bytes).where(Account.owner_id == _OWNER)
_WANTED: Final = sa.bindparam("wanted", type_=sa.BigInteger)
_RESERVED: Final = sa.bindparam("reserved", type_=sa.BigInteger)
_TAKE_QUOTA: Final = (
    sa.update(Account)
    .where(
        Account.owner_id == _OWNER, Account.may_store, Account.used_bytes + Account.reserved_bytes + _WANTED <= _QUOTA
    )
    .values(reserved_bytes=Account.reserved_bytes + _WANTED)
)
_COUNT_FILES: Final = sa.select(
    _count_of(SealedObject.state == ObjectState.PENDING, SealedObject.lease_until > db_now()),
    _count_of(SealedObject.state == ObjectState.PENDING, SealedObject.parked.is_(True)),
    _FILES,
    Account.object_count.is_not(None),
).where(Account.owner_id == _OWNER)
_KEEP_COUNT: Final = sa.update(Account).where(Account.owner_id == _OWNER).values(object_count=sa.bindparam("ready"))
_MOVE_TO_USED: Final = (
    sa.update(Account)
    # If another process has ended the upload, the bytes may have been given back already, which the schema minds.
    .where(Account.owner_id == _OWNER, Account.may_store, Account.reserved_bytes >= _RESERVED)
    .values(
        reserved_bytes=Account.reserved_bytes - _RESERVED,
        used_bytes=Account.used_bytes + sa.bindparam("size", type_=sa.BigInteger),
        object_count=Account.object_count + 1,
    )
)


@dataclass(frozen=True, slots=True)
class Usage:
    """`reserved_bytes` belong to unfinished uploads, which `file_count` leaves out. `versions_bytes` are those of older
    versions, part of `used_bytes`."""

    used_bytes: int
    reserved_bytes: int
    quota_bytes: int
    file_count: int
    versions_bytes: int


def usage_of(session: Session, owner_id: uuid.UUID, *, default_quota_bytes: int) -> Usage:
    """Return the usage by one query. Raises NotFound for an unknown account."""
    row = run(session, _USAGE, owner=owner_id, default_quota=default_quota_bytes).one_or_none()
    if row is None:
        raise NotFound
    return Usage(*row)


def free_bytes_of(session: Session, owner_id: uuid.UUID, *, default_quota_bytes: int) -> int:
    """Return the remaining bytes, negative below a lowered quota. Raises NotFound for an unknown account."""
    free = run(session, _FREE_BYTES, owner=owner_id, default_quota=default_quota_bytes).scalar()
    if free is None:
        raise NotFound
    return int(free)


def take_quota(session: Session, owner_id: uuid.UUID, wanted: int, *, default_quota_bytes: int) -> None:
    """Reserve bytes by one conditional UPDATE, which parallel uploads cannot pass together. Raises QuotaExceeded."""
    if not count_changed(session, _TAKE_QUOTA, owner=owner_id, wanted=wanted, default_quota=default_quota_bytes):
        raise QuotaExceeded


def limit_files(
    session: Session, owner_id: uuid.UUID, *, most_files: int, most_running: int, most_parked: int | None = None
) -> None:
    """Raise TooManyUploads or TooManyFiles if the owner, whose row the caller has locked, may not begin another. With
    `most_parked`, it is a resumable one, which does not count as running."""
    running, parked, ready, is_counted = run(session, _COUNT_FILES, owner=owner_id).one()
    if not is_counted:
        run(session, _KEEP_COUNT, owner=owner_id, ready=ready)
    if most_parked is not None and parked >= most_parked:
        raise TooManyUploads("You have the maximum number of unfinished uploads. Finish or end one.")
    if most_parked is None and running >= most_running:
        raise TooManyUploads
    if ready + running + parked >= most_files:
        raise TooManyFiles


def move_to_used(session: Session, owner_id: uuid.UUID, *, reserved: int, size: int) -> bool:
    """Turn reserved bytes into the bytes of one more file; False if they are not reserved any more."""
    return count_changed(session, _MOVE_TO_USED, owner=owner_id, reserved=reserved, size=size) == 1


def count_folders(session: Session, owner_id: uuid.UUID, change: int, *, most: int | None = None) -> None:
    """Count folders that are made or removed, of an owner whose row the caller has locked. Raises TooManyFiles."""
    counted = sa.update(Account).where(Account.owner_id == owner_id).values(folder_count=Account.folder_count + change)
    if most is not None:
        counted = counted.where(Account.folder_count + change <= most)
    if not count_changed(session, counted) and most is not None:
        raise TooManyFiles("You have the maximum number of folders. Delete some first.")


def open_accounts(session: Session, owner_ids: Collection[uuid.UUID]) -> None:
    """Make the storage accounts of new owners."""
    session.add_all(Account(owner_id=owner_id) for owner_id in owner_ids)
    session.flush()


def close_accounts(session: Session, owner_ids: Collection[uuid.UUID]) -> None:
    """Remove the storage accounts of owners whose files are shredded."""
    run(session, sa.delete(Account).where(Account.owner_id.in_(owner_ids)))


def let_store(session: Session, owner_ids: Collection[uuid.UUID], *, allowed: bool) -> None:
    """Allow or refuse owners' new files, also those whose upload has begun."""
    run(session, sa.update(Account).where(Account.owner_id.in_(owner_ids)).values(may_store=allowed))
