"""What must not end while it is used: rows of running uploads, by leases, and keys, by locks.

One thread per process renews the leases, since slow clients block the uploads'. Retired keys are checked in the
transaction that uses a key, so that a race has one outcome.
"""

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from vault.core.db import db_now, run
from vault.core.errors import Busy
from vault.encryption.errors import KeyUnavailable
from vault.objects.models import ObjectState, RetiredKey, SealedObject

LEASE_SECONDS: Final = 15 * 60
# Why a key is unavailable for ever
RETIRED: Final = "retired"
_RENEW_SECONDS: Final = 60.0
_FIND_RETIRED: Final = (
    sa.select(RetiredKey.key_ref)
    .where(RetiredKey.key_ref == sa.bindparam("wanted"))
    .with_for_update(read=True, key_share=True)
)
_LOCK_TIMEOUT: Final = "5s"
_LOCK_NOT_AVAILABLE: Final = "55P03"

log = structlog.get_logger(__name__)


class LeaseKeeper:
    def __init__(self, sessions: sessionmaker[Session], *, every_seconds: float = _RENEW_SECONDS) -> None:
        self._sessions = sessions
        self._every_seconds = every_seconds
        self._lock = threading.Lock()
        self._held: set[uuid.UUID] = set()
        self._thread_pid = 0

    @contextmanager
    def held(self, file_id: uuid.UUID) -> Iterator[None]:
        """Renew the row's lease while the block runs."""
        with self._lock:
            self._held.add(file_id)
            if self._thread_pid != os.getpid():
                self._thread_pid = os.getpid()
                threading.Thread(target=self._run, name="lease-keeper", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._held.discard(file_id)

    def renew(self) -> None:
        """Renew the lease of every running upload whose row is still pending."""
        with self._lock:
            file_ids = list(self._held)
        for file_id in file_ids:
            # One row a transaction: two transactions that lock several rows could deadlock.
            with self._sessions.begin() as session:
                run(
                    session,
                    sa.update(SealedObject)
                    .where(SealedObject.id == file_id, SealedObject.state == ObjectState.PENDING)
                    .values(lease_until=db_now(LEASE_SECONDS)),
                )

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(self._every_seconds)
            try:
                self.renew()
            except SQLAlchemyError as exc:
                # Fourteen renewals may fail before a lease ends.
                log.warning("lease_renewal_failed", exc_info=exc)


def key_is_retired() -> sa.ColumnElement[bool]:
    """Return a column for queries over files: whether the row's key is retired."""
    return sa.exists().where(RetiredKey.key_ref == SealedObject.key_ref).correlate(SealedObject)


def refuse_retired(session: Session, key_ref: str) -> None:
    """Raise KeyUnavailable if the key of this transaction's row is retired."""
    # On PostgreSQL even a locking read without result holds ROW SHARE until the transaction ends, which `block_use`
    # waits for. SQLite has one writer.
    if run(session, _FIND_RETIRED, wanted=key_ref).scalar() is not None:
        raise KeyUnavailable(RETIRED)


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
