"""One writer an upload. `epoch` is the fence: only the writer that has the newest one changes the row. The lease tells
other requests that a writer lives; it does not protect the row.

A new request asks the live writer to store what has arrived and to give way: its client does not need the old request
any more.
"""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import monotonic, sleep
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from vault.core.db import count_changed, db_now, run
from vault.core.errors import NotFound, OffsetMismatch, UploadGone, UploadLocked
from vault.core.parts import Core
from vault.core.slots import Slots
from vault.objects.models import SealedObject
from vault.resumable.models import ResumableUpload as Upload
from vault.resumable.models import UploadState

LEASE_SECONDS: Final = 30
# How long the store may take to complete an object: all tries of a request to S3, with a little more.
COMPLETES_SECONDS: Final = 120
RENEW_SECONDS: Final = 10.0
# How often a writer looks whether another process asks it to give way
LOOK_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 3.0
_ASK_AGAIN_SECONDS: Final = 0.1
# Requests of one person that wait for a writer, in one process, and of all: they take threads.
_MOST_WAITING_OF_ONE: Final = 2
_MOST_WAITING: Final = 8

log = structlog.get_logger(__name__)


class EpochLost(Exception):
    """Another request has taken the upload over, or ended it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """An upload that this request writes, as it was when it was taken, with its object."""

    upload: Upload
    file: SealedObject
    # Set when another request of this process wants the upload
    stop: threading.Event

    def change(self, session: Session, **values: object) -> None:
        """Change the row. Raises EpochLost if another writer has it, or if it is not open any more."""
        if count_changed(session, sa.update(Upload).where(*self._is_ours()).values(values)) != 1:
            raise EpochLost

    def is_wanted(self, session: Session) -> bool:
        """Return whether another process asks for the upload. Raises EpochLost."""
        row = session.execute(sa.select(Upload.stop_epoch).where(*self._is_ours())).one_or_none()
        if row is None:
            raise EpochLost
        return row[0] is not None

    def _is_ours(self) -> tuple[sa.ColumnElement[bool], ...]:
        return Upload.id == self.upload.id, Upload.epoch == self.upload.epoch, Upload.state == UploadState.OPEN


@dataclass(slots=True)
class Fence:
    core: Core
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _stops: dict[uuid.UUID, threading.Event] = field(default_factory=dict, init=False)
    _waiting: Slots = field(
        default_factory=lambda: Slots(_MOST_WAITING, share=_MOST_WAITING_OF_ONE, waiting=0), init=False
    )

    def settle(self, owner_id: uuid.UUID, upload_id: uuid.UUID) -> Upload:
        """Return an upload without a live writer: that gives way, or is outrun after three seconds. Raises NotFound,
        UploadGone, UploadLocked."""
        return self._reach(owner_id, upload_id, takes=False)

    @contextmanager
    def taken(self, owner_id: uuid.UUID, upload_id: uuid.UUID) -> Iterator[Claim]:
        """Settle an upload and, if it is open, write it during the block; others do not write it meanwhile.

        Raises NotFound, UploadGone, and OffsetMismatch if another request has taken it over.
        """
        upload = self._reach(owner_id, upload_id, takes=True)
        stop = threading.Event()
        with self.core.sessions.begin() as session:
            file = session.get(SealedObject, upload.object_row)
        if file is None:
            # The file was deleted since, as HEAD tells; or the account.
            raise UploadGone if upload.state == UploadState.DONE else NotFound
        claim = Claim(upload, file, stop)
        if upload.state != UploadState.OPEN:
            yield claim
            return
        with self._lock:
            self._stops[upload_id] = stop
        try:
            yield claim
        except EpochLost:
            # Without asking the writer that has it now to give way.
            raise OffsetMismatch(self._offset_of(upload_id)) from None
        finally:
            with self._lock:
                if self._stops.get(upload_id) is stop:
                    del self._stops[upload_id]
            self._release(claim)

    def _offset_of(self, upload_id: uuid.UUID) -> int:
        with self.core.sessions.begin() as session:
            upload = session.get(Upload, upload_id)
        if upload is None:
            raise NotFound
        if upload.state == UploadState.GONE:
            raise UploadGone
        if upload.state == UploadState.FINISHING:
            # All bytes are there, but that is told with the file.
            raise UploadLocked
        return upload.offset

    def _release(self, claim: Claim) -> None:
        mine = (Upload.id == claim.upload.id, Upload.epoch == claim.upload.epoch, Upload.state == UploadState.OPEN)
        try:
            with self.core.sessions.begin() as session:
                run(session, sa.update(Upload).where(*mine).values(lease_until=None, stop_epoch=None))
        except SQLAlchemyError as exc:
            # The lease ends by itself.
            log.warning("upload_not_released", exc_info=exc)

    def _reach(self, owner_id: uuid.UUID, upload_id: uuid.UUID, *, takes: bool) -> Upload:
        ask = partial(self._ask, owner_id, upload_id, takes=takes)
        upload = ask(outruns=False)
        if upload is not None:
            return upload
        if not self._waiting.take(owner_id):
            raise UploadLocked
        try:
            deadline = monotonic() + _PATIENCE_SECONDS
            while upload is None:
                with self._lock:
                    if (stop := self._stops.get(upload_id)) is not None:
                        stop.set()
                sleep(_ASK_AGAIN_SECONDS)
                upload = ask(outruns=monotonic() >= deadline)
            return upload
        finally:
            self._waiting.give_back(owner_id)

    def _ask(self, owner_id: uuid.UUID, upload_id: uuid.UUID, *, takes: bool, outruns: bool) -> Upload | None:
        """Return the upload if it has no live writer, or outrun that; otherwise ask the writer to give way."""
        with self.core.sessions.begin() as session:
            return self._settled(session, owner_id, upload_id, takes=takes, outruns=outruns)

    @staticmethod
    def _settled(
        session: Session, owner_id: uuid.UUID, upload_id: uuid.UUID, *, takes: bool, outruns: bool
    ) -> Upload | None:
        is_live = sa.func.coalesce(Upload.lease_until > db_now(), sa.false())
        found = session.execute(
            sa.select(Upload, is_live).where(Upload.id == upload_id, Upload.owner_id == owner_id).with_for_update()
        ).one_or_none()
        if found is None:
            raise NotFound
        upload, is_written = found
        if upload.state == UploadState.GONE:
            raise UploadGone
        if upload.state == UploadState.DONE:
            return upload
        if upload.state == UploadState.FINISHING:
            # Another request may be completing it, and this one may do so too.
            return None if is_written and not outruns else upload
        if is_written and not outruns:
            upload.stop_epoch = upload.epoch
            return None
        if is_written or takes:
            upload.epoch += 1
            # Of a writer that is outrun it stays, until the next one has released the upload.
            upload.stop_epoch = None if takes else upload.stop_epoch
            session.flush()
            lease = db_now(LEASE_SECONDS) if takes else None
            run(session, sa.update(Upload).where(Upload.id == upload_id).values(lease_until=lease))
        return upload
