"""Retired keys, checked in the transaction that uses a key, so that a race has one outcome."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from vault.core.db import run
from vault.core.errors import Busy
from vault.encryption.errors import KeyUnavailable
from vault.objects.models import File, RetiredKey

_FIND: Final = (
    sa.select(RetiredKey.key_ref)
    .where(RetiredKey.key_ref == sa.bindparam("wanted"))
    .with_for_update(read=True, key_share=True)
)
_LOCK_TIMEOUT: Final = "5s"
_LOCK_NOT_AVAILABLE: Final = "55P03"


def key_is_retired() -> sa.ColumnElement[bool]:
    """Return a column for queries over files: whether the row's key is retired."""
    return sa.exists().where(RetiredKey.key_ref == File.key_ref).correlate(File)


def refuse_retired(session: Session, key_ref: str) -> None:
    """Raise KeyUnavailable if the key of this transaction's row is retired."""
    # On PostgreSQL even a locking read without result holds ROW SHARE until the transaction ends, which `block_use`
    # waits for. SQLite has one writer.
    if run(session, _FIND, wanted=key_ref).scalar() is not None:
        raise KeyUnavailable("retired")


def block_use(session: Session) -> None:
    """Wait for every transaction that called `refuse_retired`, and block new ones until this one ends. Plain reads
    continue. Raises Busy if that takes too long."""
    if session.get_bind().dialect.name != "postgresql":
        return
    session.execute(sa.text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
    try:
        session.execute(sa.text("LOCK TABLE retired_keys IN EXCLUSIVE MODE"))
    except OperationalError as exc:
        if getattr(exc.orig, "pgcode", None) == _LOCK_NOT_AVAILABLE:
            raise Busy from exc
        raise
