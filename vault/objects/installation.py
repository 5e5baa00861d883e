"""The id and the epoch that tie this database to its object store.

A process with differing ids, or a missing one after the first start, neither writes nor removes: to an empty or wrong
database all objects would look like garbage. The epoch detects older copies of the database: it is raised in the
database and then in the store, so that a copy is behind as soon as its original, or another copy, has been raised.
"""

import re
import threading
import uuid
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import datetime
from time import monotonic
from typing import Final, NoReturn, Self

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.db import run
from vault.core.errors import Busy, InstallationMismatch, ObjectNotFound, StorageFull, StorageUnavailable, VaultError
from vault.core.principal import Principal
from vault.objects.models import Installation, SealedObject
from vault.storage import EPOCH_KEY, INSTALLATION_KEY, OBJECTS, ObjectStore

# An upload to a vanished store is refused only after part of its body has been read.
_CONFIRMED_SECONDS: Final = 10.0
_WAIT_SECONDS: Final = 5.0
# How long readiness trusts that a store is writable: S3 charges for each try.
_WRITABLE_SECONDS: Final = 15.0
# Beyond any number of raises. `adopt` above it would make numbers too long to be read again.
_MOST_RAISED: Final = 10**12
_EPOCH: Final = re.compile(r"([0-9]{1,15}) ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\n")

_IS_IT_MOUNTED: Final = "Check that the right store is mounted."
_ADOPT: Final = "To make this copy the owner: `flask files adopt`."

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Epoch:
    """How often a database has been raised. The token tells apart two databases with one number."""

    number: int = 0
    token: uuid.UUID | None = None

    @classmethod
    def parse(cls, content: bytes) -> Self | None:
        """Parse the object `vault-epoch` (docs/object-format.md); None if it holds anything else."""
        found = _EPOCH.fullmatch(content.decode("ascii", "replace"))
        return cls(int(found[1]), uuid.UUID(found[2])) if found else None

    def to_bytes(self) -> bytes:
        return f"{self.number} {self.token}\n".encode()


@dataclass(frozen=True, slots=True)
class _Held:
    installation_id: str
    epoch: Epoch | None


