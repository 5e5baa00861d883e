"""Ends what crashed uploads left, and removes objects of shredded rows.

Only objects of committed shredded rows are removed. Objects without rows are counted, and deleted on request only: to a
wrong database every object looks so. In a copy of the database, a pending upload may be published in the original
meanwhile. The epoch detects copies, except one started before its original was raised again; so a finished,
unpublished object stays for a day after its row has ended.
"""

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import sqlalchemy as sa
import structlog

from vault.audit.models import Action
from vault.audit.service import AuditService
from vault.core.db import count_changed, db_now, run
from vault.core.errors import ObjectChanged, ObjectNotFound, StorageError
from vault.core.parts import Core
from vault.core.principal import Principal
from vault.objects.installation import InstallationGuard
from vault.objects.models import ObjectState, SealedObject
from vault.objects.rows import BATCH, rows_by_id
from vault.objects.shredding import TransitionLost, shred_pending
from vault.observe.metrics import REAPED
from vault.storage import OBJECT_KEY, OBJECTS, ObjectStore, object_key

_KEEP_FINISHED_SECONDS: Final = 24 * 60 * 60

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class ReapReport:
    """`expired`: pending rows ended. `removed`: rows and objects gone. `failed`: kept for the next pass."""

    expired: int = 0
    removed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class OrphanReport:
    """Objects without rows. `foreign` counts keys of another form, which are never deleted."""

    objects: int
    orphans: tuple[uuid.UUID, ...] = field(repr=False)
    foreign: int


