"""How much of a person's room is taken: bytes as the account counts them, and files."""

import uuid
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session

from vault.auth.models import User
from vault.errors import NotFound
from vault.files.models import File, FileState


@dataclass(frozen=True, slots=True)
class Usage:
    """`reserved_bytes` belong to uploads that are running; `file_count` does not count those."""

    used_bytes: int
    reserved_bytes: int
    quota_bytes: int
    file_count: int


def usage_of(session: Session, owner_id: uuid.UUID, *, default_quota_bytes: int) -> Usage:
    """In one query. Raises NotFound where there is no such person."""
    row = session.execute(
        sa.select(
            User.used_bytes,
            User.reserved_bytes,
            sa.func.coalesce(User.quota_bytes, default_quota_bytes),
            files_of(owner_id),
        ).where(User.id == owner_id)
    ).one_or_none()
    if row is None:
        raise NotFound
    return Usage(*row)


def free_bytes_of(session: Session, owner_id: uuid.UUID, *, default_quota_bytes: int) -> int:
    """What may still be stored; negative where the quota was lowered. Raises NotFound where there is no such person."""
    quota = sa.func.coalesce(User.quota_bytes, default_quota_bytes)
    free = session.scalar(sa.select(quota - User.used_bytes - User.reserved_bytes).where(User.id == owner_id))
    if free is None:
        raise NotFound
    return int(free)


def files_of(owner_id: uuid.UUID) -> sa.ColumnElement[int]:
    """How many files a person has, in a query of that account: what it says itself, or counted if it says nothing."""
    return sa.func.coalesce(User.file_count, count_of(owner_id, File.state == FileState.READY))


def count_of(owner_id: uuid.UUID, *where: sa.ColumnElement[bool]) -> sa.ScalarSelect[int]:
    """How many of a person's rows these are. Of the ready ones, an index alone tells it."""
    return sa.select(sa.func.count()).select_from(File).where(File.owner_id == owner_id, *where).scalar_subquery()
