"""What a task does for uploads: end those whose time is over, finish those whose last request died, sweep, forget."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError

from vault.core.db import db_now, run
from vault.core.errors import VaultError
from vault.core.parts import Core
from vault.core.principal import WORKER
from vault.objects.models import ObjectState, SealedObject
from vault.objects.reaper import Reaper
from vault.observe.metrics import UPLOADS_EXPIRED
from vault.resumable.ending import Ending
from vault.resumable.finishing import Finishing
from vault.resumable.models import LONGEST, UploadState
from vault.resumable.models import ResumableUpload as Upload

_BATCH = 200

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Upkeep:
    core: Core
    ending: Ending
    finishing: Finishing
    reaper: Reaper

    def run(self, *, may_go_on: Callable[[], bool] = lambda: True) -> int:
        """Look after all uploads while `may_go_on` allows; return how many ended by their time. Raises
        ClockNotPlausible before any ends."""
        now = self.core.deletion_clock.now()
        is_written = sa.func.coalesce(Upload.lease_until > db_now(), sa.false())
        self._each(may_go_on, self._finish, Upload.state == UploadState.FINISHING, ~is_written)
        self._each(may_go_on, self.finishing.sweep, Upload.state == UploadState.DONE, Upload.store_handle.is_not(None))
        expired = self._each(may_go_on, self._expire, Upload.state == UploadState.OPEN, Upload.expires_at <= now)
        # Its bytes are all there: it has the longest time that an upload may have.
        stuck = (Upload.state == UploadState.FINISHING, ~is_written, Upload.created_at <= now - LONGEST)
        expired += self._each(may_go_on, self._expire, *stuck)
        self._remove_late(may_go_on)
        # Without a handle nothing is left in the store.
        ended = sa.and_(Upload.state.in_([UploadState.DONE, UploadState.GONE]), Upload.store_handle.is_(None))
        # A version from before resumable uploads erases an account, but does not know of its uploads.
        is_pending = sa.exists().where(SealedObject.id == Upload.object_row, SealedObject.state == ObjectState.PENDING)
        orphaned = sa.and_(Upload.state.in_([UploadState.OPEN, UploadState.FINISHING]), ~is_pending)
        with self.core.sessions.begin() as session:
            run(session, sa.delete(Upload).where(Upload.expires_at <= now, sa.or_(ended, orphaned)))
        return expired

    def _each(self, may_go_on: Callable[[], bool], do: Callable[[Upload], Any], *where: sa.ColumnElement[bool]) -> int:
        with self.core.sessions.begin() as session:
            found = session.scalars(sa.select(Upload).where(*where).order_by(Upload.expires_at).limit(_BATCH)).all()
        done = 0
        for upload in found:
            if not may_go_on():
                break
            try:
                do(upload)
                done += 1
            except (VaultError, SQLAlchemyError) as exc:
                # Others go on; the next pass tries this one again.
                log.warning("upload_not_looked_after", upload_id=str(upload.id), exc_info=exc)
        return done

    def _finish(self, upload: Upload) -> None:
        self.finishing.finish(replace(WORKER, user_id=upload.owner_id), upload)

    def _expire(self, upload: Upload) -> None:
        if self.ending.expire(upload):
            UPLOADS_EXPIRED.inc()

    def _remove_late(self, may_go_on: Callable[[], bool]) -> None:
        """Remove what is left of ended uploads: by a request that died after the end, or by a writer that did not give
        way and may have stored something since."""
        is_over = sa.or_(SealedObject.lease_until.is_(None), SealedObject.lease_until <= db_now())
        late = (SealedObject.state == ObjectState.SHREDDED, SealedObject.parked, is_over)
        with self.core.sessions.begin() as session:
            found = session.scalars(sa.select(SealedObject.id).where(*late).limit(_BATCH)).all()
        for row_id in found:
            if not may_go_on():
                break
            try:
                self.reaper.remove(row_id)
            except (VaultError, SQLAlchemyError) as exc:
                # In a copy of the database, say: the store is another's.
                log.warning("object_not_removed", file_id=str(row_id), exc_info=exc)