@dataclass(frozen=True, slots=True)
class Reaper:
    core: Core
    store: ObjectStore
    installation: InstallationGuard
    audit: AuditService

    def reap(
        self,
        principal: Principal,
        *,
        progress: Callable[[int], None] = lambda _: None,
        may_go_on: Callable[[], bool] = lambda: True,
    ) -> ReapReport:
        """End pending rows with expired leases, and remove shredded rows with their objects.

        Raises AuditUnavailable before any change, and InstallationMismatch, also midway. `progress` is called for each
        finished row; `may_go_on` before each row.
        """
        # Always, so that an older copy of this database is found.
        self.installation.raise_epoch()
        foreseen, report = self._foreseen(), ReapReport()
        if not foreseen.removed:
            return report
        # First, since an action that cannot be audited does not happen.
        self._record(principal, Action.FILES_REAP_STARTED, expired=foreseen.expired, removed=foreseen.removed)
        for (file,) in rows_by_id(self.core.sessions, sa.select(SealedObject).where(*_abandoned())):
            if not may_go_on():
                break
            report.expired += self._expire(file)
            progress(1)
        for (file,) in rows_by_id(self.core.sessions, sa.select(SealedObject).where(*_removable())):
            if not may_go_on():
                break
            if self._remove(file):
                report.removed += 1
            else:
                report.failed += 1
            progress(1)
        self._record(
            principal, Action.FILES_REAPED, expired=report.expired, removed=report.removed, failed=report.failed
        )
        return report

    def foresee(self) -> ReapReport:
        """Count what `reap` would do without failures and finished objects. Raises InstallationMismatch."""
        self.installation.verify()
        return self._foreseen()

    def _foreseen(self) -> ReapReport:
        with self.core.sessions.begin() as session:
            abandoned, removable = (
                session.scalar(sa.select(sa.func.count()).select_from(SealedObject).where(*where)) or 0
                for where in (_abandoned(), _removable())
            )
        return ReapReport(expired=abandoned, removed=abandoned + removable)

    def remove(self, file_id: uuid.UUID) -> bool:
        """Remove one shredded file's object and row; False if it must stay or could not be removed yet."""
        self.installation.require()
        with self.core.sessions.begin() as session:
            file = session.scalar(sa.select(SealedObject).where(SealedObject.id == file_id, *_removable()))
        return file is not None and self._remove(file)

    def remove_all_of(self, owner_id: uuid.UUID, *, may_go_on: Callable[[], bool] = lambda: True) -> int:
        """Remove a deleted account's objects and rows while `may_go_on` allows; return how many."""
        self.installation.require()
        removed = 0
        for (file,) in rows_by_id(
            self.core.sessions, sa.select(SealedObject).where(SealedObject.owner_id == owner_id, *_removable())
        ):
            if not may_go_on():
                break
            removed += self._remove(file)
        return removed

    def find_orphans(self, *, progress: Callable[[int], None] = lambda _: None) -> OrphanReport:
        """List the store before asking for rows, so that new uploads do not look lost. `progress` receives objects."""
        self.installation.verify()
        objects, foreign = 0, 0
        orphans: list[uuid.UUID] = []
        listed = self.store.list(OBJECTS)
        while batch := list(islice(listed, BATCH)):
            matches = [OBJECT_KEY.fullmatch(stat.key) for stat in batch]
            ids = [uuid.UUID(match[2]) for match in matches if match is not None]
            orphans.extend(self._unknown(ids))
            objects += len(batch)
            foreign += len(batch) - len(ids)
            progress(len(batch))
        return OrphanReport(objects, tuple(orphans), foreign)

    def remove_orphans(self, principal: Principal, report: OrphanReport, *, progress: Callable[[int], None]) -> int:
        """Delete a report's objects that still have no row; return how many."""
        self.installation.verify()
        self._record(principal, Action.FILES_REAP_STARTED, orphans=len(report.orphans))
        removed = 0
        for object_id in report.orphans:
            self.installation.require()
            if self._unknown([object_id]):
                self.store.delete(object_key(object_id))
                removed += 1
            progress(1)
        self._record(principal, Action.FILES_REAPED, orphans=removed)
        return removed

    def _record(self, principal: Principal, action: Action, **counts: Any) -> None:
        with self.core.sessions.begin() as session:
            self.audit.record(session, principal, action, **counts)

    def _expire(self, file: SealedObject) -> bool:
        self.installation.require()
        try:
            keeps = self._is_finished(file.object_id)
            with self.core.sessions.begin() as session:
                # Checks the lease again, since the upload may have renewed it.
                shred_pending(session, file, SealedObject.lease_until <= db_now(), end_lease=True)
                if keeps:
                    kept = (
                        sa.update(SealedObject)
                        .where(SealedObject.id == file.id)
                        .values(lease_until=db_now(_KEEP_FINISHED_SECONDS))
                    )
                    run(session, kept)
        except TransitionLost:
            return False
        except StorageError as exc:
            log.warning("upload_not_ended", file_id=str(file.id), exc_info=exc)
            return False
        REAPED.labels("expired").inc()
        return True

    def _is_finished(self, object_id: uuid.UUID) -> bool:
        try:
            self.store.open(object_key(object_id), 0, 0).close()
        except ObjectNotFound:
            return False
        except ObjectChanged:
            pass  # an empty object, which a disk that failed may leave; the row must not stay pending for ever
        return True

    def _remove(self, file: SealedObject) -> bool:
        """Delete the object before the row: a crash in between leaves a row that is found again."""
        self.installation.require()
        try:
            self.store.delete(object_key(file.object_id))
            if file.parked:
                self.store.delete_pieces(object_key(file.object_id))
        except StorageError as exc:
            REAPED.labels("failed").inc()
            log.warning("object_not_removed", file_id=str(file.id), exc_info=exc)
            return False
        with self.core.sessions.begin() as session:
            gone = count_changed(session, sa.delete(SealedObject).where(SealedObject.id == file.id, *_removable()))
        # Otherwise another pass has removed and counted it.
        if gone:
            REAPED.labels("removed").inc()
        return True

    def _unknown(self, object_ids: Collection[uuid.UUID]) -> list[uuid.UUID]:
        with self.core.sessions.begin() as session:
            known = set(
                session.scalars(sa.select(SealedObject.object_id).where(SealedObject.object_id.in_(object_ids)))
            )
        return [object_id for object_id in object_ids if object_id not in known]


def _abandoned() -> tuple[sa.ColumnElement[bool], ...]:
    return (SealedObject.state == ObjectState.PENDING, SealedObject.lease_until <= db_now())


def _removable() -> tuple[sa.ColumnElement[bool], ...]:
    return (
        SealedObject.state == ObjectState.SHREDDED,
        sa.or_(SealedObject.lease_until.is_(None), SealedObject.lease_until <= db_now()),
    )
