"""The id that ties this database to its object store.

A process whose two ids differ, or that finds one missing where it cannot be the first start, neither writes nor
removes anything: an empty or wrong database beside a full store must not make its objects look like garbage.
"""

import threading
import uuid
from collections.abc import Callable
from copy import copy
from datetime import datetime
from time import monotonic
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from vault.errors import Busy, InstallationMismatch, ObjectNotFound, VaultError
from vault.files.models import File, Installation
from vault.storage import INSTALLATION_KEY, OBJECTS, ObjectStore

# An upload to a store that went away since is refused only when part of its body has been read.
_CONFIRMED_SECONDS: Final = 10.0
_WAIT_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)


class InstallationGuard:
    def __init__(
        self,
        sessions: sessionmaker[Session],
        store: ObjectStore,
        clock: Callable[[], datetime],
        *,
        wait_seconds: float = _WAIT_SECONDS,
    ) -> None:
        self._sessions = sessions
        self._store = store
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._lock = threading.Lock()
        self._verified_at = float("-inf")
        self._failure: VaultError | None = None

    def require(self) -> None:
        """Confirm, if nobody has of late, that the store answers and belongs to this database.

        Raises InstallationMismatch, what database and store raise, and Busy behind somebody who waits for them.
        """
        asked_at = monotonic()
        if self._failure is None and self._verified_at > asked_at - _CONFIRMED_SECONDS:
            return
        # A store that hangs must not take one thread after another.
        if not self._lock.acquire(timeout=self._wait_seconds):
            raise Busy
        try:
            # Those who waited for an answer share it.
            if self._verified_at < asked_at:
                self._failure = self._verified()
                self._verified_at = monotonic()
            if self._failure is not None:
                # A copy, with the store's code: an exception that is raised again grows by a traceback each time.
                raise copy(self._failure) from self._failure
        finally:
            self._lock.release()

    def verify(self) -> None:
        """Compare the two ids now; on the very first start, with both sides empty, make them."""
        # The store's first, since a first start elsewhere writes that one last.
        theirs, ours = self._id_in_store(), self._id_in_database()
        if ours is None and theirs is None:
            ours = self._first_start()
        if ours is not None and theirs is None:
            self._complete_first_start(ours)
            theirs = self._id_in_store()
        if ours is None:
            _refuse("the store carries the id of another database; if it is empty, remove its object vault-id")
        if str(ours) != theirs:
            _refuse("the store carries the id of another database")

    def _verified(self) -> VaultError | None:
        try:
            self.verify()
        except VaultError as exc:
            return exc
        return None

    def _first_start(self) -> uuid.UUID:
        self._require_empty()
        try:
            with self._sessions.begin() as session:
                session.add(Installation(installation_id=uuid.uuid4(), created_at=self._clock()))
        except IntegrityError:
            pass  # another process was first; its id is read below
        made = self._id_in_database()
        assert made is not None
        return made

    def _complete_first_start(self, ours: uuid.UUID) -> None:
        # The id is in the database only: a first start that was cut short, or a store that was lost or exchanged.
        self._require_empty()
        self._store.put_if_absent(INSTALLATION_KEY, str(ours).encode())

    def _require_empty(self) -> None:
        found = self._what_is_there()
        # Another process may have made the first start, and stored files, since the ids were read.
        if found is not None and None in (self._id_in_store(), self._id_in_database()):
            _refuse(found)

    def _what_is_there(self) -> str | None:
        with self._sessions.begin() as session:
            if session.scalar(sa.select(sa.exists().where(File.id.is_not(None)))):
                return "the database knows files, but the store carries no id: is it the right store?"
        if next(iter(self._store.list(OBJECTS)), None) is not None:
            return "the store holds objects, but carries no id: is it the right database?"
        return None

    def _id_in_database(self) -> uuid.UUID | None:
        with self._sessions.begin() as session:
            return session.scalar(sa.select(Installation.installation_id))

    def _id_in_store(self) -> str | None:
        try:
            return self._store.get(INSTALLATION_KEY).decode("ascii", "replace").strip()
        except ObjectNotFound:
            return None


def _refuse(reason: str) -> None:
    log.error("installation_mismatch", reason=reason)
    raise InstallationMismatch
