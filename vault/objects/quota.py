"""An account's used room: bytes as counted on the account, and files."""

import uuid
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.auth.models import User
from vault.core.db import run
from vault.core.errors import NotFound
from vault.objects.models import File, FileState

# For queries of an account, with parameters `owner` and `default_quota`
OWNER: Final = sa.bindparam("owner", type_=sa.Uuid)
QUOTA: Final = sa.func.coalesce(User.quota_bytes, sa.bindparam("default_quota", type_=sa.BigInteger))


def count_of(*where: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    """Return a count of the owner's matching rows; for ready rows an index suffices."""
    return sa.select(sa.func.count()).select_from(File).where(File.owner_id == OWNER, *where).scalar_subquery()


# The account's own count, or a count of rows if it has none
FILES: Final = sa.func.coalesce(User.file_count, count_of(File.state == FileState.READY))
_USAGE: Final = sa.select(User.used_bytes, User.reserved_bytes, QUOTA, FILES).where(User.id == OWNER)
_FREE_BYTES: Final = sa.select(QUOTA - User.used_bytes - User.reserved_bytes).where(User.id == OWNER)


@dataclass(frozen=True, slots=True)
class Usage:
    """`reserved_bytes` belong to running uploads, which `file_count` leaves out."""

    used_bytes: int
    reserved_bytes: int
    quota_bytes: int
    file_count: int


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
