"""Leases of running uploads, renewed by one thread per process, since slow clients block the uploads'."""

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from vault.core.db import db_now, run
from vault.objects.models import File, FileState

LEASE_SECONDS: Final = 15 * 60
_RENEW_SECONDS: Final = 60.0

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
                    sa.update(File)
                    .where(File.id == file_id, File.state == FileState.PENDING)
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