@dataclass(slots=True)
class InstallationGuard:
    sessions: sessionmaker[Session]
    store: ObjectStore
    clock: Callable[[], datetime]
    audit: AuditService
    wait_seconds: float = _WAIT_SECONDS
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _verified_at: float = field(default=float("-inf"), init=False)
    _failure: VaultError | None = field(default=None, init=False)
    _confirmed: _Held | None = field(default=None, init=False)
    _writable_until: float = field(default=float("-inf"), init=False)

    def require(self) -> None:
        """Confirm, unless done recently, that the store answers and belongs to this database. Raises
        InstallationMismatch, errors of database and store, and Busy while another thread waits for them."""
        asked_at = monotonic()
        if self._failure is None and self._verified_at > asked_at - _CONFIRMED_SECONDS:
            return
        # A store that hangs must not take one thread after another.
        if not self._lock.acquire(timeout=self.wait_seconds):
            raise Busy
        try:
            # Threads that waited share the answer.
            if self._verified_at < asked_at:
                self._failure = self._verified()
                self._verified_at = monotonic()
            if self._failure is not None:
                # A copy: an exception that is raised again grows by a traceback each time.
                raise copy(self._failure) from self._failure
        finally:
            self._lock.release()

    def verify(self) -> None:
        """Compare both sides now; on the first start, with both empty, make the id."""
        theirs, ours = self._both()
        if theirs is None:
            self._first_start()
            theirs, ours = self._both()
        error = _mismatch(theirs, ours)
        self._confirmed = None if error else theirs
        if error:
            _refuse(error)

    def raise_epoch(self) -> None:
        """Verify, and raise both sides' epoch, so that older copies of the database are behind. Raises what `verify`
        raises. Safe to run concurrently in one database's processes."""
        self.verify()
        with self.sessions.begin() as session:
            _raise_to(session, Installation.epoch + 1)
        try:
            self._tell_store()
        except StorageFull as exc:
            # A verified owner may go on to make room; the next raise finds copies.
            log.warning("epoch_not_told", exc_info=exc)
        # Of databases raised concurrently, the last to write the store continues.
        self.verify()

    def adopt(self, principal: Principal) -> bool:
        """Make this database the store's owner, with every copy behind; audited. Returns False if it is the owner
        already. Raises InstallationMismatch for another installation's store."""
        if self.is_owner():
            return False
        theirs, ours = self._both()
        assert ours is not None
        epoch = theirs.epoch if theirs is not None and theirs.epoch is not None else Epoch()
        if epoch.number > _MOST_RAISED:
            # Not a database's epoch: it is overwritten, not exceeded.
            epoch = Epoch()
        with self.sessions.begin() as session:
            above = sa.case((Installation.epoch > epoch.number, Installation.epoch), else_=epoch.number) + 1
            number = _raise_to(session, above)
            self.audit.record(session, principal, Action.FILES_ADOPTED, epoch=number, store_epoch=epoch.number)
        self.store.put_if_absent(INSTALLATION_KEY, ours.installation_id.encode())
        self._tell_store()
        self.verify()
        return True

    def is_owner(self) -> bool:
        """Return whether this database owns the store. Raises InstallationMismatch if `adopt` cannot change that."""
        theirs, ours = self._both()
        error = _mismatch(theirs, ours)
        if theirs is None:
            self._require_empty(but_epoch=True)
            return ours is None
        if error is not None and error.reason == "another_id":
            _refuse(error)
        return error is None

    def confirm_presence(self) -> None:
        """Tell an absent object from an absent store. Raises StorageUnavailable if the store carries no id,
        InstallationMismatch if it is not this database's."""
        theirs, ours = self._both()
        if ours is None:
            return
        if theirs is None:
            raise StorageUnavailable("no_id", "open")
        if error := _mismatch(theirs, ours):
            _refuse(error)

    def health(self) -> None:
        """Raise unless the store can be read and written, and belongs to this database.

        Asks the database only before the first confirmation or after a mismatch, so that a database that hangs does not
        make the store look down. An older copy therefore shows at its start or first upload.
        """
        theirs, ours = self._in_store(), self._confirmed
        if monotonic() >= self._writable_until:
            self.store.health()
            self._writable_until = monotonic() + _WRITABLE_SECONDS
        if ours is not None and theirs is not None:
            # Every process raises it.
            ours = replace(ours, epoch=theirs.epoch)
        elif ours is None:
            try:
                ours = self._in_database()
            except SQLAlchemyError:
                return  # readiness asks the database by itself
        if (theirs or ours) and (error := _mismatch(theirs, ours)):
            raise error

    def _verified(self) -> VaultError | None:
        try:
            self.verify()
        except VaultError as exc:
            return exc
        return None

    def _first_start(self) -> None:
        self._require_empty()
        try:
            with self.sessions.begin() as session:
                if session.scalar(sa.select(Installation.installation_id)) is None:
                    session.add(Installation(installation_id=uuid.uuid4(), created_at=self.clock()))
        except IntegrityError:
            pass  # another process was first; its id is read below
        made = self._in_database()
        assert made is not None
        self._require_empty()
        self.store.put_if_absent(INSTALLATION_KEY, made.installation_id.encode())

    def _require_empty(self, *, but_epoch: bool = False) -> None:
        found = self._what_is_there(but_epoch=but_epoch)
        # Another process may have made the first start, and stored files, since the ids were read.
        if found is not None and None in self._both():
            _refuse(InstallationMismatch("no_id", found))

    def _what_is_there(self, *, but_epoch: bool) -> str | None:
        with self.sessions.begin() as session:
            if session.scalar(sa.select(sa.exists().where(SealedObject.id.is_not(None)))):
                return f"The database knows files, but the store carries no id. {_IS_IT_MOUNTED}"
            if not but_epoch and session.scalar(sa.select(Installation.epoch)):
                return f"The store carries no id any more. {_IS_IT_MOUNTED} If it is new: `flask files adopt`."
        if next(iter(self.store.list(OBJECTS)), None) is not None:
            return "The store holds objects, but carries no id. Is this the right database?"
        return None

    def _tell_store(self) -> None:
        told: _Held | None = None
        # Repeat: another process of this database may have raised the epoch and written it first.
        while told != (ours := self._in_database()):
            assert ours is not None
            assert ours.epoch is not None
            self.store.put(EPOCH_KEY, ours.epoch.to_bytes())
            told = ours

    def _both(self) -> tuple[_Held | None, _Held | None]:
        """Read the store, then the database. The store is written last, so the database is never behind its own."""
        return self._in_store(), self._in_database()

    def _in_database(self) -> _Held | None:
        with self.sessions.begin() as session:
            row = session.execute(
                sa.select(Installation.installation_id, Installation.epoch, Installation.epoch_token)
            ).one_or_none()
        return None if row is None else _Held(str(row[0]), Epoch(row[1], row[2]))

    def _in_store(self) -> _Held | None:
        installation_id = self._object(INSTALLATION_KEY)
        if installation_id is None:
            return None
        epoch = self._object(EPOCH_KEY)
        return _Held(
            installation_id.decode("ascii", "replace").strip(),
            # Stores of older versions have no epoch.
            Epoch() if epoch is None else Epoch.parse(epoch),
        )

    def _object(self, key: str) -> bytes | None:
        try:
            return self.store.get(key)
        except ObjectNotFound:
            return None


def _mismatch(theirs: _Held | None, ours: _Held | None) -> InstallationMismatch | None:
    if theirs is None:
        return InstallationMismatch("no_id", f"The store has no id. {_IS_IT_MOUNTED}")
    if ours is None or theirs.installation_id != ours.installation_id:
        return InstallationMismatch(
            "another_id", "The store carries another database's id. If it is empty, remove its object vault-id."
        )
    if theirs.epoch is None or ours.epoch is None:
        return InstallationMismatch("no_epoch", "Its object vault-epoch is damaged: `flask files adopt` writes it.")
    if theirs.epoch.number > ours.epoch.number:
        return InstallationMismatch("older_copy", f"Another copy of the database has used the store since. {_ADOPT}")
    if theirs.epoch.number == ours.epoch.number and theirs.epoch.token != ours.epoch.token:
        return InstallationMismatch("another_copy", f"Another copy of the database uses the store. {_ADOPT}")
    return None


def _raise_to(session: Session, epoch: sa.ColumnElement[int]) -> int:
    raised = sa.update(Installation).values(epoch=epoch, epoch_token=uuid.uuid4()).returning(Installation.epoch)
    return int(run(session, raised).scalar_one())


def _refuse(error: InstallationMismatch) -> NoReturn:
    log.error(error.code, reason=error.reason, advice=error.advice)
    raise error
