"""How much of a person's room is taken: bytes as the account counts them, and files."""

import uuid
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.auth.models import User
from vault.core.db import run
from vault.core.errors import NotFound
from vault.objects.models import File, FileState

# In queries of an account, whose parameters are `owner` and `default_quota`.
OWNER: Final = sa.bindparam("owner", type_=sa.Uuid)
QUOTA: Final = sa.func.coalesce(User.quota_bytes, sa.bindparam("default_quota", type_=sa.BigInteger))


def count_of(*where: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    """How many of the owner's rows these are. Of the ready ones, an index alone tells it."""
    return sa.select(sa.func.count()).select_from(File).where(File.owner_id == OWNER, *where).scalar_subquery()


# What the account says itself, or counted if it says nothing.
FILES: Final = sa.func.coalesce(User.file_count, count_of(File.state == FileState.READY))
_USAGE: Final = sa.select(User.used_bytes, User.reserved_bytes, QUOTA, FILES).where(User.id == OWNER)
_FREE_BYTES: Final = sa.select(QUOTA - User.used_bytes - User.reserved_bytes).where(User.id == OWNER)


@dataclass(frozen=True, slots=True)
class Usage:
    """`reserved_bytes` belong to uploads that are running; `file_count` does not count those."""

    used_bytes: int
    reserved_bytes: int
    quota_bytes: int
    file_count: int


def usage_of(session: Session, owner_id: uuid.UUID, *, default_quota_bytes: int) -> Usage:
    """In one query. Raises NotFound where there is no such person."""
    row = run(session, _USAGE, owner=owner_id, default_quota=default_quota_bytes).one_or_none()
    if row is None:
        raise NotFound
    return Usage(*row)


def free_bytes_of(session: Session, owner_id: uuid.UUID, *, default_quota_bytes: int) -> int:
    """What may still be stored; negative where the quota was lowered. Raises NotFound where there is no such person."""
    free = run(session, _FREE_BYTES, owner=owner_id, default_quota=default_quota_bytes).scalar()
    if free is None:
        raise NotFound
    return int(free)
